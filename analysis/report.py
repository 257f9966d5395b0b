"""An analysis as one HTML page that needs nothing else."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from datetime import UTC, datetime

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from analysis.analyse import Analysis, Result, conclusion
from analysis.statistics import Effect

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --paper: #fbfbfa; --line: #d9dce1; --head: #f0f1f3; --bad: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dde2ea; --paper: #15181d; --line: #343a44; --head: #20252d; --bad: #f2b8b5 } }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 64rem; color: var(--ink); background: var(--paper);
  font: 15px/1.55 system-ui, sans-serif }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: left } th { background: var(--head) }
td + td { white-space: nowrap }
figure { margin: 1rem 0 } svg { width: 100%; height: auto; color: var(--ink) } .bad { color: var(--bad); font-weight: 600 }
"""


def page(analysis: Analysis) -> str:
    """The page."""
    plan = analysis.plan
    users = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{count:,}</td></tr>" for name, count in analysis.users.items()
    )
    split = f"The split has p = {analysis.ratio_p:.3g}."
    if analysis.is_split_right:
        split = f"<p>{split} That is as it should be.</p>"
    else:
        split = f'<p class="bad">{split} Users are not split as they should be: find out why before reading on.</p>'
    planned = f" of {plan.planned_users:,} planned" if plan.planned_users else ", none planned"
    title = f"Experiment {html.escape(plan.experiment)}"
    body = (
        f"<h1>{title}</h1><p>Control: {html.escape(plan.control)}. What users did within {plan.window.days:g} days after "
        f"they were first exposed; intervals hold {1 - plan.alpha:.0%}.</p>"
        f"<h2>Users</h2><div class=wide><table><tr><th>variation</th><th>users</th></tr>{users}</table></div>"
        f"<p>{sum(analysis.users.values()):,} users{planned}. {analysis.num_mixed:,} saw more than one "
        f"variation and are left out.</p>{split}"
        f"<h2>What may be concluded</h2><ul>"
        + "".join(f"<li>{html.escape(conclusion(analysis, result))}</li>" for result in analysis.results)
        + f"</ul><h2>Effects</h2><div class=wide>{_table(analysis)}</div><h2>Over time</h2>"
        + "".join(_figure(result) for result in analysis.results)
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
        f'initial-scale=1"><title>{title}</title><style>{STYLE}</style></head><body>{body}</body></html>\n'
    )


def _table(analysis: Analysis) -> str:
    head = (
        "metric",
        "variation",
        "control",
        "variation's",
        "fixed horizon",
        "p",
        "at any moment",
        "Bayesian",
        "chance to win",
    )
    rows = []
    for result in analysis.results:
        now, form = result.now, ".2%" if result.metric.kind == "share" else ",.3f"
        p_value, chance = now.frequentist.p_value, now.bayesian.chance_to_win
        cells = (
            result.metric.title + (" (CUPED)" if result.adjusted else ""), result.variation, format(result.control_mean, form),
            format(result.variation_mean, form), _interval(now.frequentist), "" if p_value is None else f"{p_value:.3g}",
            _interval(now.sequential), _interval(now.bayesian), "" if chance is None else f"{chance:.1%}",
        )  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{''.join(rows)}</table>"


def _interval(effect: Effect) -> str:
    if effect.expected is None or effect.low is None or effect.high is None:
        return effect.problem
    return f"{effect.expected:+.1%} ({effect.low:+.1%} to {effect.high:+.1%})"


def _figure(result: Result) -> str:
    looks = [look for look in result.looks if look.effects.sequential.expected is not None]
    if not looks:
        return ""
    days = [datetime.fromtimestamp(look.time_ms / 1000, UTC) for look in looks]
    figure, axis = plt.subplots(figsize=(8.6, 2.8), layout="constrained")
    for name, colour, alpha in (("sequential", "#8aa9d6", 0.35), ("frequentist", "#3b7dd8", 0.4)):
        effects = [getattr(look.effects, name) for look in looks]
        low, high = (np.asarray([np.nan if end is None else end for end in ends]) for ends in _ends(effects))
        label = "valid at any moment" if name == "sequential" else "valid at one planned moment"
        axis.fill_between(days, 100 * low, 100 * high, color=colour, alpha=alpha, label=label, linewidth=0)
    expected = [100 * (look.effects.frequentist.expected or 0.0) for look in looks]
    axis.plot(days, expected, color="#1f4f96", marker="o", markersize=2.5)
    axis.axhline(0, color="#888888", linewidth=1)
    last = looks[-1].effects.sequential
    reach = 100 * max(abs(last.low or 0.0), abs(last.high or 0.0))
    axis.set_ylim(-3 * reach, 3 * reach)  # early intervals reach far beyond
    axis.set_ylabel("% against control")
    axis.set_title(f"{result.metric.title}: {result.variation}", fontsize=10, loc="left")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, loc="upper right")
    figure.autofmt_xdate(rotation=0, ha="center")
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    plt.close(figure)
    svg = drawn.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}</figure>"


def _ends(effects: Sequence[Effect]) -> tuple[list[float | None], list[float | None]]:
    return [effect.low for effect in effects], [effect.high for effect in effects]

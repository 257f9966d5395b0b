"""The promised numbers as rows, and the ratios that the source of the method reports. Reads a summary, measures nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.result import Row

SOURCE_OVER_ALONE = 1.66
"""HR@10 of (C) over (A), as the source of the method reports it for its own shop: +66 %."""
SOURCE_OF_TEACHER = 0.80
"""HR@10 of (C) over its generative teacher, as the source reports it."""
TRAINING_MINUTES = 90
COMPLETE_JOURNEY = {"all": (0.605, 0.229, 0.03), "novel": (0.110, 0.0225, 0.15)}
"""Setting → HR@10, NDCG@10, and the gain in NDCG@10 over the best peer."""
AMAZON = {"amazon-beauty": (0.093, 0.054), "amazon-sports": (0.057, 0.0325)}
"""Recall@10, NDCG@10 of the best head."""
WORDS = {"all": "all items", "novel": "never bought"}
DATASETS = {"complete-journey": "Complete Journey", "amazon-beauty": "Amazon Beauty", "amazon-sports": "Amazon Sports"}


def promised_rows(summary: dict[str, Any]) -> list[Row]:
    """One row per promise that can be judged: contenders that were not run give none."""
    name = summary["dataset"]
    rows = [*_amazon(summary)] if name in AMAZON else [*_served(summary), *_ablation(summary), *_training(summary)]
    return [*rows, *_cold_items(summary)]


def mean(summary: dict[str, Any], contender: str, setting: str, metric: str, mode: str = "rolling") -> float:
    """A contender's mean."""
    return float(summary["metrics"][contender][mode][setting][metric]["mean"])


def comparison(
    summary: dict[str, Any], first: str, second: str, setting: str, metric: str, mode: str = "rolling"
) -> dict[str, Any] | None:
    """The paired comparison of two contenders, if it was made."""
    wanted = {"first": first, "second": second, "setting": setting, "metric": metric, "mode": mode}
    return next((row for row in summary["comparisons"] if wanted.items() <= row.items()), None)


def _served(summary: dict[str, Any]) -> Iterator[Row]:
    """The served list against fixed bars and against the best peer; where no list was rescored, C is what is served."""
    served = "served" if "served" in summary["metrics"] else "C"
    for setting, (hit_rate, ndcg, gain) in COMPLETE_JOURNEY.items():
        peer = summary["best_peer"][setting]
        if served not in summary["metrics"] or peer is None:
            continue
        what = f"{DATASETS[summary['dataset']]}, rolling, {WORDS[setting]}"
        for metric, bar in (("HR@10", hit_rate), ("NDCG@10", ndcg)):
            value = mean(summary, served, setting, metric)
            beside = mean(summary, peer, setting, metric)
            yield Row.at_least(f"{what}: {metric} of {served}", value, "", bar, (peer, beside))
        paired = comparison(summary, served, peer, setting, "NDCG@10")
        assert paired is not None
        relative = 100 * paired["relative"]
        yield Row.at_least(f"{what}: gain in NDCG@10 over the best peer", relative, "%", round(100 * gain))
        yield _lower_end(f"{what}: NDCG@10, {served} − {peer}", paired)


def _ablation(summary: dict[str, Any]) -> Iterator[Row]:
    """What distillation is worth, beside the source's ratios."""
    for setting in COMPLETE_JOURNEY:
        what = f"{DATASETS[summary['dataset']]}, rolling, {WORDS[setting]}"
        over_alone = comparison(summary, "C", "A", setting, "HR@10")
        if over_alone is not None:
            yield _lower_end(f"{what}: HR@10, C − A", over_alone)
            yield _ratio(f"{what}: HR@10, C over A", over_alone, SOURCE_OVER_ALONE)
        of_teacher = comparison(summary, "C", "teacher", setting, "HR@10")
        if of_teacher is not None:
            yield _ratio(f"{what}: HR@10, C over its teacher", of_teacher, SOURCE_OF_TEACHER)


def _training(summary: dict[str, Any]) -> Iterator[Row]:
    if "C" in summary["contenders"]:
        minutes = max(summary["contenders"]["C"]["training_s"]) / 60
        what = f"{DATASETS[summary['dataset']]}: training on two cores, the slowest seed"
        yield Row.at_most(what, minutes, "min", TRAINING_MINUTES)


def _amazon(summary: dict[str, Any]) -> Iterator[Row]:
    """The best head against fixed bars and against our own softmax SASRec."""
    head = summary["best_head"]
    if head is None:
        return
    for metric, bar in zip(("Recall@10", "NDCG@10"), AMAZON[summary["dataset"]], strict=True):
        value = mean(summary, head, "novel", metric)
        what = f"{DATASETS[summary['dataset']]}: {metric} of the best head ({head})"
        if "SASRec" not in summary["metrics"]:
            yield Row.at_least(what, value, "", bar)
            continue
        beside = mean(summary, "SASRec", "novel", metric)
        yield Row(what, value, "", f"≥ {bar} and above SASRec", value >= bar and value > beside, "SASRec", beside)


def _cold_items(summary: dict[str, Any]) -> Iterator[Row]:
    cold = summary["cold_items"]
    if cold is None:
        return
    what, value = f"{DATASETS[summary['dataset']]}: recall@10 of items held out of training", cold["model"]["mean"]
    above = cold["model"]["low"] > cold["random"]
    yield Row(what, value, "", "interval above chance", above, "chance", cold["random"])
    for over, beside, words in (
        ("over_category", "category", "popularity of the category"),
        ("over_neighbours", "neighbours", "neighbours by text"),
    ):
        if over in cold:  # not in the summaries of earlier versions
            better = cold[over]["low"] > 0
            yield Row(what, value, "", "paired interval above 0", better, words, cold[beside]["mean"])


def _lower_end(what: str, paired: dict[str, Any]) -> Row:
    return Row(f"{what}, lower end of the paired interval", paired["low"], "", "> 0", paired["low"] > 0)


def _ratio(what: str, paired: dict[str, Any], source: float) -> Row:
    ratio = (paired["base"] + paired["difference"]) / paired["base"] if paired["base"] else float("nan")
    return Row.reported(what, ratio, "", ("the source's ratio", source))

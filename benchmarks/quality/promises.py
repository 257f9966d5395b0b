"""The promised numbers as rows, and the ratios that the source of the method reports. Reads a summary, measures nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.result import NOTHING, Row

SOURCE_OVER_ALONE = 1.66
"""HR@10 of (C) over (A), as the source of the method reports it for its own shop: +66 %."""
SOURCE_OF_TEACHER = 0.80
"""HR@10 of (C) over its generative teacher, as the source reports it."""
TRAINING_MINUTES = 60
GAIN = 0.035
"""In NDCG@10 on all items, of what is served over the best peer."""
NOVEL = {"HR@10": 0.112, "NDCG@10": 0.0230}
TEACHER_NOVEL = 0.0190
"""NDCG@10 of the teacher on what was never bought."""
COLD_RECALL = 0.120
AMAZON = {"amazon-beauty-literature": (0.0975, 0.0560), "amazon-sports-literature": (0.0600, 0.0335)}
"""Recall@10, NDCG@10 of the best head."""
WORDS = {"all": "all items", "novel": "never bought"}
DATASETS = {
    "complete-journey": "Complete Journey",
    "amazon-beauty": "Amazon Beauty",
    "amazon-beauty-literature": "Amazon Beauty, trained as in the literature",
    "amazon-sports": "Amazon Sports",
    "amazon-sports-literature": "Amazon Sports, trained as in the literature",
}


def promised_rows(summary: dict[str, Any]) -> list[Row]:
    """One row per promise that can be judged: contenders that were not run give none."""
    if summary["dataset"].startswith("amazon"):
        rows = [*_amazon(summary)]
    else:
        rows = [*_served(summary), *_never_bought(summary), *_ablation(summary), *_training(summary)]
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
    """The served list of all items against the best peer; where no list was rescored, C is what is served."""
    served, peer = _what_is_served(summary), summary["best_peer"]["all"]
    if served not in summary["metrics"] or peer is None:
        return
    what = f"{DATASETS[summary['dataset']]}, rolling, {WORDS['all']}"
    value, beside = (mean(summary, name, "all", "HR@10") for name in (served, peer))
    yield Row.reported(f"{what}: HR@10 of {served}", value, "", (peer, beside))
    paired = comparison(summary, served, peer, "all", "NDCG@10")
    assert paired is not None
    relative = 100 * paired["relative"]
    beside = mean(summary, peer, "all", "NDCG@10")
    yield Row.at_least(f"{what}: NDCG@10 of {served} over the best peer", relative, "%", 100 * GAIN, (peer, beside))
    yield _lower_end(f"{what}: NDCG@10, {served} − {peer}", paired)
    baskets = summary.get("baskets")  # not in the summaries of earlier versions
    if baskets is not None:
        worst = min(baskets["by_size"], key=lambda name: baskets["by_size"][name]["relative"])
        least = 100 * baskets["by_size"][worst]["relative"]
        yield Row.at_least(f"{what}: the same, worst size of an order ({worst} items)", least, "%", 0)
        yield Row.reported(f"{what}: the same, each item counted alike", 100 * baskets["by_items"]["relative"], "%")


def _never_bought(summary: dict[str, Any]) -> Iterator[Row]:
    """The served list of what was never bought against each strong peer, and its teacher."""
    what, served = f"{DATASETS[summary['dataset']]}, rolling, {WORDS['novel']}", _what_is_served(summary)
    peer = summary["best_peer"]["novel"]
    if served in summary["metrics"] and peer is not None:
        for metric, bar in NOVEL.items():
            value, beside = (mean(summary, name, "novel", metric) for name in (served, peer))
            yield Row.at_least(f"{what}: {metric} of {served}", value, "", bar, (peer, beside))
        paired = comparison(summary, served, peer, "novel", "NDCG@10")
        assert paired is not None
        yield _lower_end(f"{what}: NDCG@10, {served} − {peer}", paired)
    if "teacher" in summary["metrics"]:
        value = mean(summary, "teacher", "novel", "NDCG@10")
        yield Row.at_least(f"{what}: NDCG@10 of the teacher", value, "", TEACHER_NOVEL)


def _what_is_served(summary: dict[str, Any]) -> str:
    return "served" if "served" in summary["metrics"] else "C"


def _ablation(summary: dict[str, Any]) -> Iterator[Row]:
    """What distillation is worth, beside the source's ratios."""
    for setting in WORDS:
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
    bars = AMAZON.get(summary["dataset"], (None, None))
    for metric, bar in zip(("Recall@10", "NDCG@10"), bars, strict=True):
        value = mean(summary, head, "novel", metric)
        what = f"{DATASETS[summary['dataset']]}: {metric} of the best head ({head})"
        beside = ("SASRec", mean(summary, "SASRec", "novel", metric)) if "SASRec" in summary["metrics"] else NOTHING
        yield Row.reported(what, value, "", beside) if bar is None else Row.at_least(what, value, "", bar, beside)


def _cold_items(summary: dict[str, Any]) -> Iterator[Row]:
    cold = summary["cold_items"]
    if cold is None:
        return
    what, value = f"{DATASETS[summary['dataset']]}: recall@10 of items held out of training", cold["model"]["mean"]
    yield Row.at_least(what, value, "", COLD_RECALL, ("chance", cold["random"]))
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

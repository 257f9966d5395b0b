"""The demo's promised numbers:

python -m benchmarks.demo        writes benchmarks/results/demo.json
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.result import RESULTS, Row, write_result
from deploy.local.demo.story import Demo, run_demo
from deploy.local.settings import StackSettings

TRAINED_S, KEPT_S = 25 * 60, 90  # with training, and on a release that is there


def rows(demo: Demo) -> Iterator[Row]:
    """Yield the demo's promises beside what it measured."""
    freshness, metrics = demo.freshness, demo.release.metrics
    hit_rate = {model: settings["all"]["HR@10"] for model, settings in metrics["models"].items()}
    popularity = ("global popularity", hit_rate["global popularity"])
    yield Row.at_most("order in Kafka to changed Recommend, median", statistics.median(freshness.orders_s), "s", 1)
    yield Row.at_most("new item to SimilarItems", freshness.new_item_searchable_s, "s", 5)
    yield Row.at_most("new item to Recommend", freshness.new_item_recommended_s, "s", 5)
    yield Row.at_most("training", float(metrics["training_s"]), "s", 480)
    if demo.was_trained:
        yield Row.at_most("demo with training, without set-up", demo.seconds, "s", TRAINED_S)
    else:
        yield Row.at_most("demo on a release that is there", demo.seconds, "s", KEPT_S)
    distilled = hit_rate["retrieval, distilled"]
    above = distilled > 1.2 * popularity[1]
    yield Row("HR@10, distilled retrieval head", distilled, "", "> 1.2 ×", above, *popularity)
    for model in ("retrieval before distillation", "generative"):
        if model in hit_rate:  # an earlier release may lack it
            yield Row.reported(f"HR@10, {model}", hit_rate[model], "", popularity)


def main() -> None:
    """Run the demo and write the file."""
    write_result(RESULTS / "demo.json", "demo", "make bench-demo", list(rows(run_demo(StackSettings(), keep=False))))


if __name__ == "__main__":
    main()

"""What a consumer tells of partitions that it has no more."""

from __future__ import annotations

from streaming.metrics import Metrics


def test_the_lag_of_a_partition_that_moved_away_is_not_told() -> None:
    metrics = Metrics()
    for partition, behind in ((0, 50_000), (1, 7)):
        metrics.consumer_lag.labels("baguni.orders", partition).set(behind)
    metrics.gave_up("baguni.orders", 0)
    samples = [sample for family in metrics.consumer_lag.collect() for sample in family.samples]
    assert [(sample.labels["partition"], sample.value) for sample in samples] == [("1", 7)]


def test_giving_up_a_partition_of_which_nothing_came_is_no_error() -> None:
    metrics = Metrics()
    metrics.gave_up("baguni.orders", 3)
    assert not [sample for family in metrics.consumer_lag.collect() for sample in family.samples]

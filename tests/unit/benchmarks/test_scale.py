"""What a shop needs is arithmetic on what was measured."""

from __future__ import annotations

import pytest

from benchmarks.scale.items import CatalogueCost
from benchmarks.scale.page import page
from benchmarks.scale.sizing import CORE_HOUR, GB_HOUR, SPARE, UTILISATION, Unit, exponent, need
from benchmarks.scale.users import UsersCost

UNIT = Unit(gateway_ms=2, encoder_ms=4, search_ms=8, history_bytes=2_000, gateway_mb=300, milvus_mb=1_000)


def test_what_grows_with_the_size_has_exponent_one() -> None:
    assert exponent([10, 100, 1_000], [3.0, 30.0, 300.0]) == pytest.approx(1)
    assert exponent([10, 100, 1_000], [5.0, 5.0, 5.0]) == pytest.approx(0)
    assert exponent([10, 1_000], [1.0, 10.0]) == pytest.approx(1 / 2)


def test_what_a_shop_needs() -> None:
    found = need(UNIT, requests=1_000, users=1_000_000, items=100_000)
    assert (found.gateways, found.triton_cores, found.milvus_cores) == tuple(
        round(ms / UTILISATION) for ms in (2, 4, 8)
    )
    assert found.redis_gb == SPARE * 2
    assert found.milvus_gb == SPARE * 1
    assert found.memory_gb == pytest.approx(SPARE * 2 + SPARE * 1 + found.gateways * 0.3)
    cores = found.gateways + found.triton_cores + found.milvus_cores + SPARE
    hour = CORE_HOUR * cores + GB_HOUR * found.memory_gb
    assert found.dollars_a_million == pytest.approx(hour / 3.6)  # 3.6 million an hour


def test_a_small_shop_has_two_of_everything() -> None:
    found = need(UNIT, requests=1, users=10, items=10)
    assert (found.gateways, found.triton_cores, found.milvus_cores) == (SPARE, SPARE, SPARE)


def test_every_line_of_a_table_has_its_cells() -> None:
    items = [CatalogueCost(size, 1.0, 2.0, 100.0, 3.0, 0.99, 500.0, 1.0, 250.0) for size in (10, 100, 1_000)]
    users = [UsersCost(size, 300.0, 1e5, 0.2) for size in (10, 100, 1_000)]
    where = {"cpu": "a processor", "cores": 2, "memory_gb": 24, "gpu": None}
    tables: list[list[str]] = [[]]
    for line in page(where, items, users, UNIT, ["here"]).splitlines():
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    for table in filter(None, tables):
        assert len({line.count("|") for line in table}) == 1, table

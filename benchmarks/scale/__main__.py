"""How cost grows with items and users:

python -m benchmarks.scale      writes benchmarks/results/scale.json, docs/scale.md and docs/scale.png
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.result import REPOSITORY, RESULTS, Row, machine, write_result
from benchmarks.scale import items, users
from benchmarks.scale.items import CatalogueCost
from benchmarks.scale.page import CATALOGUE, page, plot
from benchmarks.scale.sizing import Unit, exponent
from benchmarks.scale.users import UsersCost
from deploy.local.settings import StackSettings
from deploy.local.stack import LocalStack

CATALOGUES, SHOPPERS = (10_000, 100_000, 1_000_000), (10_000, 100_000, 1_000_000)
MAX_GROWTH = 3.0
UNIT = {  # what a Recommend costs beside the search: file → the row
    "gateway.json": "gateway's own CPU per Recommend, history unchanged",
    "inference.json": "user_encoder, 64 items, batch 8, one core: users a second",
    "streaming.json": "Redis a user at 200 events, of 100,000 users",
}


def rows(catalogues: list[CatalogueCost], shoppers: list[UsersCost]) -> Iterator[Row]:
    """What is promised, and what is reported."""
    small, *_, large = catalogues
    grown = large.search_ms / small.search_ms
    what = f"search latency from {small.items:,} to {large.items:,} items"
    yield Row.at_most(what, grown, "×", MAX_GROWTH, ("ms at the first", small.search_ms))
    sizes = [cost.items for cost in catalogues]
    for title, name in CATALOGUE.items():
        for cost in catalogues:
            yield Row.reported(f"{cost.items:,} items: {title}", getattr(cost, name), "")
        costs = [getattr(cost, name) for cost in catalogues]
        yield Row.reported(f"{title}: exponent", exponent(sizes, costs), "")
    for cost in catalogues:
        yield Row.reported(f"{cost.items:,} items: recall@{items.K}", cost.recall, "")
    for one in shoppers:
        what = f"{one.users:,} users of {users.EVENTS} events: Redis a user"
        yield Row.reported(what, one.bytes_a_user, "bytes", ("events loaded a second", one.events_a_second))
        yield Row.reported(f"{one.users:,} users: a history read", one.read_ms, "ms")


def unit() -> Unit:
    """From the committed results."""
    found = {
        name: next(row["value"] for row in json.loads((RESULTS / name).read_text())["rows"] if row["what"] == what)
        for name, what in UNIT.items()
    }
    return Unit(found["gateway.json"], 1e3 / found["inference.json"], 0.0, found["streaming.json"], 0.0, 0.0)


def main() -> None:
    """Measure and write."""
    catalogues, shoppers = [], []
    with tempfile.TemporaryDirectory() as name:
        stack = LocalStack(StackSettings.on_free_ports(Path(name) / "stack"))
        try:
            stack.start_servers()
            for count in CATALOGUES:
                catalogues.append(items.measure(stack, Path(name), count))
                print(catalogues[-1], flush=True)
            for count in SHOPPERS:
                shoppers.append(users.measure(stack.settings.endpoints().redis_url, count))
                print(shoppers[-1], flush=True)
        finally:
            stack.stop()
    write_result(RESULTS / "scale.json", "scale", "make bench-scale", list(rows(catalogues, shoppers)))
    read_from = [f"`benchmarks/results/{name}`" for name in UNIT]
    (REPOSITORY / "docs/scale.md").write_text(page(machine(), catalogues, shoppers, unit(), read_from))
    plot(catalogues, REPOSITORY / "docs/scale.png")


if __name__ == "__main__":
    main()

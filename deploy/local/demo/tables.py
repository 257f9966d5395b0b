"""The demo's tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from datetime import UTC, datetime

from rich.markup import escape
from rich.table import Table

from baguni.cli.lists import item_name
from baguni.domain.release import Release
from deploy.local.demo.freshness import LIST_LENGTH, Freshness
from deploy.local.demo.households import Shown

SHOWN_PUSHES = 5


def household_tables(household: Shown, release: Release) -> Iterator[Table]:
    """Yield the lists before any event and after the household's events, two side by side."""
    true = set(household.order.item_ids)
    when = datetime.fromtimestamp(household.order.time_ms / 1000, UTC).strftime("%d %B %Y %H:%M UTC")
    user_id = household.order.user_id
    pairs = {
        f"Household {user_id} ordered {len(true)} items on {when}": {
            "retrieval": household.before,
            "generative": household.generated,
        },
        f"Household {user_id} after events": {
            "after 2 clicks": household.after_clicks,
            "after the order": household.after_order,
        },
    }
    for title, columns in pairs.items():
        table = Table(title=title, caption="[green]✓ in that order[/], · not", show_lines=False)
        table.add_column("")
        for name, items in columns.items():
            table.add_column(f"{name}: {len(true & set(items))} of {len(items)} hit", overflow="fold")
        for position in range(LIST_LENGTH):
            cells = [
                _cell(items[position], true, release) if position < len(items) else "" for items in columns.values()
            ]
            table.add_row(str(position + 1), *cells)
        yield table


def _cell(item_id: str, true: set[str], release: Release) -> str:
    name = item_name(release.catalog, item_id)
    return f"[green]✓ {escape(name)}[/]" if item_id in true else f"· {escape(name)}"


def pushed_table(pushed: dict[str, list[str]], release: Release) -> Table:
    """Return the items that Braze pushes to the first users."""
    table = Table(
        "household", "pushed next", title=f"Attributes of {len(pushed)} users in Braze, the first {SHOWN_PUSHES}"
    )
    for user_id, item_ids in list(pushed.items())[:SHOWN_PUSHES]:
        table.add_row(user_id, ", ".join(item_name(release.catalog, item_id) for item_id in item_ids))
    return table


def timing_table(measured: Freshness) -> Table:
    """Return how long each kind of event took to change an answer, in ms."""
    table = Table("from Kafka to a changed answer", "median", "slowest", "how many", title="How fast events show")
    for name, seconds in (
        ("clicks → Recommend", measured.clicks_s),
        ("order → Recommend", measured.orders_s),
        ("new item → SimilarItems", [measured.new_item_searchable_s]),
        ("new item → Recommend", [measured.new_item_recommended_s]),
    ):
        median, worst = statistics.median(seconds), max(seconds)
        table.add_row(name, f"{median * 1000:.0f} ms", f"{worst * 1000:.0f} ms", str(len(seconds)))
    return table

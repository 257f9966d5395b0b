"""An item: where its Semantic ID leads, what lies near it in both spaces, and whom it fits."""

from __future__ import annotations

from functools import partial

from nicegui import ui

from baguni.domain.catalog import Catalog
from baguni.domain.release import Release
from baguni.v1 import recommendation_pb2 as pb
from inspection.code_tree import path
from inspection.connections import Connections, blocking
from inspection.lists import similar_list, title
from inspection.pages.layout import (
    CARD,
    COLUMNS,
    MUTED,
    SMALL,
    Problem,
    active_release,
    address,
    ask_for,
    attempt,
    attempt_all,
    frame,
    heading,
    is_seen,
    item_chips,
    item_link,
    item_rows,
    problem,
    wanted,
)
from inspection.retrieval import Buyer, buyers
from inspection.words import plural

LIST_LENGTH = 10
FEW_USERS, MANY_USERS, BUYERS_SHOWN = 300, 3_000, 10
MATCHES, FIRST_ITEMS = 20, 10
SPACES = {
    pb.SPACE_CONTENT: ("Substitutes", "Nearest in the content space, by what their text says; score: cosine"),
    pb.SPACE_COLLABORATIVE: ("Complements", "Nearest in the collaborative space, by who buys them; score: cosine"),
}


def add_item_page(connections: Connections) -> None:
    """`/item?id=…`, or `/item?q=…` for items whose name or id has these words."""

    @ui.page("/item", title="Item · baguni inspect")
    async def item_page(id: str = "", q: str = "") -> None:
        with frame(connections, "/item"):
            with ui.row().classes("w-full items-center gap-3"):
                ask_for("Item id, or words of its name", id or q, "/item", "q", "w-full max-w-sm")
            if not await is_seen():
                return
            release = await active_release(connections)
            if release is None:
                return
            if id or q in release.catalog.index:
                await show_item(connections, release, id or q)
            else:
                show_matches(release, q)


def matching(catalog: Catalog, words: str, count: int) -> list[str]:
    """Ids of items that have every one of the words in name or id, by name."""
    sought = words.casefold().split()
    found = [item for item in catalog.items if all(w in f"{item.title} {item.item_id}".casefold() for w in sought)]
    return [item.item_id for item in sorted(found, key=lambda item: (len(item.title), item.title))[:count]]


def show_matches(release: Release, words: str) -> None:
    """Items to choose from."""
    found = matching(release.catalog, words, MATCHES if words else FIRST_ITEMS)
    if not found:
        problem(f"no item of release {release.release_id} has {words!r} in its name or id")
        return
    ui.label(f"Items with {words!r}:" if words else "Some items:").classes(MUTED)
    for item_id in found:
        with ui.row().classes("items-baseline gap-2"):
            item_link(release, item_id).props("data-testid=match")
            ui.label(item_id).classes(SMALL)


async def show_item(connections: Connections, release: Release, item_id: str) -> None:
    """The whole page of one item."""
    index = release.catalog.index.get(item_id)
    ui.label(title(release, item_id)).classes("text-xl font-semibold")
    if index is None:
        problem(
            f"item {item_id!r} is not in release {release.release_id}: it does not exist, or it came after the release was "
            "built; only what the gateway knows of it is shown"
        )
    else:
        item = release.catalog.items[index]
        attributes = ", ".join(f"{name} {value}" for name, value in item.attributes.items())
        parts = (item_id, item.category, attributes, "" if item.available else "not available")
        ui.label(" · ".join(part for part in parts if part)).classes(MUTED)
        show_tree(release, index)
    with ui.element("div").classes(COLUMNS + " lg:grid-cols-3"):
        await show_neighbours(connections, release, item_id)
        if index is not None:
            with ui.card().classes(CARD):
                await show_buyers(connections, release, index)


def show_tree(release: Release, index: int) -> None:
    """The Semantic ID from the root down."""
    table = release.semantic_ids
    with ui.card().classes(CARD):
        semantic_id = " · ".join(map(str, table.codes_NL[index].tolist()))
        heading(
            f"Semantic ID {semantic_id}",
            "From the root of the code tree down: how many items share each prefix, and some.",
        )
        for depth, branch in enumerate(path(table, index)):
            shared = plural(branch.num_items, "item")
            onward = f", next code: {plural(branch.num_children, 'choice')}" if branch.num_children else ""
            with ui.element("div").classes(
                "w-full grid grid-cols-1 sm:grid-cols-[15rem_1fr] gap-x-4 border-t border-gray-100 pt-1"
            ):
                with ui.column().classes("gap-0").style(f"padding-left: {depth * 0.75}rem"):
                    ui.label(" · ".join(map(str, branch.prefix)) or "all").classes("text-sm font-mono").props(
                        "data-testid=prefix"
                    )
                    ui.label(shared + onward).classes(SMALL)
                item_chips(release, (release.catalog.items[other].item_id for other in branch.examples), "example")


async def show_neighbours(connections: Connections, release: Release, item_id: str) -> None:
    """Both spaces side by side, from SimilarItems."""
    calls = [partial(similar_list, connections.gateway, item_id, space, LIST_LENGTH) for space in SPACES]
    answers = await attempt_all(calls)
    for (name, meaning), answer in zip(SPACES.values(), answers, strict=True):
        with ui.card().classes(CARD).props(f"data-testid=list-{name.lower()}"):
            heading(name, meaning)
            if isinstance(answer, Problem):
                problem(answer.sentence)
            else:
                item_rows(answer, release)


async def show_buyers(connections: Connections, release: Release, index: int) -> None:
    """Whom the item fits, over few users at once and over many when asked."""
    heading(
        "Who would buy it",
        "Users by the item's share: exp(score) of the item over the sum of exp(score) of all items, by the retrieval head, "
        "just after each user's newest event. Scores of different users have no common level, shares have.",
    )
    rows = ui.column().classes("w-full gap-2")
    with ui.row().classes("w-full items-center gap-2"):
        more = ui.button(f"Ask up to {MANY_USERS:,} users").props("flat dense no-caps")
        bar = ui.linear_progress(0, show_value=False).classes("w-32")
        bar.set_visibility(False)

    async def compute(count: int) -> None:
        bar.set_visibility(True)
        more.disable()
        found = await wanted(attempt(blocking(lambda: _buyers(connections, release, index, count, bar))))
        bar.set_visibility(False)
        more.enable()
        rows.clear()
        with rows:
            if isinstance(found, Problem):
                problem(found.sentence)
            else:
                show_buyer_rows(*found)

    more.on_click(lambda: compute(MANY_USERS))
    await compute(FEW_USERS)


def _buyers(
    connections: Connections, release: Release, index: int, count: int, bar: ui.linear_progress
) -> tuple[list[Buyer], int]:
    users = connections.encoded_users(release.release_id, count, lambda done: setattr(bar, "value", done))
    return buyers(users, index, release.item_vectors, BUYERS_SHOWN), len(users)


def percent(share: float) -> str:
    """Of a share from 0 to 1."""
    return f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:.1g} %"


def show_buyer_rows(found: list[Buyer], num_users: int) -> None:
    """The best of how many."""
    words = ui.label(f"Computed over {plural(num_users, 'user')} with a history, as Redis happens to name them.")
    words.classes(SMALL).props("data-testid=computed-over")
    for buyer in found:
        with ui.row().classes("w-full no-wrap items-baseline gap-2 border-t border-gray-100 pt-1"):
            with ui.column().classes("gap-0 grow min-w-0"):
                ui.link(buyer.user_id, address("/user", id=buyer.user_id)).classes("text-sm").props("data-testid=buyer")
                known = "knows it" if buyer.knows else "does not know it"
                ui.label(f"{known} · place {buyer.rank:,} of the user's own list").classes(SMALL)
            with ui.column().classes("gap-0 shrink-0 items-end"):
                ui.label(percent(buyer.share)).classes("text-sm tabular-nums")
                ui.label(f"score {buyer.score:.2f}").classes(SMALL)

"""Two releases: the lists of the same user and of the same item in both, and how far they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from nicegui import ui

from baguni.domain.errors import NotFoundError
from baguni.domain.history import Action, History
from baguni.domain.release import Release
from inspection.comparison import overlap
from inspection.connections import Connections, blocking, just_after
from inspection.lists import ShownItem, ShownList, retrieval_list, title
from inspection.models import ReleaseModels
from inspection.neighbours import nearest
from inspection.pages.layout import (
    CARD,
    COLUMNS,
    MUTED,
    SMALL,
    Problem,
    address,
    attempt,
    attempt_all,
    frame,
    heading,
    is_seen,
    item_rows,
    problem,
    wanted,
)
from inspection.words import plural

LIST_LENGTH = 10
NEWEST_ITEMS = 20  # of a history, whose mean stands for a user where no encoder is loaded


@dataclass(frozen=True)
class Side:
    """One of the two releases; `is_loaded`: its models answer in Triton."""

    release: Release
    is_loaded: bool

    @property
    def release_id(self) -> str:
        """Its id."""
        return self.release.release_id


def add_releases_page(connections: Connections) -> None:
    """`/releases?a=…&b=…&user=…&item=…`."""

    @ui.page("/releases", title="Two releases · baguni inspect")
    async def releases_page(a: str = "", b: str = "", user: str = "", item: str = "") -> None:
        with frame(connections, "/releases"):
            if not await is_seen():
                return
            ids = await wanted(attempt(blocking(connections.store.ids)))
            if isinstance(ids, Problem) or not ids:
                problem(
                    ids.sentence if isinstance(ids, Problem) else f"there is no release in {connections.store.root}"
                )
                return
            first = a or connections.store.active_id() or ids[-1]
            second = b or next((i for i in reversed(ids) if i != first), first)
            choose(ids, first, second, user, item)
            sides = await wanted(attempt(blocking(lambda: [_side(connections, first), _side(connections, second)])))
            if isinstance(sides, Problem):
                problem(sides.sentence)
                return
            show_facts(sides)
            if user:
                await show_user(connections, sides, user.strip())
            if item:
                await show_item(connections, sides, item.strip())
            if not user and not item:
                ui.label("Name a user or an item to compare what both releases make of it.").classes(MUTED)


def choose(ids: Sequence[str], first: str, second: str, user: str, item: str) -> None:
    """The two releases, a user, an item."""
    options = list(dict.fromkeys([*reversed(ids), first, second]))
    with ui.row().classes("w-full items-center gap-3"):
        release_a = ui.select(options, value=first, label="Release A").props("outlined dense").classes("w-56")
        release_b = ui.select(options, value=second, label="Release B").props("outlined dense").classes("w-56")
        user_id = ui.input("User id", value=user).props("outlined dense").classes("w-40")
        item_id = ui.input("Item id", value=item).props("outlined dense").classes("w-40")

        def go() -> None:
            there = address("/releases", a=release_a.value, b=release_b.value, user=user_id.value, item=item_id.value)
            ui.navigate.to(there)

        user_id.on("keydown.enter", go)
        item_id.on("keydown.enter", go)
        ui.button("Compare", on_click=go).props("unelevated no-caps")


def _side(connections: Connections, release_id: str) -> Side:
    """Raises UnavailableError where Triton cannot be asked."""
    release = connections.release(release_id)
    return Side(release, connections.models(release_id).is_loaded())


def show_facts(sides: Sequence[Side]) -> None:
    """What the releases are."""
    tables = [side.release.semantic_ids.sha256 for side in sides]
    with ui.element("div").classes(COLUMNS + " sm:grid-cols-2"):
        for letter, side in zip("AB", sides, strict=True):
            manifest = side.release.manifest
            with ui.card().classes(CARD):
                heading(f"{letter}: {side.release_id}")
                kind = [manifest.get(name, "") for name in ("dataset", "target", "precision")]
                made = f"made {manifest['created_at'][:16].replace('T', ' ')} UTC"
                parts = [made, *filter(None, kind), plural(len(side.release.catalog), "item")]
                ui.label(" · ".join(map(str, parts))).classes(SMALL)
                loaded = "Loaded: its models answer." if side.is_loaded else "Not loaded: only its own vectors answer."
                ui.label(loaded).classes("text-sm").props("data-testid=loaded")
    same = "the same items and Semantic IDs" if tables[0] == tables[1] else "different tables of Semantic IDs"
    ui.label(f"The two have {same}.").classes(MUTED)


async def show_user(connections: Connections, sides: Sequence[Side], user_id: str) -> None:
    """A user's lists in both."""
    history = await wanted(attempt(connections.history(user_id)))
    if isinstance(history, Problem):
        problem(history.sentence)
        return
    if not history.events:
        problem(f"no history is stored for user {user_id!r}, so there is nothing to compare")
        return
    ui.label(f"User {user_id}").classes("text-lg font-semibold")
    ui.label("Just after the newest event; the retrieval head alone and the generative head, asked directly.").classes(
        SMALL
    )
    await show_pair("Retrieval alone", sides, [partial(_retrieved, connections, side, history) for side in sides])
    await show_pair("Generative", sides, [partial(_generated, connections, side, history) for side in sides])
    if not all(side.is_loaded for side in sides):
        stand_ins = [partial(_by_own_vectors, connections, side, history) for side in sides]
        await show_pair("In place of lists, by own vectors", sides, stand_ins)


async def show_item(connections: Connections, sides: Sequence[Side], item_id: str) -> None:
    """An item's neighbours in both, by each release's own vectors."""
    ui.label(title(sides[0].release, item_id)).classes("text-lg font-semibold")
    ui.label("By each release's own vectors, exactly; no server is asked.").classes(SMALL)
    for name, collaborative in (("Substitutes", False), ("Complements", True)):
        lists = [partial(_item_list, connections, side, item_id, collaborative) for side in sides]
        await show_pair(name, sides, lists)


async def show_pair(name: str, sides: Sequence[Side], calls: Sequence[partial[ShownList]]) -> None:
    """Two lists side by side, with what they share."""
    answers = await attempt_all(calls)
    first, second = answers
    agreement, notes = "", (list[str](), list[str]())
    if isinstance(first, ShownList) and isinstance(second, ShownList):
        both, back = overlap(first.item_ids, second.item_ids), overlap(second.item_ids, first.item_ids)
        agreement = f" · {both.shared} of {max(len(first.items), len(second.items))} in both"
        notes = [_moved(move) for move in back.moves], [_moved(move) for move in both.moves]
    ui.label(name + agreement).classes("text-base font-semibold").props("data-testid=agreement")
    with ui.element("div").classes(COLUMNS + " sm:grid-cols-2"):
        for letter, side, answer, beside in zip("AB", sides, answers, notes, strict=True):
            with ui.card().classes(CARD).props(f"data-testid=list-{letter}"):
                ui.label(f"{letter} · {answer.note}" if isinstance(answer, ShownList) else letter).classes(SMALL)
                if isinstance(answer, Problem):
                    problem(answer.sentence)
                else:
                    item_rows(answer, side.release, notes=beside)


def _moved(places: int | None) -> str:
    if places is None:
        return "only here"
    return "same place" if places == 0 else f"{'▲' if places > 0 else '▼'} {abs(places)}"


def _retrieved(connections: Connections, side: Side, history: History) -> ShownList:
    return retrieval_list(_loaded(connections, side), history.events, just_after(history), LIST_LENGTH)


def _generated(connections: Connections, side: Side, history: History) -> ShownList:
    found = _loaded(connections, side).generate(history.events, just_after(history), LIST_LENGTH)
    return _shown(side.release, found, "log-likelihood in nats")


def _loaded(connections: Connections, side: Side) -> ReleaseModels:
    if not side.is_loaded:
        raise NotFoundError(
            f"release {side.release_id} is not loaded in Triton, so its models cannot answer for a user"
        )
    return connections.models(side.release_id)


def _by_own_vectors(connections: Connections, side: Side, history: History) -> ShownList:
    """What can be said of a user without a user encoder."""
    index = side.release.catalog.index
    ordered = [index[e.item_id] for e in reversed(history.events) if e.action is Action.ORDERED and e.item_id in index]
    newest = list(dict.fromkeys(ordered))[:NEWEST_ITEMS]
    if not newest:
        raise NotFoundError(f"release {side.release_id} knows no item that this user ordered")
    found = nearest(connections.vectors(side.release_id, collaborative=True), newest, LIST_LENGTH)
    note = f"not a list of its models: what lies nearest to the mean of the {len(newest)} items ordered last, by cosine"
    return _shown(side.release, found, note)


def _item_list(connections: Connections, side: Side, item_id: str, collaborative: bool) -> ShownList:
    index = side.release.catalog.index.get(item_id)
    if index is None:
        raise NotFoundError(f"item {item_id!r} is not in release {side.release_id}")
    found = nearest(connections.vectors(side.release_id, collaborative), [index], LIST_LENGTH)
    return _shown(side.release, found, "cosine")


def _shown(release: Release, found: Sequence[tuple[int, float]], note: str) -> ShownList:
    items = tuple(ShownItem(release.catalog.items[index].item_id, score, "") for index, score in found)
    return ShownList(items, note, release.release_id)

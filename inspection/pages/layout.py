"""What the pages share: the frame, sentences instead of tracebacks, and lists of items."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlencode

from nicegui import ui

from baguni.domain.errors import BaguniError
from baguni.domain.release import Release
from inspection.connections import Connections, blocking
from inspection.lists import ShownList, title
from inspection.reasons import Reason

T = TypeVar("T")
CONNECT_S = 30.0  # a page that nobody came back for: a crawler, or a tab that was closed
PAGES = {"/user": "User", "/item": "Item", "/releases": "Two releases", "/map": "Map"}
MUTED = "text-sm text-gray-600"
POPULAR = "popular"  # the only source of what somebody unknown is shown
SMALL = "text-xs text-gray-600"
CARD = "w-full gap-2 p-4 shadow-none border border-gray-200 rounded-lg bg-white"
COLUMNS = "grid w-full gap-4 grid-cols-1 items-start"


@dataclass(frozen=True)
class Problem:
    """Why something cannot be shown."""

    sentence: str


async def wanted(asked: Awaitable[T]) -> T:
    """What a page waits for. Where the browser has left meanwhile, what would be made of it is not: the task ends here."""
    client = ui.context.client
    answer = await asked
    if client.is_deleted:
        raise asyncio.CancelledError(f"nobody looks at {client.page.path} any more")
    return answer


async def attempt(asked: Awaitable[T]) -> T | Problem:
    """What was asked for, or why it cannot be had."""
    try:
        return await asked
    except BaguniError as error:
        return Problem(str(error))


async def attempt_all(calls: Iterable[Callable[[], T]]) -> list[T | Problem]:
    """The same of several calls at once, in their order."""
    return await wanted(asyncio.gather(*(attempt(blocking(call)) for call in calls)))


@contextmanager
def frame(connections: Connections, here: str) -> Iterator[None]:
    """The head of every page; what is made inside stands below it."""
    ui.query("body").classes("bg-gray-50")
    ui.query(".nicegui-content").classes("w-full max-w-7xl mx-auto p-4 gap-4")
    with ui.row().classes("w-full items-baseline gap-x-4 sm:gap-x-6 gap-y-1"):
        ui.label("baguni inspect").classes("text-lg font-semibold")
        for path, name in PAGES.items():
            ui.link(name, path).classes("no-underline " + ("font-semibold" if path == here else "text-gray-600"))
        ui.space()
        ui.label(_active(connections)).classes(SMALL)
    yield


async def is_seen() -> bool:
    """Whether a browser has come back for the rest of the page: what takes long is asked for only then, and shown as it
    comes."""
    try:
        await ui.context.client.connected(CONNECT_S)
    except TimeoutError:
        return False
    return ui.context.client.has_socket_connection


def _active(connections: Connections) -> str:
    try:
        active = connections.store.active_id()
    except BaguniError as error:
        return str(error)
    return f"active release {active}" if active else "no release is active"


def problem(sentence: str) -> None:
    """A sentence in the place of what cannot be shown."""
    with ui.row().classes("w-full items-start no-wrap gap-2 rounded bg-amber-50 border border-amber-200 p-3"):
        ui.icon("info_outline").classes("text-amber-700 text-lg")
        ui.label(sentence[:1].upper() + sentence[1:]).classes("text-sm break-words min-w-0").props(
            "data-testid=problem"
        )


def heading(text: str, detail: str = "") -> None:
    """Of a card, with what it means below."""
    ui.label(text).classes("text-base font-semibold")
    if detail:
        ui.label(detail).classes(SMALL)


def address(path: str, **parameters: str) -> str:
    """Of a page; empty parameters are left out."""
    given = {name: value for name, value in parameters.items() if value}
    return f"{path}?{urlencode(given)}" if given else path


def ask_for(label: str, value: str, path: str, parameter: str, width: str, button: str = "Show") -> None:
    """A field, and a button or Enter that opens the page with what stands in it."""
    chosen = ui.input(label, value=value).props("outlined dense").classes(width)

    def go() -> None:
        ui.navigate.to(address(path, **{parameter: chosen.value.strip()}))

    chosen.on("keydown.enter", go)
    ui.button(button, on_click=go).props("unelevated no-caps")


def item_link(release: Release, item_id: str) -> ui.link:
    """An item by its name."""
    return ui.link(title(release, item_id), address("/item", id=item_id)).classes(
        "no-underline text-gray-900 hover:underline break-words"
    )


def item_chips(release: Release, item_ids: Iterable[str], name: str, green: Collection[str] = ()) -> None:
    """Items next to each other, those of `green` in green."""
    with ui.row().classes("gap-1"):
        for item_id in item_ids:
            colour = "bg-green-100" if item_id in green else "bg-gray-100"
            item_link(release, item_id).classes(f"text-xs rounded px-1.5 py-0.5 {colour}").props(f"data-testid={name}")


def item_rows(
    shown: ShownList,
    release: Release,
    hits: Collection[str] = (),
    reasons: Mapping[str, Sequence[Reason]] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """A list: place, name, score unless it is mere popularity, sources; a check where the item is among `hits`; what drove it;
    a note beside each."""
    for place, item in enumerate(shown.items):
        row = ui.row().classes("w-full no-wrap items-baseline gap-2 border-t border-gray-100 pt-1")
        with row.props("data-testid=row"):
            ui.label(str(place + 1)).classes("w-5 shrink-0 text-right " + SMALL)
            with ui.column().classes("gap-0 min-w-0 grow"):
                with ui.row().classes("no-wrap items-baseline gap-1"):
                    item_link(release, item.item_id).classes("text-sm leading-snug").props("data-testid=listed")
                    if item.item_id in hits:
                        ui.icon("check_circle").classes("text-green-700").props("data-testid=hit").tooltip(
                            "in the next order"
                        )
                ui.label(" · ".join(filter(None, (item.item_id, item.sources)))).classes(SMALL)
                for reason in (reasons or {}).get(item.item_id, ()):
                    name = "itself" if reason.item_id == item.item_id else title(release, reason.item_id)
                    words = ui.label(f"+{reason.effect:.2f} {name}")
                    words.classes("text-xs text-indigo-800 leading-snug").props("data-testid=reason")
            with ui.column().classes("gap-0 shrink-0 items-end"):
                if item.sources != POPULAR:
                    ui.label(f"{item.score:.2f}").classes("text-sm tabular-nums").props("data-testid=score")
                if notes:
                    ui.label(notes[place]).classes(SMALL)


async def active_release(connections: Connections) -> Release | None:
    """The active release; None, and a sentence on the page, where there is none."""
    found = await wanted(attempt(blocking(connections.release)))
    if isinstance(found, Problem):
        problem(found.sentence)
        return None
    return found

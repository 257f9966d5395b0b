"""A user: what happened, and three lists made of it, side by side and live."""

from __future__ import annotations

import time
from collections.abc import Collection
from functools import partial

from nicegui import ui

from baguni.domain.events import MAX_ID_LENGTH
from baguni.domain.history import Action, History
from baguni.domain.release import Release
from inspection.connections import Connections, blocking, just_after
from inspection.freshness import Freshness
from inspection.lists import (
    GENERATIVE,
    RETRIEVAL,
    SERVED,
    Reasons,
    ShownList,
    explained,
    generated_list,
    retrieval_list,
    served_list,
)
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
    item_rows,
    problem,
    wanted,
)
from inspection.placed_orders import PlacedOrder
from inspection.reasons import SMALLEST
from inspection.timeline import Entry, timeline
from inspection.words import moment, plural

LOOK_S = 0.5  # between two looks at the version of the history: a few bytes of Redis
LIST_LENGTH = 10
SUGGESTED_USERS, SCANNED_USERS = 12, 48
ENTRIES, ORDERS_TO_CHOOSE = 15, 60
STALE_MS = 30 * 86_400_000
CLOCK, NEWEST = "clock", "newest"
NAMES = {RETRIEVAL: "Retrieval alone", GENERATIVE: "Generative", SERVED: "As served"}
SCORES = {
    RETRIEVAL: "u · v, and what an item gains because the user knows it",
    GENERATIVE: "log-likelihood of the item's Semantic ID, in nats",
    SERVED: "the gateway's, of Recommend",
}
VERBS = {Action.ORDERED: "ordered", Action.CLICKED: "clicked", Action.CARTED: "put into the cart"}
WHY = (
    "Blue: what drove an item, by leaving out. The whole history is encoded again without one of its items, and the number is "
    "by how much this item's score falls; up to three of at least {smallest}. The served score is (1 − s) · retrieval + "
    "s · log-likelihood with s = {share:g}. Left out, one at a time: {left_out} of the history, those that count most in the "
    "model's summary."
)


def add_user_page(connections: Connections) -> None:
    """`/user?id=…&at=…`; `/` is the same."""

    @ui.page("/", title="baguni inspect")
    @ui.page("/user", title="User · baguni inspect")
    async def user_page(id: str = "", at: str = "") -> None:
        user_id = id.strip()
        with frame(connections, "/user"):
            with ui.row().classes("w-full items-center gap-3"):
                ask_for("User id", user_id, "/user", "id", "w-56")
                suggestions = ui.row().classes("items-baseline gap-x-3 gap-y-1 " + SMALL)
            if not await is_seen():
                return
            release = await active_release(connections)
            if release is not None and user_id:
                await UserView(connections, release, user_id, at).build()
            if not user_id:
                with suggestions:
                    await suggest(connections)


async def suggest(connections: Connections) -> None:
    """Some users to begin with."""
    found = await wanted(attempt(blocking(lambda: connections.some_users(SCANNED_USERS))))
    if isinstance(found, Problem):
        problem(found.sentence)
    elif not found:
        ui.label("Nobody has a stored history yet: `baguni histories load` adds some.")
    else:
        ui.label("some with a history:")
        for user_id in found[:SUGGESTED_USERS]:
            ui.link(user_id, address("/user", id=user_id)).props("data-testid=suggested")


class UserView:
    """One user on one open page. `at` is a moment in ms, or CLOCK or NEWEST."""

    def __init__(self, connections: Connections, release: Release, user_id: str, at: str) -> None:
        self.connections, self.release, self.user_id = connections, release, user_id
        self.at = at
        self.timezone = release.signature.store_timezone
        self.history = History()
        self.freshness = Freshness(0, 0, 0, arrived=False)
        self.entries_shown = ENTRIES
        self.generation = 0

    async def build(self) -> None:
        """Everything, once; then a look twice a second."""
        if len(self.user_id) > MAX_ID_LENGTH:
            problem(f"a user id has at most {MAX_ID_LENGTH} characters, this one has {len(self.user_id):,}")
            return
        history = await wanted(attempt(self.connections.history(self.user_id)))
        if isinstance(history, Problem):
            problem(f"the history cannot be read: {history.sentence}")
            return
        orders = await self._orders()
        self._note(history, arrived=False)
        with ui.row().classes("w-full items-center gap-x-4 gap-y-1"):
            ui.label(f"User {self.user_id}").classes("text-xl font-semibold")
            self.freshness_label = ui.label().classes(MUTED).props("data-testid=freshness")
        self._moment_choice(orders)
        self.notice = ui.column().classes("w-full")
        self.order_card = ui.column().classes("w-full")
        with ui.element("div").classes(COLUMNS + " lg:grid-cols-3"):
            self.cards = {kind: ui.card().classes(CARD).props(f"data-testid=list-{kind}") for kind in NAMES}
        for kind, card in self.cards.items():
            with card:
                heading(NAMES[kind], "Score: " + SCORES[kind])
                ui.spinner()
        self.why_label = ui.label().classes(SMALL).props("data-testid=why")
        self.timeline_card = ui.card().classes(CARD)
        await self.show()
        ui.timer(LOOK_S, self.look)

    async def _orders(self) -> list[PlacedOrder]:
        log = self.connections.orders
        return [] if log is None else await wanted(blocking(lambda: log.orders(self.user_id)))

    def _moment_choice(self, orders: list[PlacedOrder]) -> None:
        """The lists are made as of a moment: nothing later is read, neither of the history."""
        events = self.history.events
        choices = {CLOCK: "now, by this machine's clock", NEWEST: "just after the newest event"}
        for order in orders[: -ORDERS_TO_CHOOSE - 1 : -1]:
            when = moment(order.time_ms, self.timezone)
            choices[str(order.time_ms - 1)] = f"before the order of {when} ({plural(len(order.item_ids), 'item')})"
        is_stale = bool(events) and time.time() * 1000 - events[-1].time_ms > STALE_MS
        if self.at not in choices:
            self.at = NEWEST if is_stale else CLOCK

        async def choose() -> None:
            self.at = str(select.value)
            await self.show()

        with ui.row().classes("w-full items-center gap-x-4 gap-y-1"):
            select = ui.select(choices, value=self.at, label="Lists as of", on_change=choose)
            select.props("outlined dense options-dense").classes("w-full max-w-md")
            self.moment_label = ui.label().classes(SMALL)
            ui.link("on the map", address("/map", user=self.user_id)).classes("text-sm")

    def now_ms(self) -> int:
        """The moment that is chosen."""
        if self.at == CLOCK or not self.history.events:
            return int(time.time() * 1000)
        return just_after(self.history) if self.at == NEWEST else int(self.at)

    async def look(self) -> None:
        """Show everything anew if the history is another one."""
        newer = await wanted(attempt(self.connections.newer_history(self.user_id, self.freshness.version)))
        if isinstance(newer, Problem):
            self.freshness_label.set_text(f"the history cannot be read now: {newer.sentence}")
            return
        if newer is not None and newer.version != self.freshness.version:
            self._note(newer, arrived=True)
            await self.show()
        self.freshness_label.set_text(self.freshness.sentence(int(time.time() * 1000)))

    def _note(self, history: History, arrived: bool) -> None:
        self.history = history
        newest_ms = history.events[-1].time_ms if history.events else 0
        seen_ms = int(time.time() * 1000)
        if arrived:
            self.freshness = self.freshness.after(history.version, newest_ms, seen_ms)
        else:
            self.freshness = Freshness(history.version, newest_ms, seen_ms, arrived=False)

    async def show(self) -> None:
        """The history, the lists, then what drove them."""
        self.generation += 1
        generation, now_ms = self.generation, self.now_ms()
        self.freshness_label.set_text(self.freshness.sentence(int(time.time() * 1000)))
        self.moment_label.set_text(
            f"{moment(now_ms, self.timezone)}, as all times by the store's clock ({self.timezone})"
        )
        self._show_notice()
        self._show_timeline(now_ms)
        log = self.connections.orders
        truth = None
        if log is not None:
            found = await wanted(attempt(blocking(lambda: [log.next_order(self.user_id, now_ms)])))
            truth = None if isinstance(found, Problem) else found
        lists = await self._lists(now_ms)
        if generation != self.generation:
            return
        order = truth[0] if truth else None
        served = lists[SERVED]
        self._show_order(order, served.item_ids if isinstance(served, ShownList) else ())
        self._show_lists(lists, order, {})
        self.why_label.set_text("What drove them is being computed …")
        reasons, words = await self._reasons(lists, now_ms)
        if generation == self.generation:
            self._show_lists(lists, order, reasons)
            self.why_label.set_text(words)

    async def _lists(self, now_ms: int) -> dict[str, ShownList | Problem]:
        connections, events = self.connections, self.history.as_of(now_ms).events
        gateway, models = connections.gateway, connections.models(self.release.release_id)
        calls = {
            RETRIEVAL: partial(retrieval_list, models, events, now_ms, LIST_LENGTH),
            GENERATIVE: partial(generated_list, gateway, self.user_id, now_ms, LIST_LENGTH),
            SERVED: partial(served_list, gateway, self.user_id, now_ms, LIST_LENGTH),
        }
        answers = await attempt_all(calls.values())
        return dict(zip(calls, answers, strict=True))

    async def _reasons(self, lists: dict[str, ShownList | Problem], now_ms: int) -> tuple[Reasons, str]:
        """What drove the items, and what the numbers are."""
        events = self.history.as_of(now_ms).events
        shown = dict.fromkeys(i for answer in lists.values() if isinstance(answer, ShownList) for i in answer.item_ids)
        if not events or not shown:
            return {}, ""
        models = self.connections.models(self.release.release_id)
        found = await wanted(attempt(blocking(lambda: explained(models, events, now_ms, list(shown)))))
        if isinstance(found, Problem):
            return {}, f"What drove them cannot be computed: {found.sentence}"
        reasons, count = found
        share = self.release.signature.rescored_share
        return reasons, WHY.format(smallest=SMALLEST, share=share, left_out=plural(count, "item"))

    def _show_lists(self, lists: dict[str, ShownList | Problem], order: PlacedOrder | None, reasons: Reasons) -> None:
        hits = frozenset(order.item_ids) if order else frozenset()
        for kind, card in self.cards.items():
            answer = lists[kind]
            card.clear()
            with card:
                found = ""
                if isinstance(answer, ShownList) and order:
                    found = f" · {len(hits & set(answer.item_ids))} of {len(answer.items)} in the next order"
                heading(NAMES[kind] + found, "Score: " + SCORES[kind])
                if isinstance(answer, Problem):
                    problem(answer.sentence)
                    continue
                ui.label(self._note_of(answer)).classes(SMALL)
                item_rows(answer, self.release, hits, reasons.get(kind))

    def _note_of(self, answer: ShownList) -> str:
        parts = [answer.note]
        if answer.version:
            same = answer.version == self.freshness.version
            parts.append("from the history shown here" if same else f"from history version {answer.version}")
        if answer.release_id != self.release.release_id:
            parts.append(f"by release {answer.release_id}, not the one whose names stand here")
        return "; ".join(parts)

    def _show_order(self, order: PlacedOrder | None, served: Collection[str]) -> None:
        log = self.connections.orders
        self.order_card.clear()
        if log is None:
            return
        with self.order_card, ui.card().classes(CARD):
            if order is None:
                heading("No order after that moment in the data folder")
                return
            until_ms = self.release.trained_until_ms
            is_seen = until_ms is not None and order.time_ms < until_ms
            seen = ", which the release was trained on" if is_seen else ""
            when = moment(order.time_ms, self.timezone)
            heading(f"Next true order: {when}{seen}", "Green: in the list as served.")
            item_chips(self.release, order.item_ids, "truth", served)

    def _show_notice(self) -> None:
        self.notice.clear()
        if not self.history.events:
            with self.notice:
                problem(f"no history is stored for user {self.user_id!r}: the lists are what somebody unknown is shown")

    def _show_timeline(self, now_ms: int) -> None:
        events = self.history.as_of(now_ms).events
        entries = timeline(events)
        self.timeline_card.clear()
        with self.timeline_card:
            if not events:
                heading("History: nothing by that moment")
                return
            num_orders = sum(entry.action is Action.ORDERED for entry in entries)
            heading(f"History: {plural(num_orders, 'order')}, {plural(len(events), 'event')}, newest first")
            for entry in entries[: self.entries_shown]:
                self._show_entry(entry)
            if len(entries) > self.entries_shown:
                ui.button(f"Show all {len(entries):,}", on_click=self._show_all).props("flat dense no-caps")

    def _show_entry(self, entry: Entry) -> None:
        with ui.element("div").classes(
            "w-full grid grid-cols-1 sm:grid-cols-[13rem_1fr] gap-x-4 border-t border-gray-100 pt-1"
        ):
            with ui.column().classes("gap-0"):
                ui.label(moment(entry.time_ms, self.timezone)).classes("text-sm")
                number = f" · order {entry.order_id}" if entry.order_id else ""
                ui.label(f"{VERBS[entry.action]} {plural(len(entry.item_ids), 'item')}{number}").classes(SMALL)
            item_chips(self.release, entry.item_ids, "event")

    def _show_all(self) -> None:
        self.entries_shown = len(self.history)
        self._show_timeline(self.now_ms())

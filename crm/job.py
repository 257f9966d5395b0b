"""A campaign's run: select the audience, prepare every user's list, deliver. Each step goes on where it was interrupted."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import filterfalse, islice
from typing import Any

from baguni.clients.gateway import GatewayClient
from baguni.domain.catalog import Catalog
from baguni.domain.errors import BaguniError, InvalidInputError, NotFoundError, UnavailableError
from baguni.domain.events import MAX_ID_LENGTH, is_id
from baguni.domain.history import Action, History
from baguni.domain.release import ReleaseStore
from baguni.stores.forgotten import ForgottenUsers
from baguni.stores.history_store import HistoryWriter
from baguni.stores.redis_client import connect
from baguni.v1 import recommendation_pb2 as pb
from crm.audience import DAY_MS, users_of
from crm.campaign import MAX_ITEMS, Campaign, SinkChoice
from crm.forgetting import forget_listed
from crm.settings import CrmSettings
from crm.sinks import BadBatchError, Sink, UncertainError
from crm.sinks.braze import Braze
from crm.sinks.file import ListFile
from crm.sinks.kafka import PushTopic
from crm.state import CampaignState, Push, PushedItem, Run

log = logging.getLogger(__name__)
SELECTED_AT_ONCE = 2_000
READ_AT_ONCE = 500  # of histories, before users are written into a file
ATTEMPTS = 6  # of a batch that the gateway has no room for, or that a sink may not have taken
FIRST_BACKOFF_S = 0.5
MAX_UNKNOWN = 5  # batches in a row that a sink may have taken: more would leave a whole audience unknown
NO_ID = f"the id is longer than {MAX_ID_LENGTH} characters"
DELETED = "the user asked to be forgotten"

Progress = Callable[[str, int], None]
"""Told the step and how many users it has just done."""


@dataclass(frozen=True)
class Parts:
    """What a job works with."""

    settings: CrmSettings
    state: CampaignState
    gateway: GatewayClient
    histories: HistoryWriter
    forgotten: ForgottenUsers

    def catalog(self) -> Catalog:
        """Of the active release. Raises NotFoundError if none is active."""
        store = ReleaseStore(self.settings.releases)
        release_id = store.active_id()
        if release_id is None:
            raise NotFoundError("no release is active, and the audience names a category")
        return store.get(release_id, verify=False).catalog


class Job:
    """One campaign over one state. Every method raises InvalidInputError for what a user must mend, and UnavailableError when a
    server is away: run it again later, nothing is done twice."""

    def __init__(self, campaign: Campaign, parts: Parts, progress: Progress = lambda step, users: None) -> None:
        self._campaign, self._parts, self._state, self._progress = campaign, parts, parts.state, progress
        self._digest = hashlib.sha256(campaign.model_dump_json().encode()).hexdigest()[:16]
        self.sinks = [self._sink(choice) for choice in campaign.sinks]
        self._unknown_in_a_row = 0
        names = [sink.name for sink in self.sinks]
        for name in names:
            if names.count(name) > 1:  # each has sent to everybody where the other has
                self.close()
                raise InvalidInputError(f"sinks: {name} is there {names.count(name)} times, expected once", "sinks")

    def close(self) -> None:
        """Close the sinks."""
        for sink in self.sinks:
            if not isinstance(sink, ListFile):
                sink.close()

    def forget(self) -> None:
        """Remove the users who asked to be forgotten since the last run."""
        forget_listed(self._state, self._parts.forgotten)

    def begin(self, run_id: str | None = None) -> Run:
        """The run that is not finished, or a new one. With an id: that run, a new one if there is none."""
        run = self._state.unfinished(self._campaign.name)
        known = {run.run_id: run for run in self._state.runs()}
        if run_id is not None and run_id in known:
            run = known[run_id]
            if run.campaign != self._campaign.name:
                raise InvalidInputError(f"run {run_id!r} is of campaign {run.campaign!r}, not {self._campaign.name!r}")
            if run.is_discarded:
                raise InvalidInputError(f"run {run_id!r} was discarded, expected another id")
        elif run is not None and run_id is not None:
            raise InvalidInputError(f"run {run.run_id!r} is not finished: run it again, or `baguni crm discard` it")
        if run is None:
            now_ms = int(time.time() * 1000)
            run_id = run_id or f"{self._campaign.name}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
            return self._state.begin(run_id, self._campaign.name, self._digest, now_ms)
        if run.digest != self._digest and not run.is_finished:
            raise InvalidInputError(
                f"run {run.run_id!r} was begun with another campaign file; give it back, or `baguni crm discard` the run"
            )
        return run

    def check(self) -> None:
        """Before anything is sent: whether the campaign has an item that it may push, and whether every sink would take it."""
        items = self._campaign.items
        request = pb.RecommendRequest(
            anonymous=pb.AnonymousUser(),
            filters=[condition.message() for condition in items.filters],
            exclude_item_ids=items.exclude,
            page_size=1,
        )
        if not self._parts.gateway.recommend(request).items:
            raise InvalidInputError(
                f"items: no item passes the {len(items.filters)} filters and is not among the {len(items.exclude)} excluded",
                "items",
            )
        for sink in self.sinks:
            sink.check()

    def select(self, run: Run) -> None:
        """Note the audience. What cannot be an id is skipped: the gateway would refuse it, or the whole batch."""
        if run.is_selected:
            return
        audience = self._campaign.audience
        users = users_of(audience, self._parts.histories, self._parts.catalog, run.started_ms)
        while some := list(islice(users, SELECTED_AT_ONCE)):
            self._state.select(run.run_id, filter(is_id, some))
            self._state.skip(run.run_id, filterfalse(is_id, some), NO_ID)
            self._progress("selected", len(some))
        self._state.selected(run.run_id)

    def prepare(self, run: Run, limit: int | None = None) -> None:
        """Generate everybody's list, as quiet rules allow it; `limit`: of so many users only."""
        settings, left = self._parts.settings, self._to_prepare(run, limit)
        with ThreadPoolExecutor(settings.crm_calls) as calls:
            asked: list[tuple[list[str], dict[str, str], Future[pb.GenerateTopItemsResponse] | None]] = []
            while True:
                while len(asked) <= settings.crm_calls and (user_ids := next(left, None)):
                    skipped = self._disturbed(run, user_ids)
                    wanted = [user_id for user_id in user_ids if user_id not in skipped]
                    asked.append((wanted, skipped, calls.submit(self._generate, wanted) if wanted else None))
                if not asked:
                    return
                wanted, skipped, answer = asked.pop(0)
                pushes = self._lists(run, wanted, answer.result(), skipped) if answer is not None else []
                self._state.prepare(run.run_id, pushes, skipped)
                self._progress("prepared", len(pushes) + len(skipped))

    def deliver(self, run: Run, resend_unknown: bool = False) -> None:
        """Hand every list to every sink, once."""
        for sink in self.sinks:
            if isinstance(sink, ListFile):
                self._write(run, sink)
                continue
            if resend_unknown:
                doubtful = self._state.interrupted(run.run_id, sink.name, "unknown")
                self._state.not_sent(run.run_id, sink.name, [push.user_id for push in doubtful])
            for run_id, pushes in self._state.abandoned(sink.name).items():
                self._doubt(sink, pushes)
                self._state.unknown(run_id, sink.name, [push.user_id for push in pushes], "the run was discarded")
            interrupted = self._state.interrupted(run.run_id, sink.name)
            for start in range(0, len(interrupted), sink.batch):
                self._settle(run, sink, interrupted[start : start + sink.batch], "the process died while it was sent")
            doubts = self._unknown_in_a_row = 0
            while pushes := self._state.to_send(run.run_id, sink.name, "", sink.batch):
                if not self._send(run, sink, pushes):
                    doubts += 1
                    if doubts == ATTEMPTS:
                        raise UnavailableError(sink.name, f"no answer, {ATTEMPTS} times in a row")
                    time.sleep(FIRST_BACKOFF_S * 2**doubts)
                    continue
                doubts = 0
                self._progress(sink.name, len(pushes))
                if self._unknown_in_a_row >= MAX_UNKNOWN:
                    raise UnavailableError(sink.name, f"no clear answer to {MAX_UNKNOWN} batches in a row")
        self._state.finish(run.run_id)

    def preview(self, run: Run, limit: int) -> dict[str, list[Any]]:
        """What each sink would be sent, of so many users."""
        shown = {}
        for sink in self.sinks:
            pushes, _ = self._with_and_without(run, self._state.to_send(run.run_id, sink.name, "", limit))
            size = len(pushes) if isinstance(sink, ListFile) else sink.batch
            batches = [pushes[start : start + size] for start in range(0, len(pushes), max(size, 1))]
            shown[sink.name] = [content for batch in batches for content in sink.preview(run, batch)]
        return shown

    # Preparing

    def _to_prepare(self, run: Run, limit: int | None) -> Iterator[list[str]]:
        after, left = "", limit
        while left is None or left > 0:
            size = self._parts.settings.crm_batch_users
            user_ids = self._state.to_prepare(run.run_id, after, size if left is None else min(size, left))
            if not user_ids:
                return
            yield user_ids
            after, left = user_ids[-1], None if left is None else left - len(user_ids)

    def _disturbed(self, run: Run, user_ids: Sequence[str]) -> dict[str, str]:
        cap = self._campaign.quiet.campaigns
        if cap is None:
            return {}
        since_ms = run.started_ms - int(cap.days * DAY_MS)
        times = self._state.times_pushed(user_ids, since_ms)
        reason = f"{cap.at_most} campaigns within {cap.days:g} days"
        return {user_id: reason for user_id, count in times.items() if count >= cap.at_most}

    def _generate(self, user_ids: Sequence[str]) -> pb.GenerateTopItemsResponse:
        items, quiet = self._campaign.items, self._campaign.quiet
        request = pb.GenerateTopItemsRequest(
            user_ids=user_ids,
            k=MAX_ITEMS if quiet.concerns_items else self._campaign.items_per_user,
            filters=[condition.message() for condition in items.filters],
            exclude_item_ids=items.exclude,
            exclude_purchased=items.exclude_purchased,
        )
        for attempt in range(ATTEMPTS):
            try:
                return self._parts.gateway.generate_top_items(request)
            except UnavailableError as error:
                if attempt == ATTEMPTS - 1:
                    raise
                backoff_s = FIRST_BACKOFF_S * 2**attempt
                log.warning("waiting backoff_s=%.1f error=%s", backoff_s, error)
                time.sleep(backoff_s)
        raise AssertionError("unreachable")

    def _lists(
        self, run: Run, user_ids: Sequence[str], response: pb.GenerateTopItemsResponse, skipped: dict[str, str]
    ) -> list[Push]:
        """Return what users get; add to `skipped` who gets nothing. The order of the answer counts: an id in it may be cut."""
        if len(response.users) != len(user_ids):
            raise BaguniError(f"the gateway answered for {len(response.users)} users, expected {len(user_ids)}")
        unwanted = self._unwanted(run, user_ids)
        pushes = []
        for user_id, user in zip(user_ids, response.users, strict=True):
            is_cold = user.status == pb.USER_STATUS_COLD_START
            if user.status not in (pb.USER_STATUS_OK, pb.USER_STATUS_COLD_START):
                skipped[user_id] = f"not generated: {user.message}"
            elif is_cold and not self._campaign.popular_for_strangers:
                skipped[user_id] = "no history"
            else:
                items_left = (item for item in user.items if item.item_id not in unwanted.get(user_id, ()))
                left = [PushedItem(item.item_id, item.score) for item in items_left]
                if len(left) < self._campaign.least_items:
                    skipped[user_id] = f"fewer than {self._campaign.least_items} items"
                else:
                    items = tuple(left[: self._campaign.items_per_user])
                    pushes.append(Push(user_id, items, response.release_id, is_cold))
        return pushes

    def _unwanted(self, run: Run, user_ids: Sequence[str]) -> dict[str, set[str]]:
        """The items that quiet rules keep from users."""
        quiet = self._campaign.quiet
        unwanted: dict[str, set[str]] = {}
        if quiet.pushed_days is not None:
            unwanted = self._state.items_pushed(user_ids, run.started_ms - int(quiet.pushed_days * DAY_MS))
        if quiet.bought_days is not None:
            since_ms = run.started_ms - int(quiet.bought_days * DAY_MS)
            for user_id, history in zip(user_ids, self._parts.histories.read(user_ids), strict=True):
                bought = {e.item_id for e in history.events if e.action is Action.ORDERED and e.time_ms >= since_ms}
                unwanted.setdefault(user_id, set()).update(bought)
        return unwanted

    # Delivering

    def _send(self, run: Run, sink: Sink, pushes: Sequence[Push]) -> bool:
        """Send a batch, and note what became of each of its users before the next call. A batch that is bad is halved until the
        bad user is alone. Returns whether its outcome is settled."""
        pushes, deleted = self._with_and_without(run, pushes)
        self._state.erase(run.run_id, deleted, DELETED)
        if not pushes:
            return True
        user_ids = [push.user_id for push in pushes]
        self._state.sending(run.run_id, sink.name, user_ids)
        try:
            sent = sink.send(run, pushes)
        except UncertainError as error:
            known = error.arrived | error.failed.keys()
            self._state.sent(run, sink.name, [push for push in pushes if push.user_id in known], error.failed)
            unknown = [push for push in pushes if push.user_id not in known]
            return not unknown or self._settle(run, sink, unknown, str(error))
        except BadBatchError as error:
            log.info("%s: halving a batch users=%d error=%s", sink.name, len(pushes), error)
            self._state.not_sent(run.run_id, sink.name, user_ids)
            middle = len(pushes) // 2
            is_first_settled = self._send(run, sink, pushes[:middle])
            return self._send(run, sink, pushes[middle:]) and is_first_settled
        except BaguniError:
            if sink.is_repeatable:  # it was tried again, also after an attempt of which nobody knows what became
                self._doubt(sink, pushes)
            self._state.not_sent(run.run_id, sink.name, user_ids)
            raise
        except Exception as error:  # nobody foresaw it: the sink may have taken the batch before
            self._settle(run, sink, pushes, f"{type(error).__name__}: {error}")
            raise
        self._unknown_in_a_row = 0
        self._state.sent(run, sink.name, pushes, sent.failed, sent.told)
        self._doubt(sink, [push for push in pushes if push.user_id in sent.failed])  # a part of it may have been taken
        return True

    def _doubt(self, sink: Sink, pushes: Sequence[Push]) -> None:
        """Forget what a sink knows of some users: the next run tells it everything."""
        if pushes:
            self._state.doubt(sink.name, {push.user_id: sink.names(push) for push in pushes})

    def _settle(self, run: Run, sink: Sink, pushes: Sequence[Push], reason: str) -> bool:
        """Find out what became of a batch. Returns False if it must be sent again."""
        log.warning("%s: %d users uncertain: %s", sink.name, len(pushes), reason)
        self._doubt(sink, pushes)
        user_ids = [push.user_id for push in pushes]
        if sink.is_repeatable:
            self._state.not_sent(run.run_id, sink.name, user_ids)
            return False
        arrived = sink.arrived(run, pushes)
        if arrived is None:
            self._state.unknown(run.run_id, sink.name, user_ids, reason)
            self._unknown_in_a_row += 1
            return True
        self._state.sent(run, sink.name, [push for push in pushes if push.user_id in arrived], {})
        self._state.not_sent(run.run_id, sink.name, [user_id for user_id in user_ids if user_id not in arrived])
        return len(arrived) == len(pushes)

    def _write(self, run: Run, sink: ListFile) -> None:
        """The whole file, whatever was written of it before."""
        sink.write(run, self._to_write(run))
        while pushes := self._state.to_send(run.run_id, sink.name, "", SELECTED_AT_ONCE):
            self._state.sent(run, sink.name, pushes, {})
            self._progress(sink.name, len(pushes))

    def _to_write(self, run: Run) -> Iterator[Push]:
        after = ""
        while pushes := self._state.prepared(run.run_id, after, READ_AT_ONCE):
            after = pushes[-1].user_id
            left, deleted = self._with_and_without(run, pushes)
            self._state.erase(run.run_id, deleted, DELETED)
            yield from left

    def _with_and_without(self, run: Run, pushes: Sequence[Push]) -> tuple[list[Push], list[str]]:
        """Those who may be sent to, and those who asked to be forgotten."""
        found = self._parts.histories.read([push.user_id for push in pushes]) if pushes else []
        deleted = {push.user_id for push, history in zip(pushes, found, strict=True) if _is_deleted(history, run)}
        return [push for push in pushes if push.user_id not in deleted], sorted(deleted)

    def _sink(self, choice: SinkChoice) -> Sink | ListFile:
        if choice.file is not None:
            return ListFile(choice.file)
        if choice.kafka is not None:
            return PushTopic(choice.kafka, self._parts.settings.kafka_bootstrap)
        assert choice.braze is not None
        settings = self._parts.settings
        return Braze(choice.braze, settings.crm_braze_key.get_secret_value(), self._state.told, settings.crm_backoff_s)


def run_campaign(
    job: Job, run_id: str | None, resend_unknown: bool, told_run: Callable[[Run], None] = lambda run: None
) -> Run:
    """Do all of it, or what is left of it. Raises what the job raises; what is done stays done."""
    job.forget()
    run = job.begin(run_id)
    told_run(run)
    if not run.is_finished or resend_unknown:
        job.check()
        job.select(run)
        job.prepare(run)
        job.deliver(run, resend_unknown)
        job.forget()
    return run


@contextmanager
def open_parts(settings: CrmSettings, state: CampaignState) -> Iterator[Parts]:
    """Connections for a job."""
    with closing(settings.gateway()) as gateway, connect(settings.redis_url) as client:
        yield Parts(settings, state, gateway, HistoryWriter(client), ForgottenUsers(client))


def _is_deleted(history: History, run: Run) -> bool:
    """Deleted since the run began, or before it and never back."""
    return history.deleted_ms >= run.started_ms or (history.deleted_ms > 0 and not history.events)

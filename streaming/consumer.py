"""The Kafka loop: poll, apply, commit. What applying means is given; this knows offsets, groups and patience.

Offsets are committed after the write, so a crash redelivers; what is applied must not mind. Redis keeps the offsets too,
beside what was applied (`Positions`): a partition begins at the lower of both, and is read again from where Redis stands
when Redis turns out to have lost something. A record that will never parse goes to the dead letters and the loop goes on,
unless so many do that it must be their schema; one that the group, or one of its family, has passed before is not set aside
again. While a server is away the position goes back to the first record that is not applied, the partitions are paused, and
polling goes on, so that the group keeps its member: nothing is skipped, whatever partitions come and go meanwhile.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError

from baguni.clients.topics import ISOLATION, Record, UnreadableError, poll, record_of
from baguni.domain.errors import BaguniError, InvalidInputError, RefusedError, SchemaBreakError, UnavailableError
from baguni.domain.events import MAX_ERROR_LENGTH, Event, MalformedEvent, latest_time_ms, read
from streaming.dead_letters import DeadLetters, Quarantined
from streaming.metrics import Metrics
from streaming.positions import Place, Positions
from streaming.settings import StreamingSettings

log = logging.getLogger(__name__)
POLL_MS = 200  # also how long a stop waits at most while nothing arrives
BOOTSTRAP_MS = 5_000
COMMIT_MS = 5_000
MAX_FETCH_BYTES = 8 << 20  # of a fetch, and so of what waits in memory; a record that is larger comes alone
JOIN_S = 120.0  # for a group to let a consumer in; seen once: a broker never answered one that had just left
STUCK_S = 30.0  # without progress, before a consumer is not ready any more
CHECK_S = 2.0  # how often it is looked whether Redis has lost something, and whether topics are what they were
FIRST_RETRY_S, LONGEST_RETRY_S = 0.1, 5.0
WINDOW, LEAST_DEAD = 1_000, 100  # records that the share of malformed ones is of; fewer malformed ones are an accident
RECORDS_FAULT = (RefusedError, InvalidInputError)  # what is wrong with one record, not with a server
# Reasons that depend on the release or on a server: the group before this one may have applied such a record.
OF_THIS_GROUP = frozenset({"no_free_id", "refused", "unforeseen"})
NO_BROKEN_SCHEMA = frozenset({"no_free_id"})  # the release has no room for the item; its record is as it should be

Apply = Callable[[Iterator[Event]], Sequence[tuple[int, MalformedEvent]]]
"""Applies all events, which are parsed as they are taken, and returns those it rejects for good, by position. Raises
UnavailableError to be called again."""

Polled = Mapping[TopicPartition, Sequence[Any]]
Letter = tuple[Record, MalformedEvent]


@dataclass(frozen=True)
class ConsumerParts:
    """What the consumers of a process share."""

    redis: redis.Redis
    dead_letters: DeadLetters
    metrics: Metrics


class EventConsumer:
    """One member of a consumer group. `forget` is called when Redis has lost something that was applied: what is remembered of
    it is wrong then. `family`: of groups that read the same topics one after the other. Raises UnavailableError if no broker
    answers at the start."""

    def __init__(
        self,
        settings: StreamingSettings,
        topics: Sequence[str],
        group_id: str,
        apply: Apply,
        parts: ConsumerParts,
        batch_records: int,
        forget: Callable[[], None] = lambda: None,
        family: str = "",
    ) -> None:
        self._apply, self._forget, self._metrics, self._dead_letters = apply, forget, parts.metrics, parts.dead_letters
        suffix = settings.group_suffix
        self._positions = Positions(parts.redis, group_id + suffix, (family or group_id) + suffix)
        self._dead_rate, self._max_future_s = DeadRate(settings.max_dead_share), settings.max_future_s
        self._retry_s, self._next_check = FIRST_RETRY_S, 0.0
        self._unreadable: dict[TopicPartition, int] = {}  # the offset that failed once, or follows what was skipped
        self._next: dict[TopicPartition, int] = {}  # the offset after the last that was applied, of placed partitions
        self._topic_ids: dict[str, str] = {}  # of the topics of these partitions, as they were when they were placed
        self._members = _Membership()
        self._ready = _ReadyFile(settings.ready_file)
        try:
            self._consumer = KafkaConsumer(
                bootstrap_servers=settings.kafka_bootstrap,
                group_id=group_id + settings.group_suffix,
                group_instance_id=settings.instance_id or None,
                partition_assignment_strategy=[CooperativeStickyAssignor],
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level=ISOLATION,
                session_timeout_ms=settings.session_timeout_ms,
                heartbeat_interval_ms=settings.session_timeout_ms // 3,
                max_poll_records=batch_records,
                max_partition_fetch_bytes=MAX_FETCH_BYTES,
                fetch_max_bytes=MAX_FETCH_BYTES,
                fetch_max_wait_ms=settings.fetch_wait_ms,
                metadata_max_age_ms=int(CHECK_S * 1000),
                bootstrap_timeout_ms=BOOTSTRAP_MS,
            )
        except KafkaError as error:
            raise UnavailableError("kafka", f"{settings.kafka_bootstrap}: {error}") from error
        self._consumer.subscribe(topics, listener=self._members)

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Consume until told to stop, or until the group has not let it in for JOIN_S: then another consumer may join.
        Leaves the group on the way out, unless the instance has a name that it comes back with. Raises SchemaBreakError when
        most records are malformed; none of the last batch is committed then."""
        give_up = time.monotonic() + JOIN_S
        try:
            while not should_stop():
                if not self._members.has_joined and time.monotonic() > give_up:
                    log.warning("not in the group after_s=%.0f: joining again", JOIN_S)
                    self._metrics.waits.labels("kafka").inc()
                    return
                try:
                    polled = self._poll()
                except UnavailableError as error:
                    self._wait_for(error, {}, should_stop)
                    continue
                is_due = polled or self._members.changed or time.monotonic() >= self._next_check
                if (not is_due or self._step(polled, should_stop)) and self._members.has_joined:
                    self._ready.show()
        finally:
            self._consumer.close()

    def _step(self, polled: Polled, should_stop: Callable[[], bool]) -> bool:
        """Apply what was polled. Returns whether that was possible."""
        started = time.monotonic()
        try:
            placed = self._place()
            polled = {partition: raws for partition, raws in polled.items() if partition not in placed}
            records = [raw for partition in polled.values() for raw in partition]
            written_to = self._positions.run_id() if records else ""
            num_dead = self._apply_all(records) if records else 0
            lost = self._advance(polled, written_to)
        except UnavailableError as error:
            self._wait_for(error, polled, should_stop)
            return False
        self._retry_s = FIRST_RETRY_S
        if lost:
            self._rewind(lost)
        if records:
            applied = {partition: raws[-1].offset + 1 for partition, raws in self._still_ours(polled)}
            self._commit({partition: offset for partition, offset in applied.items() if partition not in lost})
            took_ms = (time.monotonic() - started) * 1000
            log.info("applied records=%d dead=%d took_ms=%.1f", len(records), num_dead, took_ms)
        return True

    def _wait_for(self, error: UnavailableError, polled: Polled, should_stop: Callable[[], bool]) -> None:
        """Take back what was polled, and wait longer each time."""
        log.warning("waiting retry_s=%.1f error=%s", self._retry_s, error)
        self._ready.withdraw_if_old()
        self._metrics.waits.labels(error.part).inc()
        self._return(polled)
        self._pause(should_stop)
        self._retry_s = min(self._retry_s * 2, LONGEST_RETRY_S)

    def _poll(self) -> Polled:
        """Poll; quarantine a record that cannot be read, and go on after it. Raises UnavailableError."""
        try:
            return poll(self._consumer, POLL_MS)
        except UnreadableError as error:
            if error.partition in self._place():
                return {}  # it begins elsewhere
            self._skip_if_again(error)
            return {}

    def _skip_if_again(self, error: UnreadableError) -> None:
        """Quarantine a record at the second try: what came at the first may have been damaged on its way. The record after one
        that was skipped is quarantined at the first try, since both may be of one batch."""
        partition, offset = error.partition, error.offset
        if self._unreadable.get(partition) != offset:
            log.warning("reading again error=%s", error)
            self._unreadable[partition] = offset
            self._consumer.seek(partition, offset)
            return
        if offset >= self._positions.passed([self._placed(partition)])[partition]:
            self._quarantine(error)
        self._positions.advance({self._placed(partition): (self._next.get(partition, offset), offset + 1)})
        self._next[partition] = self._unreadable[partition] = offset + 1
        self._consumer.seek(partition, offset + 1)
        self._commit({partition: offset + 1})

    def _quarantine(self, error: UnreadableError) -> None:
        told, where = str(error)[:MAX_ERROR_LENGTH], error.partition
        entry = Quarantined(where.topic, where.partition, error.offset, "unreadable", told, time.time())
        self._dead_letters.quarantine.add([entry])
        self._metrics.quarantined.inc()
        self._metrics.dead_letters.labels(entry.reason).inc()
        log.error("quarantined error=%s", error)

    def _place(self) -> Collection[TopicPartition]:
        """Begin partitions that were assigned at the lower of Kafka's and Redis' offset, at the beginning where one of them
        knows nothing. So it is with those whose topic was made anew: Redis knows nothing of it. Returns what was placed;
        what was polled of it before is read again."""
        gone, new = self._members.take()
        for partition in gone:
            self._next.pop(partition, None)
            self._metrics.gave_up(partition.topic, partition.partition)
        new |= self._made_anew()
        new &= self._consumer.assignment()
        if not new:
            return ()
        try:
            self._topic_ids |= {topic: self._topic_id(topic) for topic in {partition.topic for partition in new}}
            stored = self._positions.read([self._placed(partition) for partition in new])
            with _kafka_errors():
                begins = self._consumer.beginning_offsets(list(new))
                start = {}
                for partition in new:
                    known = (self._consumer.committed(partition, timeout_ms=COMMIT_MS), stored[partition])
                    offsets = [offset for offset in known if offset is not None]
                    start[partition] = min(offsets) if len(offsets) == len(known) else begins[partition]
            self._positions.place({self._placed(partition): at for partition, at in start.items()})
        except UnavailableError:
            self._members.again(new)
            raise
        for partition, offset in start.items():
            self._consumer.seek(partition, offset)
            log.info("placed partition=%s/%d offset=%d", *partition, offset)
        self._next |= start
        return start.keys()

    def _made_anew(self) -> set[TopicPartition]:
        """The partitions whose topic is not the one that it was when they were placed. Offsets would not tell: the new topic
        may be as long as the old one was."""
        now = {topic: self._topic_id(topic) for topic in self._topic_ids}
        changed = {topic for topic, topic_id in now.items() if topic_id not in ("", self._topic_ids[topic])}
        if changed:
            log.warning("topics were made anew topics=%s: reading from the beginning", ",".join(sorted(changed)))
        return {partition for partition in self._next if partition.topic in changed}

    def _topic_id(self, topic: str) -> str:
        """The id that the broker gave a topic, as of the last metadata; empty if it gives none, or the topic is gone.
        kafka-python knows it and has no public way to ask."""
        return str(self._consumer._cluster.topic_id(topic) or "")

    def _placed(self, partition: TopicPartition) -> Place:
        return Place(partition, self._topic_ids[partition.topic])

    def _apply_all(self, raws: Sequence[Any]) -> int:
        """Apply what parses, then set aside what does not: in that order, a retry repeats no dead letter. Returns how many
        records were set aside."""
        try:
            dead = self._apply_some(raws)
        except Exception as error:
            if isinstance(error, BaguniError) and not isinstance(error, RECORDS_FAULT):
                raise
            log.warning("a batch failed records=%d: applying one at a time", len(raws), exc_info=error)
            dead = [letter for raw in raws for letter in self._apply_one(raw)]
        num_dead, dead = len(dead), self._not_set_aside_before(dead)
        num_again = num_dead - len(dead)
        self._metrics.dead_letters_again.inc(num_again)
        broken = [error for _, error in dead if error.reason not in NO_BROKEN_SCHEMA]
        self._dead_rate.check(len(raws) - num_again, broken)
        self._metrics.quarantined.inc(self._dead_letters.send(dead))
        for _, malformed in dead:
            self._metrics.dead_letters.labels(malformed.reason).inc()
        return len(dead)

    def _not_set_aside_before(self, letters: Sequence[Letter]) -> list[Letter]:
        """Leave out records that this group, or one of its family, has passed: they were set aside then. Positions are written
        after dead letters, so none is left out that was not."""
        if not letters:
            return []
        partitions = {TopicPartition(record.topic, record.partition) for record, _ in letters}
        passed = self._positions.passed([self._placed(partition) for partition in partitions])
        return [
            (record, error)
            for record, error in letters
            if error.reason in OF_THIS_GROUP or record.offset >= passed[TopicPartition(record.topic, record.partition)]
        ]

    def _apply_some(self, raws: Sequence[Any]) -> list[Letter]:
        """Apply a batch; return what cannot be applied."""
        sources: list[Any] = []
        dead: list[Letter] = []
        latest_ms = latest_time_ms(self._max_future_s)

        def events() -> Iterator[Event]:
            for raw in raws:
                try:
                    event = read(raw, latest_ms)
                except MalformedEvent as error:
                    dead.append((record_of(raw), error))
                else:
                    if event is None:
                        self._metrics.tombstones.labels(raw.topic).inc()
                    else:
                        sources.append(raw)
                        yield event

        rejected = self._apply(events())
        return [*dead, *((record_of(sources[position]), rejection) for position, rejection in rejected)]

    def _apply_one(self, raw: Any) -> list[Letter]:
        """The same for one record; what fails unforeseen is set aside, so that it stops nothing but itself."""
        try:
            return self._apply_some([raw])
        except RECORDS_FAULT as error:
            return [(record_of(raw), MalformedEvent("refused", str(error)))]
        except BaguniError:
            raise
        except Exception as error:
            log.exception("applying failed unforeseen record=%s/%d@%d", raw.topic, raw.partition, raw.offset)
            return [(record_of(raw), MalformedEvent.unforeseen(error))]

    def _advance(self, polled: Polled, written_to: str) -> Collection[TopicPartition]:
        """Tell Redis how far everything is applied. Returns the partitions of which it has lost something before that, those of
        which nothing new came included."""
        self._next_check = time.monotonic() + CHECK_S
        again = {p: raws[0].offset for p, raws in polled.items() if raws[0].offset < self._next.get(p, 0)}
        if again:  # the broker has sent the consumer back
            self._positions.place({self._placed(partition): at for partition, at in again.items()})
            self._next |= again
        steps = {self._placed(partition): (at, at) for partition, at in self._next.items()}
        for partition, raws in self._still_ours(polled):
            begin = self._next.get(partition, raws[0].offset)
            steps[self._placed(partition)] = (begin, raws[-1].offset + 1)
        lost = self._positions.advance(steps, written_to) if steps else ()
        for partition, raws in self._still_ours(polled):
            self._next[partition] = end = raws[-1].offset + 1
            self._metrics.records.labels(partition.topic).inc(len(raws))
            behind = max((self._consumer.highwater(partition) or end) - end, 0)
            self._metrics.consumer_lag.labels(partition.topic, partition.partition).set(behind)
        return lost

    def _rewind(self, lost: Collection[TopicPartition]) -> None:
        """Redis has lost the last that was applied, of other partitions too: place everything anew."""
        log.warning("redis has lost what was applied partitions=%d: reading again", len(lost))
        self._metrics.rewinds.inc(len(lost))
        self._forget()
        self._members.again(self._consumer.assignment())

    def _return(self, polled: Polled) -> None:
        """Take back what was polled: the next poll begins with it. A partition that has moved on is its owner's."""
        for partition, raws in self._still_ours(polled):
            self._consumer.seek(partition, raws[0].offset)

    def _pause(self, should_stop: Callable[[], bool]) -> None:
        """Keep the membership for a while and take nothing."""
        until = time.monotonic() + self._retry_s
        while time.monotonic() < until and not should_stop():
            self._consumer.pause(*self._consumer.assignment())
            remaining_ms = max(int((until - time.monotonic()) * 1000), 0)
            with suppress(UnreadableError, UnavailableError):  # met again once the partitions are resumed
                self._return(poll(self._consumer, min(remaining_ms, POLL_MS)))  # of partitions just assigned
        self._consumer.resume(*self._consumer.paused())

    def _commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit exactly what was applied: where the next record is read. A commit that fails costs a redelivery, which changes
        nothing."""
        try:
            if offsets:
                committed = {partition: OffsetAndMetadata(offset, "", -1) for partition, offset in offsets.items()}
                self._consumer.commit(committed, timeout_ms=COMMIT_MS)
        except KafkaError as error:
            log.warning("commit failed error=%s", error)

    def _still_ours(self, polled: Polled) -> Iterator[tuple[TopicPartition, Sequence[Any]]]:
        ours = self._consumer.assignment()
        return ((partition, raws) for partition, raws in polled.items() if partition in ours)


class _Membership(ConsumerRebalanceListener):  # type: ignore[misc]
    """Which partitions came and went since it was last asked; kafka-python tells it on a thread of its own. Nothing is to be
    flushed when partitions are revoked: groups are joined inside a poll, when all that was polled before is either committed
    or returned."""

    def __init__(self) -> None:
        self._lock, self.has_joined = threading.Lock(), False
        self._gone: set[TopicPartition] = set()
        self._new: set[TopicPartition] = set()

    @property
    def changed(self) -> bool:
        """Whether there is something to take."""
        return bool(self._gone or self._new)

    def take(self) -> tuple[set[TopicPartition], set[TopicPartition]]:
        """What went and what came."""
        with self._lock:
            gone, new = self._gone, self._new
            self._gone, self._new = set(), set()
        return gone, new

    def again(self, partitions: Collection[TopicPartition]) -> None:
        """As if they had just been assigned."""
        with self._lock:
            self._new |= set(partitions)

    def on_partitions_revoked(self, revoked: Any) -> None:
        log.info("revoked partitions=%d", len(revoked))
        with self._lock:
            self._gone |= set(revoked)
            self._new -= set(revoked)

    def on_partitions_assigned(self, assigned: Any) -> None:
        log.info("assigned partitions=%d", len(assigned))
        with self._lock:
            self._new |= set(assigned)
        self.has_joined = True  # also as a spare member, without partitions


class _ReadyFile:
    """Tells whoever supervises the process that it makes progress: a file that is touched every few seconds, and removed when a
    server has been waited for longer than STUCK_S."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._shown = path, -math.inf

    def show(self) -> None:
        """There is progress."""
        if self._path is not None and time.monotonic() - self._shown >= CHECK_S:
            self._path.touch()
            self._shown = time.monotonic()

    def withdraw_if_old(self) -> None:
        """There is none now; perhaps there has not been any for long."""
        if self._path is not None and time.monotonic() - self._shown > STUCK_S:
            self._path.unlink(missing_ok=True)


class DeadRate:
    """Tells a broken schema from a broken record: too large a share of the last records that will never parse."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._batches: deque[tuple[int, int]] = deque()

    def check(self, num_records: int, errors: Sequence[MalformedEvent]) -> None:
        """Count a batch. Raises SchemaBreakError when the share is beyond what is allowed."""
        self._batches.append((num_records, len(errors)))
        while len(self._batches) > 1 and sum(records for records, _ in self._batches) - self._batches[0][0] >= WINDOW:
            self._batches.popleft()
        records, dead = (sum(counts) for counts in zip(*self._batches, strict=True))
        if dead >= LEAST_DEAD and dead > self._max_share * records:
            raise SchemaBreakError(
                f"{dead} of the last {records} records are malformed, expected at most {self._max_share:.0%}: has a "
                f"producer's schema changed? The last: {errors[-1] if errors else 'in the batches before'}"
            )


@contextmanager
def _kafka_errors() -> Iterator[None]:
    try:
        yield
    except KafkaError as error:
        raise UnavailableError("kafka", str(error)) from error


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    return stopping

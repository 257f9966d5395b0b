"""What a campaign run has decided and done, on disk: so it can be killed at any moment, go on, and do nothing twice.

One SQLite file for all campaigns of a folder, since how often a user is disturbed is counted over all of them. A user of a run
is selected, then prepared or skipped; then for each sink sending, sent, failed, or unknown, which is when it was being
sent as the process or the connection died. `sending` is on disk before a sink is called.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from baguni.domain.errors import InvalidInputError, NotFoundError

KEPT_MS = 400 * 86_400_000  # what was pushed longer ago is forgotten
LOCK_WAIT_S, LOCK_LOOK_S = 30.0, 0.1  # `baguni crm serve` holds the lock for moments
DOUBTFUL = b""  # what a sink was told, where nobody knows: a value that no text is equal to
_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
  run_id TEXT PRIMARY KEY, campaign TEXT NOT NULL, digest TEXT NOT NULL, started_ms INTEGER NOT NULL,
  is_selected INTEGER NOT NULL DEFAULT 0, is_finished INTEGER NOT NULL DEFAULT 0, is_discarded INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS delivery (
  run_id TEXT NOT NULL, user_id TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', payload TEXT,
  PRIMARY KEY (run_id, user_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS delivery_state ON delivery (run_id, state, user_id);
CREATE TABLE IF NOT EXISTS sent (
  run_id TEXT NOT NULL, sink TEXT NOT NULL, user_id TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (run_id, sink, user_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS push (
  user_id TEXT NOT NULL, run_id TEXT NOT NULL, item_id TEXT NOT NULL, time_ms INTEGER NOT NULL,
  PRIMARY KEY (user_id, run_id, item_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS told (
  sink TEXT NOT NULL, user_id TEXT NOT NULL, name TEXT NOT NULL, value TEXT,
  PRIMARY KEY (sink, user_id, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS forgotten (until INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS delivery_user ON delivery (user_id);
CREATE INDEX IF NOT EXISTS sent_user ON sent (user_id);
CREATE INDEX IF NOT EXISTS told_user ON told (user_id);
"""
# Of one sink and run: who is prepared and was not handed to the sink yet.
_NEXT = """
SELECT user_id, payload FROM delivery AS d
WHERE run_id = :run AND state = 'prepared' AND user_id > :after
  AND NOT EXISTS (SELECT 1 FROM sent AS s WHERE s.run_id = d.run_id AND s.sink = :sink AND s.user_id = d.user_id)
ORDER BY user_id LIMIT :limit
"""
_FORGET_OLD = (
    "DELETE FROM push WHERE time_ms < ?",
    "DELETE FROM delivery WHERE run_id IN (SELECT run_id FROM run WHERE started_ms < ?)",
    "DELETE FROM sent WHERE run_id IN (SELECT run_id FROM run WHERE started_ms < ?)",
    "DELETE FROM run WHERE started_ms < ?",
)
# Of one user. What a sink knows has no time: it stays where something was sent later, which was told then.
_FORGET_UNTIL = (
    "DELETE FROM push WHERE user_id = :user AND time_ms <= :until",
    "DELETE FROM delivery WHERE user_id = :user AND run_id NOT IN (SELECT run_id FROM run WHERE started_ms > :until)",
    "DELETE FROM sent WHERE user_id = :user AND run_id NOT IN (SELECT run_id FROM run WHERE started_ms > :until)",
    "DELETE FROM told WHERE user_id = :user AND sink NOT IN (SELECT sink FROM sent WHERE user_id = :user AND state = 'sent')",
)
_OF_USERS = ("delivery", "sent", "push", "told")


class PushedItem(NamedTuple):
    """An item of a list, with its log-likelihood in nats, or its popularity's rank score for a stranger."""

    item_id: str
    score: float


@dataclass(frozen=True)
class Push:
    """What a user gets."""

    user_id: str
    items: tuple[PushedItem, ...]
    release_id: str
    cold_start: bool = False


@dataclass(frozen=True)
class Run:
    """One run of a campaign, a row of its table."""

    run_id: str
    campaign: str
    digest: str  # of the campaign's file
    started_ms: int
    is_selected: int
    is_finished: int
    is_discarded: int

    @property
    def state(self) -> str:
        """In a word."""
        return "discarded" if self.is_discarded else "finished" if self.is_finished else "not finished"


class CampaignState:
    """The file. One process at a time may change it: `lock`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock_file = folder / "lock"
        self._db = sqlite3.connect(folder / "state.sqlite", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # `sending` must be on disk before it is sent
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def lock(self, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
        """Hold the lock while the body runs. Raises InvalidInputError if another process has it for longer than `wait_s`."""
        deadline = time.monotonic() + wait_s
        with self._lock_file.open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if time.monotonic() >= deadline:
                        message = f"another campaign is running on {self.folder}; wait for it"
                        raise InvalidInputError(message) from error
                    time.sleep(LOCK_LOOK_S)
            yield

    def copy(self, folder: Path) -> CampaignState:
        """Everything in another folder: for what must not leave a trace."""
        copied = CampaignState(folder)
        self._db.backup(copied._db)
        return copied

    # Runs

    def unfinished(self, campaign: str) -> Run | None:
        """The run of this campaign that is not finished."""
        found = [run for run in self.runs() if run.campaign == campaign and not (run.is_finished or run.is_discarded)]
        return found[0] if found else None

    def run(self, run_id: str) -> Run:
        """A run. Raises NotFoundError."""
        rows = self._rows("SELECT * FROM run WHERE run_id = ?", run_id)
        if not rows:
            raise NotFoundError(f"run {run_id!r} does not exist; `baguni crm runs` lists those that do")
        return Run(*rows[0])

    def runs(self) -> list[Run]:
        """All of them, newest first."""
        return [Run(*row) for row in self._rows("SELECT * FROM run ORDER BY started_ms DESC, run_id DESC")]

    def begin(self, run_id: str, campaign: str, digest: str, now_ms: int) -> Run:
        """A new run; runs of very long ago, and what they pushed, are forgotten."""
        with self._transaction():
            for forget in _FORGET_OLD:
                self._db.execute(forget, (now_ms - KEPT_MS,))
            self._db.execute(
                "INSERT INTO run (run_id, campaign, digest, started_ms) VALUES (?, ?, ?, ?)",
                (run_id, campaign, digest, now_ms),
            )
        return self.run(run_id)

    def finish(self, run_id: str) -> None:
        """Nothing of it is left to do."""
        self._db.execute("UPDATE run SET is_finished = 1 WHERE run_id = ?", (run_id,))

    def discard(self, run_id: str) -> None:
        """Give a run up: nothing more of it will be sent; what was sent stays known."""
        with self._transaction():
            self._db.execute("UPDATE run SET is_discarded = 1 WHERE run_id = ?", (run_id,))
            self._db.execute("DELETE FROM delivery WHERE run_id = ? AND state = 'selected'", (run_id,))

    # Selecting and preparing

    def select(self, run_id: str, user_ids: Iterable[str]) -> None:
        """Users of a run; those who are in it stay as they are."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO delivery (run_id, user_id, state) VALUES (?, ?, 'selected')",
                ((run_id, user_id) for user_id in user_ids),
            )

    def skip(self, run_id: str, user_ids: Iterable[str], reason: str) -> None:
        """Users of a run who get nothing, whatever it would have prepared."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO delivery (run_id, user_id, state, reason) VALUES (?, ?, 'skipped', ?)",
                ((run_id, user_id, reason) for user_id in user_ids),
            )

    def selected(self, run_id: str) -> None:
        """The audience is complete."""
        self._db.execute("UPDATE run SET is_selected = 1 WHERE run_id = ?", (run_id,))

    def to_prepare(self, run_id: str, after: str, limit: int) -> list[str]:
        """Users that are selected and neither prepared nor skipped, in order, after this one."""
        rows = self._rows(
            "SELECT user_id FROM delivery WHERE run_id = ? AND state = 'selected' AND user_id > ? ORDER BY user_id LIMIT ?",
            run_id,
            after,
            limit,
        )
        return [row[0] for row in rows]

    def prepare(self, run_id: str, pushes: Iterable[Push], skipped: Mapping[str, str]) -> None:
        """Note what users get, and why others get nothing."""
        prepared = [("prepared", "", _packed(push), run_id, push.user_id) for push in pushes]
        with self._transaction():
            self._db.executemany(
                "UPDATE delivery SET state = ?, reason = ?, payload = ? WHERE run_id = ? AND user_id = ?",
                prepared + [("skipped", reason, None, run_id, user_id) for user_id, reason in skipped.items()],
            )

    def times_pushed(self, user_ids: Sequence[str], since_ms: int) -> dict[str, int]:
        """In how many runs each was pushed something since; those with none are left out."""
        counted = "SELECT user_id, COUNT(DISTINCT run_id) FROM push"
        query = f"{counted} WHERE user_id IN ({_marks(user_ids)}) AND time_ms >= ? GROUP BY user_id"
        return dict(self._rows(query, *user_ids, since_ms))

    def items_pushed(self, user_ids: Sequence[str], since_ms: int) -> dict[str, set[str]]:
        """What each was pushed since."""
        found: dict[str, set[str]] = {}
        query = f"SELECT user_id, item_id FROM push WHERE user_id IN ({_marks(user_ids)}) AND time_ms >= ?"  # noqa: S608
        for user_id, item_id in self._rows(query, *user_ids, since_ms):
            found.setdefault(user_id, set()).add(item_id)
        return found

    # Sending

    def to_send(self, run_id: str, sink: str, after: str, limit: int) -> list[Push]:
        """What is prepared and was not handed to this sink, in the order of users, after this one."""
        parameters = {"run": run_id, "sink": sink, "after": after, "limit": limit}
        return [_unpacked(*row) for row in self._db.execute(_NEXT, parameters)]

    def prepared(self, run_id: str, after: str, limit: int) -> list[Push]:
        """What is prepared, in the order of users, after this one."""
        query = (
            "SELECT user_id, payload FROM delivery WHERE run_id = ? AND state = 'prepared' AND user_id > ? "
            "ORDER BY user_id LIMIT ?"
        )
        return [_unpacked(*row) for row in self._rows(query, run_id, after, limit)]

    def last_push(self, campaign: str, user_id: str) -> tuple[str, Push] | None:
        """What the last run of a campaign that has something for a user has, and the run; None if none has."""
        query = (
            "SELECT run_id, user_id, payload FROM run JOIN delivery USING (run_id) WHERE campaign = ? AND user_id = ? "
            "AND state = 'prepared' AND NOT is_discarded ORDER BY started_ms DESC, run_id DESC LIMIT 1"
        )
        rows = self._rows(query, campaign, user_id)
        return (rows[0][0], _unpacked(*rows[0][1:])) if rows else None

    def sending(self, run_id: str, sink: str, user_ids: Iterable[str]) -> None:
        """On disk when it returns: these are about to be sent."""
        with self._transaction():
            self._mark(run_id, sink, "sending", dict.fromkeys(user_ids, ""))

    def sent(
        self,
        run: Run,
        sink: str,
        pushes: Sequence[Push],
        failed: Mapping[str, str],
        told: Mapping[str, Mapping[str, str | None]] | None = None,
    ) -> None:
        """These arrived, but for those that failed; `told`: what the sink knows of users now, by name."""
        arrived = [push for push in pushes if push.user_id not in failed]
        with self._transaction():
            self._mark(run.run_id, sink, "sent", dict.fromkeys([push.user_id for push in arrived], ""))
            self._mark(run.run_id, sink, "failed", failed)
            self._db.executemany(
                "INSERT OR IGNORE INTO push (user_id, run_id, item_id, time_ms) VALUES (?, ?, ?, ?)",
                [(push.user_id, run.run_id, item.item_id, run.started_ms) for push in arrived for item in push.items],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO told (sink, user_id, name, value) VALUES (?, ?, ?, ?)",
                [
                    (sink, push.user_id, name, value)
                    for push in arrived
                    for name, value in (told or {}).get(push.user_id, {}).items()
                ],
            )

    def doubt(self, sink: str, names: Mapping[str, Iterable[str]]) -> None:
        """Note that nobody knows what the sink was told of these users: their names that were told before, and these."""
        with self._transaction():
            self._db.executemany(
                "UPDATE told SET value = ? WHERE sink = ? AND user_id = ?",
                [(DOUBTFUL, sink, user_id) for user_id in names],
            )
            self._db.executemany(
                "INSERT OR IGNORE INTO told (sink, user_id, name, value) VALUES (?, ?, ?, ?)",
                [(sink, user_id, name, DOUBTFUL) for user_id, each in names.items() for name in each],
            )

    def not_sent(self, run_id: str, sink: str, user_ids: Iterable[str]) -> None:
        """These were not sent after all: they are next again."""
        with self._transaction():
            self._db.executemany(
                "DELETE FROM sent WHERE run_id = ? AND sink = ? AND user_id = ?",
                [(run_id, sink, user_id) for user_id in user_ids],
            )

    def unknown(self, run_id: str, sink: str, user_ids: Iterable[str], reason: str) -> None:
        """Nobody can tell whether these arrived."""
        with self._transaction():
            self._mark(run_id, sink, "unknown", dict.fromkeys(user_ids, reason))

    def interrupted(self, run_id: str, sink: str, state: str = "sending") -> list[Push]:
        """What was being sent when something died."""
        query = (
            "SELECT s.user_id, d.payload FROM sent AS s JOIN delivery AS d USING (run_id, user_id) "
            "WHERE s.run_id = ? AND s.sink = ? AND s.state = ?"
        )
        return [_unpacked(*row) for row in self._rows(query, run_id, sink, state)]

    def abandoned(self, sink: str) -> dict[str, list[Push]]:
        """Return what was being sent when something died, of runs that were discarded since, by run."""
        query = (
            "SELECT s.run_id, s.user_id, d.payload FROM sent AS s JOIN delivery AS d USING (run_id, user_id) "
            "JOIN run USING (run_id) WHERE s.sink = ? AND s.state = 'sending' AND run.is_discarded"
        )
        found: dict[str, list[Push]] = {}
        for run_id, user_id, payload in self._rows(query, sink):
            found.setdefault(run_id, []).append(_unpacked(user_id, payload))
        return found

    def told(self, sink: str, user_ids: Sequence[str]) -> dict[str, dict[str, str | bytes | None]]:
        """Return what the sink knows of users, by name; DOUBTFUL where nobody can tell."""
        found: dict[str, dict[str, str | bytes | None]] = {user_id: {} for user_id in user_ids}
        query = f"SELECT user_id, name, value FROM told WHERE sink = ? AND user_id IN ({_marks(user_ids)})"  # noqa: S608
        for user_id, name, value in self._rows(query, sink, *user_ids):
            found[user_id][name] = value
        return found

    def erase(self, run_id: str, user_ids: Iterable[str], reason: str) -> None:
        """Users who asked to be forgotten: nothing of them stays but that this run skipped them."""
        with self._transaction():
            for user_id in user_ids:
                self._forget(user_id)
                self._db.execute(
                    "INSERT INTO delivery (run_id, user_id, state, reason) VALUES (?, ?, 'skipped', ?)",
                    (run_id, user_id, reason),
                )

    def forget(self, until_ms: Mapping[str, float], position: int | None = None) -> None:
        """Remove users who asked for it from the runs that began up to a time: user id → that time in ms. `position`: the last
        one's in the list of forgotten users, if known."""
        with self._transaction():
            for user_id, their_ms in until_ms.items():
                for remove in _FORGET_UNTIL:
                    self._db.execute(remove, {"user": user_id, "until": their_ms})
            if position is not None:
                self._db.execute("DELETE FROM forgotten")
                self._db.execute("INSERT INTO forgotten VALUES (?)", (position,))

    @property
    def forgotten_until(self) -> int:
        """Position in the list of forgotten users up to which they are forgotten here, 0 at first."""
        rows = self._rows("SELECT until FROM forgotten")
        return int(rows[0][0]) if rows else 0

    def rows_of(self, user_id: str) -> dict[str, int]:
        """Return how many rows of each table are a user's; tables without one are left out."""
        counts = {table: self._rows(f"SELECT COUNT(*) FROM {table} WHERE user_id = ?", user_id) for table in _OF_USERS}  # noqa: S608
        return {table: rows[0][0] for table, rows in counts.items() if rows[0][0]}

    def _forget(self, user_id: str) -> None:
        for table in _OF_USERS:
            self._db.execute(f"DELETE FROM {table} WHERE user_id = ?", (user_id,))  # noqa: S608 - our own names

    # Looking

    def counts(self, run_id: str) -> dict[str, dict[str, int]]:
        """How many users are in which state: of the run under "run", of each sink under its name."""
        found: dict[str, dict[str, int]] = {"run": {}}
        query = "SELECT state, reason, COUNT(*) FROM delivery WHERE run_id = ? GROUP BY state, reason"
        for state, reason, count in self._rows(query, run_id):
            found["run"][f"{state}: {reason}" if reason else state] = count
        query = "SELECT sink, state, COUNT(*) FROM sent WHERE run_id = ? GROUP BY sink, state"
        for sink, state, count in self._rows(query, run_id):
            found.setdefault(sink, {})[state] = count
        return found

    def problems(self, run_id: str, limit: int) -> list[tuple[str, str, str, str]]:
        """Sink, user, state and reason of what did not arrive, or may not have."""
        query = (
            "SELECT sink, user_id, state, reason FROM sent WHERE run_id = ? AND state IN ('failed', 'unknown') "
            "ORDER BY sink, user_id LIMIT ?"
        )
        return self._rows(query, run_id, limit)

    def _mark(self, run_id: str, sink: str, state: str, reasons: Mapping[str, str]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO sent (run_id, sink, user_id, state, reason) VALUES (?, ?, ?, ?, ?)",
            [(run_id, sink, user_id, state, reason) for user_id, reason in reasons.items()],
        )

    def _rows(self, query: str, *parameters: str | int) -> list[Any]:
        return self._db.execute(query, parameters).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _marks(user_ids: Sequence[str]) -> str:
    """Return a placeholder for each id. SQLite takes 32,766, a batch has some hundred. An id is bound as it is: SQLite's JSON
    functions cut a text at its first NUL."""
    return ", ".join("?" * len(user_ids))


def _packed(push: Push) -> str:
    return json.dumps([push.release_id, push.cold_start, push.items], separators=(",", ":"))


def _unpacked(user_id: str, payload: str) -> Push:
    release_id, cold_start, items = json.loads(payload)
    return Push(user_id, tuple(PushedItem(*item) for item in items), release_id, cold_start)

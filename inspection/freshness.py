"""How fresh what the page shows is: from an event until it is seen here."""

from __future__ import annotations

from dataclasses import dataclass

from inspection.words import age

REPLAYED_MS = 10 * 60_000  # an event that arrives later than that after it happened was not sent when it happened


@dataclass(frozen=True)
class Freshness:
    """`version` is the stored history's, `newest_ms` when its newest event happened, `seen_ms` when the page first saw this
    version, `arrived`: whether it came while the page looked."""

    version: int
    newest_ms: int
    seen_ms: int
    arrived: bool

    def after(self, version: int, newest_ms: int, now_ms: int) -> Freshness:
        """What is known once a look has found this version: the same, unless it is another one."""
        if version == self.version:
            return self
        return Freshness(version, newest_ms, now_ms, arrived=True)

    def sentence(self, now_ms: int) -> str:
        """For people."""
        if not self.version:
            return "nothing stored"
        newest = f"newest event {age(max(now_ms - self.newest_ms, 0))} ago"
        parts = [f"history version {self.version}", newest if self.newest_ms else "no events"]
        if not self.arrived:
            parts.append("watching, nothing new yet")
        elif 0 <= self.seen_ms - self.newest_ms <= REPLAYED_MS:
            parts.append(f"seen here {(self.seen_ms - self.newest_ms) / 1000:.2f} s after it happened")
        else:
            parts.append(f"changed {age(now_ms - self.seen_ms)} ago by events with an older or later time of their own")
        return " · ".join(parts)

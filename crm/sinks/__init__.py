"""Where lists go."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from crm.state import Push, Run


class UncertainError(Exception):
    """Raised when a sink died, or the connection to it, before it answered for every user. `arrived` and `failed` are the users
    whose outcome is known; the others may have arrived or not."""

    def __init__(
        self, message: str, arrived: Collection[str] = (), failed: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        super().__init__(message)
        self.arrived, self.failed = frozenset(arrived), failed


class BadBatchError(Exception):
    """Raised when a sink took nothing of a batch, because something of it is bad, and does not answer what."""


@dataclass(frozen=True)
class Sent:
    """What became of a batch: who was refused and why; what the sink knows of the others now, by name."""

    failed: Mapping[str, str] = field(default_factory=dict)
    told: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)


class Sink(Protocol):
    """Takes lists in batches."""

    name: str
    batch: int  # users at a time, at most
    is_repeatable: bool  # whether sending again changes nothing

    def check(self) -> None:
        """Whether it would take anything; nothing is sent. Raises InvalidInputError for what a user must mend, else
        UnavailableError."""

    def send(self, run: Run, pushes: Sequence[Push]) -> Sent:
        """Send a batch in one call. Raises UncertainError, or BadBatchError for a batch of several users; a BaguniError means
        that nothing of it was taken. After any other error, it may have been."""

    def names(self, push: Push) -> Collection[str]:
        """Return the names under which a push tells the sink something that `told` remembers."""

    def arrived(self, run: Run, pushes: Sequence[Push]) -> set[str] | None:
        """Of pushes that were being sent when something died, the users whose arrived; None if nobody can tell."""

    def preview(self, run: Run, pushes: Sequence[Push]) -> list[Any]:
        """What `send` would send, as JSON."""

    def close(self) -> None:
        """Close connections."""

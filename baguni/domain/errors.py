"""The exceptions that users of baguni meet.

BaguniError
├── InvalidInputError      what the caller gave is wrong; the message names the value and what was expected
├── NotFoundError          what the caller named does not exist
├── ReleaseMismatchError   two parts do not belong to one release, or a part is not what its manifest says
├── SchemaBreakError       too much of what streams in is malformed
├── EngineError            a model cannot be compiled, or cannot run on this device
├── RefusedError           a server refuses what it was given; asking again changes nothing
└── UnavailableError       a server that is needed did not answer
"""

from __future__ import annotations


class BaguniError(Exception):
    """Base of every error that is reported to a user without a traceback."""


class InvalidInputError(BaguniError):
    """A value is wrong. `field` names where it stands, in the caller's terms."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class NotFoundError(BaguniError):
    """A named thing does not exist."""


class ReleaseMismatchError(BaguniError):
    """Parts of two releases, or a part that its manifest does not describe."""


class SchemaBreakError(BaguniError):
    """Most of a topic's last records are malformed: it is not the records that are wrong."""


class EngineError(BaguniError):
    """A compiler refuses a model, is not installed, or built it for another device."""


class RefusedError(BaguniError):
    """A server answered that it does not take what it was given: the record or the request is at fault, not the server. `part`
    names it, as in UnavailableError."""

    def __init__(self, part: str, message: str) -> None:
        super().__init__(f"{part} refuses it: {message}")
        self.part = part


class UnavailableError(BaguniError):
    """A server did not answer, or not in time. `part` names it: "triton", "milvus", "redis", "kafka",
    or the URL of a release store. `is_repeated`: another caller got the error of the same call, or this one was never sent, so
    that it is no further sign of an outage."""

    def __init__(self, part: str, message: str, is_repeated: bool = False) -> None:
        super().__init__(f"{part} is unavailable: {message}")
        self.part, self.message, self.is_repeated = part, message, is_repeated

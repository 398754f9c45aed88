"""Outcomes are words: a body returns its result, or raises one of these. Anything else retries by policy."""

from __future__ import annotations

from tasks.engine import documents
from tasks.engine.board import Reason
from tasks.registry import LONGEST_WAIT_SECONDS


class Outcome(Exception):
    """How an attempt ended, other than by a result or a fault."""


class Cancel(Outcome):
    """End the run as CANCELLED."""

    def __init__(self, reason: str = "cancelled by the task") -> None:
        super().__init__(reason)
        self.reason = reason


class Snooze(Outcome):
    """Come back later without using up an attempt; what the session holds is committed.

    Args:
        seconds: how long to wait, 0 seconds to 366 days.

    Raises:
        Fail: nobody can wait so long.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"snoozed for {seconds} s")
        self.seconds = _waitable(seconds)


class Busy(Outcome):
    """What the attempt needs is held by another: come back later; the attempt does not count, its session is dropped.

    Args:
        seconds: how long to wait, 0 seconds to 366 days.
        holder: what holds it, for people.

    Raises:
        Fail: nobody can wait so long.
    """

    def __init__(self, seconds: float, holder: str) -> None:
        super().__init__(holder)
        self.seconds = _waitable(seconds)


class RetryLater(Outcome):
    """The attempt failed and knows when to try again, as after a provider's Retry-After.

    Args:
        after_seconds: how long to wait, 0 seconds to 366 days.
        cause: what went wrong, for people.

    Raises:
        Fail: nobody can wait so long.
    """

    def __init__(self, after_seconds: float, cause: str = "asked to be tried again") -> None:
        super().__init__(cause)
        self.after_seconds = _waitable(after_seconds)


class Fail(Outcome):
    """The run can't succeed: no further attempt."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class WaitFor(Outcome):
    """Hold no slot until the event is delivered; what the session holds is committed.

    Args:
        event: the event's name within the tenant, 1 to 255 characters.

    Raises:
        Fail: that is no name of an event.
    """

    def __init__(self, event: str) -> None:
        super().__init__(f"waiting for {event}")
        if wrong := documents.name_issue(event):
            raise Fail(f"An event's name {wrong}.")
        self.event = event


class TimeLimitExceeded(Exception):
    """What an attempt ends with that took longer than it may: the name that a retry policy has for it."""


class Interrupted(BaseException):
    """Raised inside a body when its attempt must stop: cancelled, out of time, or replaced.

    Not an Exception, so that a body's own `except Exception` does not swallow it.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class Fenced(Exception):
    """The attempt has been replaced or its lease has expired: whatever it wrote is rolled back."""


def _waitable(seconds: float) -> float:
    """Seconds that a run can wait. Trying again would not make them better, so the run fails."""
    if not isinstance(seconds, int | float) or not 0 <= seconds <= LONGEST_WAIT_SECONDS:
        raise Fail(f"A run can wait 0 to {LONGEST_WAIT_SECONDS:.0f} seconds (366 days), not {seconds!r}.")
    return seconds

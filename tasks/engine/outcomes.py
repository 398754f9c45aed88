"""Outcomes are words: a body returns its result, or raises one of these. Anything else retries by policy."""

from __future__ import annotations


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
        seconds: how long to wait.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"snoozed for {seconds} s")
        self.seconds = seconds


class Busy(Outcome):
    """What the attempt needs is held by another: come back later; the attempt does not count, its session is dropped.

    Args:
        seconds: how long to wait.
        holder: what holds it, for people.
    """

    def __init__(self, seconds: float, holder: str) -> None:
        super().__init__(holder)
        self.seconds = seconds


class RetryLater(Outcome):
    """The attempt failed and knows when to try again, as after a provider's Retry-After.

    Args:
        after_seconds: how long to wait.
        cause: what went wrong, for people.
    """

    def __init__(self, after_seconds: float, cause: str = "asked to be tried again") -> None:
        super().__init__(cause)
        self.after_seconds = after_seconds


class Fail(Outcome):
    """The run can't succeed: no further attempt."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class WaitFor(Outcome):
    """Hold no slot until the event is delivered; what the session holds is committed.

    Args:
        event: the event's name within the tenant.
    """

    def __init__(self, event: str) -> None:
        super().__init__(f"waiting for {event}")
        self.event = event


class Interrupted(BaseException):
    """Raised inside a body when its attempt must stop: cancelled, out of time, or replaced.

    Not an Exception, so that a body's own `except Exception` does not swallow it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Fenced(Exception):
    """The attempt has been replaced or its lease has expired: whatever it wrote is rolled back."""

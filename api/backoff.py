"""How often something may be tried: a wait that grows with each failure."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from tenants.errors import RateLimited

_LONGEST_SECONDS = 60.0
_FORGET_SECONDS = 15 * 60.0
_REMEMBERED = 50_000


@dataclass(slots=True)
class _Failures:
    count: int
    last: float


class BackOff:
    """After some failures in a row, each further attempt waits twice as long as the one before, at most a minute.

    Never a lock: once the wait is over the right password works. A quarter of an hour without a failure forgets all.

    Args:
        free: how many failures cost nothing.
    """

    def __init__(self, free: int) -> None:
        self._free = free
        self._failures: OrderedDict[Hashable, _Failures] = OrderedDict()

    def check(self, name: Hashable) -> None:
        """
        Raises:
            RateLimited: who goes by this name has to wait.
        """
        wait = self._wait(name)
        if wait > 0:
            raise RateLimited("Too many attempts: wait a moment.", retry_after_seconds=wait)

    def fail(self, name: Hashable) -> None:
        """Note a failure."""
        now = time.monotonic()
        known = self._failures.pop(name, None)
        count = 1 if known is None or now - known.last > _FORGET_SECONDS else known.count + 1
        self._failures[name] = _Failures(count, now)
        while len(self._failures) > _REMEMBERED:
            self._failures.popitem(last=False)

    def undo(self, name: Hashable) -> None:
        """Take back a failure that was none."""
        known = self._failures.get(name)
        if known is not None:
            known.count -= 1

    def forgive(self, name: Hashable) -> None:
        """Forget the failures."""
        self._failures.pop(name, None)

    def _wait(self, name: Hashable) -> float:
        known = self._failures.get(name)
        if known is None or known.count < self._free:
            return 0.0
        pause = min(_LONGEST_SECONDS, 2.0 ** min(known.count - self._free, 10))
        return known.last + pause - time.monotonic()

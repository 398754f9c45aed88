"""Messages that were refused: counted at once in memory, noted in the database by the lease keeper's next round."""

from __future__ import annotations

import threading
from collections import Counter, deque

from tasks.engine.ledger import Ledger
from tenants import ids

_KEPT_IN_MEMORY = 100
_REFUSE = "SELECT refuse_messages(%s, %s, %s, %s::uuid[], %s, %s, %s)"


def count_stale(ledger: Ledger, worker: str) -> None:
    """A rightly signed message came too late: counted, and nothing else is kept of it."""
    ledger.call(_REFUSE, ["stale"], [1], worker, [], [], [], [])


class Refusals:
    """What one worker process has refused since its last report."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._latest: deque[tuple[str, str, str]] = deque(maxlen=_KEPT_IN_MEMORY)

    def note(self, reason: str, queue: str, digest: str) -> None:
        """A message was refused."""
        with self._lock:
            self._counts[reason] += 1
            self._latest.append((reason, queue, digest))

    def report(self, ledger: Ledger, worker: str) -> None:
        """Write what was noted since the last report: the latest messages, and the counts of all."""
        with self._lock:
            counts, latest = self._counts, list(self._latest)
            self._counts = Counter()
            self._latest.clear()
        if not counts:
            return
        try:
            ledger.call(
                _REFUSE,
                list(counts),
                list(counts.values()),
                worker,
                [ids.new() for _ in latest],
                [reason for reason, _, _ in latest],
                [queue for _, queue, _ in latest],
                [digest for _, _, digest in latest],
            )
        except Exception:
            with self._lock:
                self._counts.update(counts)
            raise

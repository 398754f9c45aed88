"""What tenants' limits let through: caps on what runs at once, and rates. Pure: no I/O, the time is given.

A rate is kept by the generic cell rate algorithm: a theoretical arrival time (TAT) for each, moved on by one interval
at every start; a start conforms once now ≥ TAT − (burst − 1) × interval.

Source: ITU-T I.371, Annex A, in the virtual scheduling form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from tasks.engine.fairness import Candidate, Heap, Line

EACH = "*"
"""As a limit's concurrency key: each key for itself."""


class LimitKind(StrEnum):
    """What a limit holds down."""

    RATE = "RATE"
    CONCURRENCY = "CONCURRENCY"
    BACKLOG = "BACKLOG"
    WEIGHT = "WEIGHT"


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a tenant. It holds for what matches all that it names.

    Args:
        amount: starts per `per_seconds` for a rate; how many at once for a cap; a share for a weight.
        per_seconds: the rate's period in seconds.
        burst: how many starts of a rate may come at once, one at least.
        task: this task alone.
        queue: this queue alone.
        key: runs of this concurrency key alone; `EACH` for each key by itself.
    """

    id: UUID
    tenant: UUID
    name: str
    kind: LimitKind
    amount: float
    per_seconds: float = 1.0
    burst: float = 1.0
    task: str | None = None
    queue: str | None = None
    key: str | None = None

    @property
    def interval(self) -> float:
        """Seconds between two starts of a rate that is used to the full."""
        return self.per_seconds / self.amount

    def concerns(self, line: Line) -> bool:
        """Whether the line's runs count under it."""
        return (
            self.tenant == line.tenant
            and self.task in (None, line.task)
            and self.queue in (None, line.queue)
            and (self.key in (None, line.key) or (self.key == EACH and line.key is not None))
        )


Bucket = tuple[UUID, str | None]
"""A limit, and the key it is kept for where it is kept for each."""


class Limits:
    """The limits of all tenants, and how far each is used. A `fairness.Gate`.

    `now`, seconds of any clock that goes on through restarts, is to be set before it is asked.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._limits: dict[UUID, dict[UUID, Limit]] = {}
        self._used: Counter[Bucket] = Counter()
        self._arrivals: dict[UUID, dict[str | None, float]] = {}
        self._opening: Heap[tuple[UUID, str | None]] = Heap()

    def put(self, limit: Limit) -> None:
        """Add a limit, or change it. A rate that has become faster waits for no longer than it itself could ask for."""
        self._limits.setdefault(limit.tenant, {})[limit.id] = limit
        arrivals = self._arrivals.get(limit.id, {})
        for key, arrival in arrivals.items():
            arrivals[key] = min(arrival, self.now + limit.burst * limit.interval)

    def remove(self, tenant: UUID, limit: UUID) -> None:
        """Take a limit away."""
        mine = self._limits.get(tenant, {})
        mine.pop(limit, None)
        self._arrivals.pop(limit, None)
        if not mine:
            self._limits.pop(tenant, None)

    def task(self, tenant: UUID, queue: str, task: str) -> bool:
        """Whether the limits that name no key let one more run through."""
        line = Line(tenant, queue, task, None)
        return all(self._open(limit, line) for limit in self._of(tenant) if limit.key is None and limit.concerns(line))

    def key(self, line: Line) -> bool:
        """Whether the limits that name its key, or each, let one more run through."""
        return all(
            self._open(limit, line) for limit in self._of(line.tenant) if limit.key is not None and limit.concerns(line)
        )

    def take(self, candidate: Candidate) -> None:
        """The run starts: it counts under its caps until it is given back, and moves its rates on."""
        self.occupy(candidate.line)
        for limit in self._concerning(candidate.line, LimitKind.RATE):
            _, key = _bucket(limit, candidate.line)
            arrivals = self._arrivals.setdefault(limit.id, {})
            arrivals[key] = max(self.now, arrivals.get(key, 0.0)) + limit.interval

    def untake(self, candidate: Candidate) -> None:
        """It has not started after all."""
        self.vacate(candidate.line)
        for limit in self._concerning(candidate.line, LimitKind.RATE):
            _, key = _bucket(limit, candidate.line)
            self._arrivals[limit.id][key] -= limit.interval

    def occupy(self, line: Line) -> None:
        """One more run of the line is released or running."""
        for limit in self._concerning(line, LimitKind.CONCURRENCY):
            self._used[_bucket(limit, line)] += 1

    def vacate(self, line: Line) -> None:
        """One fewer is."""
        for limit in self._concerning(line, LimitKind.CONCURRENCY):
            self._used[_bucket(limit, line)] -= 1

    def recount(self, lines: Iterable[Line]) -> None:
        """Count anew what is released or running: one line for each run."""
        self._used.clear()
        for line in lines:
            self.occupy(line)

    def arrivals(self, lines: Iterable[Line]) -> dict[Bucket, float]:
        """The state of the rates that these lines count under, to be saved with their release."""
        buckets = {_bucket(limit, line) for line in lines for limit in self._concerning(line, LimitKind.RATE)}
        return {(limit, key): self._arrivals[limit][key] for limit, key in buckets}

    def restore(self, arrivals: Mapping[Bucket, float]) -> None:
        """Take up the state of rates as it was saved."""
        for (limit, key), arrival in arrivals.items():
            self._arrivals.setdefault(limit, {})[key] = arrival

    def opened(self) -> Iterator[tuple[UUID, str | None]]:
        """The tenants, and keys, whose rates have held something back and let it through by now."""
        return self._opening.until(self.now)

    def next_opening(self) -> float | None:
        """When the next rate that holds something back opens; None where none does."""
        first = self._opening.first()
        return None if first is None else float(first[0])

    def _of(self, tenant: UUID) -> Iterable[Limit]:
        return self._limits[tenant].values() if tenant in self._limits else ()

    def _concerning(self, line: Line, kind: LimitKind) -> list[Limit]:
        return [limit for limit in self._of(line.tenant) if limit.kind is kind and limit.concerns(line)]

    def _open(self, limit: Limit, line: Line) -> bool:
        bucket = _bucket(limit, line)
        if limit.kind is LimitKind.CONCURRENCY:
            return self._used[bucket] < limit.amount
        if limit.kind is not LimitKind.RATE:
            return True
        opens = self._arrivals.get(limit.id, {}).get(bucket[1], 0.0) - (limit.burst - 1) * limit.interval
        if opens > self.now:
            self._opening.put((line.tenant, line.key), opens)
        return opens <= self.now


def _bucket(limit: Limit, line: Line) -> Bucket:
    return (limit.id, line.key if limit.key == EACH else None)

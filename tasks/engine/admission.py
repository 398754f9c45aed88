"""What may start now: tenants' caps on what runs at once, their rates, and their pauses. Pure: the time is given.

A rate is kept by the generic cell rate algorithm: a theoretical arrival time (TAT) for each, moved on by one interval
at every start; a start conforms once now ≥ TAT − (burst − 1) × interval.

Source: ITU-T I.371, Annex A, in the virtual scheduling form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar
from uuid import UUID

from tasks.engine.heap import Heap
from tasks.engine.lines import Candidate, Line

T = TypeVar("T")
_FEW = 1000
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

    def opens(self, arrival: float) -> float:
        """When a rate of this theoretical arrival time lets one more start."""
        return arrival - (self.burst - 1) * self.interval

    def concerns(self, line: Line) -> bool:
        """Whether the runs of this line of its tenant count under it."""
        return (
            self.task in (None, line.task)
            and self.queue in (None, line.queue)
            and (self.key in (None, line.key) or (self.key == EACH and line.key is not None))
        )


Bucket = tuple[UUID, UUID, str | None]
"""A tenant, a limit of its, and the key that it is kept for where it is kept for each."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a tenant goes by.

    Args:
        limits: its rates, caps and weights.
        paused: the tasks of which nothing may start.
        stopped: nothing of the tenant may start.
    """

    limits: Collection[Limit] = ()
    paused: Collection[str] = ()
    stopped: bool = False


class Admission:
    """The terms of all tenants, and how far their limits are used. A `fairness.Gate`.

    `now`, seconds of any clock that goes on through restarts, is to be set before it is asked.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.weights: dict[UUID, float] = {}
        """Tenant → its share beside others', where it is not 1."""
        self._limits: dict[UUID, dict[UUID, Limit]] = {}
        self._paused: dict[UUID, frozenset[str]] = {}
        self._stopped: set[UUID] = set()
        self._used: Counter[Bucket] = Counter()
        self._arrivals: dict[UUID, dict[str | None, float]] = {}
        self._most: dict[UUID, int] = {}
        self._opening: Heap[tuple[UUID, str | None, UUID]] = Heap()
        self._unknown: dict[Bucket, str | None] = {}

    def agree(self, tenant: UUID, terms: Terms) -> None:
        """Put a tenant's terms in the place of those it had.

        A rate that has become faster waits for no longer than it itself could ask for. Caps that are new count from the
        next `recount` on.
        """
        before = self._limits.get(tenant, {})
        limits = {limit.id: limit for limit in terms.limits if limit.kind is not LimitKind.WEIGHT}
        _put_or_drop(self._limits, tenant, limits or None)
        for gone in before.keys() - limits.keys():
            self._arrivals.pop(gone, None)
            self._most.pop(gone, None)
        for limit in limits.values():
            if arrivals := self._arrivals.get(limit.id):
                latest = self._latest(limit)
                arrivals.update({key: min(arrival, latest) for key, arrival in arrivals.items()})
        weights = [limit.amount for limit in terms.limits if limit.kind is LimitKind.WEIGHT]
        _put_or_drop(self.weights, tenant, min(weights, default=None))
        _put_or_drop(self._paused, tenant, frozenset(terms.paused) or None)
        (self._stopped.add if terms.stopped else self._stopped.discard)(tenant)

    def task(self, tenant: UUID, queue: str, task: str) -> bool:
        """Whether the limits that name no key, and pauses, let one more run through."""
        if tenant in self._stopped or task in self._paused.get(tenant, ()):
            return False
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
            _, _, key = _bucket(limit, candidate.line)
            arrivals = self._arrivals.setdefault(limit.id, {})
            arrivals[key] = max(self.now, arrivals.get(key, 0.0)) + limit.interval
            if len(arrivals) > self._most.get(limit.id, _FEW):
                self._let_go(limit.id)

    def untake(self, candidate: Candidate) -> None:
        """It has not started after all."""
        self.vacate(candidate.line)
        for limit in self._concerning(candidate.line, LimitKind.RATE):
            _, _, key = _bucket(limit, candidate.line)
            arrivals = self._arrivals.setdefault(limit.id, {})
            arrivals[key] = arrivals.get(key, self.now) - limit.interval

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
        return {bucket: self._arrivals[bucket[1]].get(bucket[2], self.now) for bucket in buckets}

    @property
    def unknown(self) -> Mapping[Bucket, str | None]:
        """The rates that were asked for and of whose use nothing is known, each with the key that waits for it.

        They let nothing through until they are restored: of rates for each key there may be more than can be known.
        """
        return self._unknown

    def expect(self, line: Line) -> None:
        """A run of the line may start soon: what is not known of its rates counts as asked for."""
        for limit in self._concerning(line, LimitKind.RATE):
            bucket = _bucket(limit, line)
            if bucket[2] not in self._arrivals.get(limit.id, {}):
                self._unknown[bucket] = line.key

    def restore(self, arrivals: Mapping[Bucket, float]) -> None:
        """Take up the state of these rates as it was saved, perhaps when they were slower."""
        for bucket, arrival in arrivals.items():
            tenant, id_, key = bucket
            self._unknown.pop(bucket, None)
            if limit := self._limits.get(tenant, {}).get(id_):
                self._arrivals.setdefault(id_, {})[key] = min(arrival, self._latest(limit))

    def opened(self) -> Iterator[tuple[UUID, str | None]]:
        """The tenants, and keys, whose rates have held something back and let it through by now."""
        return ((tenant, key) for tenant, key, _ in self._opening.until(self.now))

    def next_opening(self) -> float | None:
        """When the next rate that holds something back opens; None where none does."""
        first = self._opening.first()
        return None if first is None else float(first[0])

    def _let_go(self, limit: UUID) -> None:
        """Forget the keys of a rate that are as if never used."""
        arrivals = {key: arrival for key, arrival in self._arrivals[limit].items() if arrival > self.now}
        self._arrivals[limit] = arrivals
        self._most[limit] = max(_FEW, 2 * len(arrivals))

    def _of(self, tenant: UUID) -> Iterable[Limit]:
        return self._limits[tenant].values() if tenant in self._limits else ()

    def _concerning(self, line: Line, kind: LimitKind) -> list[Limit]:
        return [limit for limit in self._of(line.tenant) if limit.kind is kind and limit.concerns(line)]

    def _latest(self, limit: Limit) -> float:
        """How far a rate can have been used by now."""
        return self.now + limit.burst * limit.interval

    def _open(self, limit: Limit, line: Line) -> bool:
        bucket = _bucket(limit, line)
        if limit.kind is LimitKind.CONCURRENCY:
            return self._used[bucket] < limit.amount
        arrival = self._arrivals.get(limit.id, {}).get(bucket[2])
        if arrival is None:
            self._unknown[bucket] = line.key
            return False
        opens = limit.opens(arrival)
        if opens > self.now:
            self._opening.put((line.tenant, line.key, limit.id), opens)
        return opens <= self.now


def _bucket(limit: Limit, line: Line) -> Bucket:
    return (line.tenant, limit.id, line.key if limit.key == EACH else None)


def _put_or_drop(known: dict[UUID, T], tenant: UUID, value: T | None) -> None:
    known.pop(tenant, None)
    if value is not None:
        known[tenant] = value

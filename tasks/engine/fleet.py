"""The workers there are, what is on its way to them or running, and what they can start now."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from tasks.engine.costs import Costs
from tasks.engine.ledger import Holding, Ledger
from tasks.engine.lines import Line
from tasks.engine.windows import Room, Window

_NARROWED = 0.5
"""What is left of the buffer where something was not claimed in time."""
_WIDENED = 0.04
"""What comes back of it in a second."""
_WORKERS = """
SELECT queues, slots, tasks FROM workers WHERE last_seen > clock_timestamp() - make_interval(secs => %s)
"""
_IN_FLIGHT = """
SELECT r.id, r.fence, r.tenant_id, r.queue, r.task, r.concurrency_key, ARRAY[r.queue], r.released_at
FROM runs r WHERE r.state = 'RELEASED'
UNION ALL
SELECT r.id, l.fence, r.tenant_id, r.queue, r.task, r.concurrency_key,
       coalesce(w.queues, '{}'), NULL
FROM run_leases l
JOIN runs r ON r.tenant_id = l.tenant_id AND r.id = l.run_id
LEFT JOIN workers w ON w.name = l.worker AND w.slots > 0
  AND w.last_seen > clock_timestamp() - make_interval(secs => %s)
ORDER BY released_at NULLS FIRST
"""
"""With the queues that it takes up a slot of: all its worker's, and none where that has no slots left to give."""


@dataclass(frozen=True, slots=True)
class Flight:
    """A run that has been released and has not ended.

    Args:
        expected: the worker-seconds it was charged with.
        queues: those that it takes up a slot of.
    """

    line: Line
    expected: float
    queues: Collection[str]


@dataclass(frozen=True, slots=True)
class Pool:
    """Queues that share workers, directly or through others: they share the window too."""

    window: Window
    queues: Mapping[str, Window]
    """Queue → the slots of the workers that consume it."""


class Fleet:
    """What the dispatcher knows of the workers: read at every sweep, kept in step by releases and bells in between.

    Args:
        buffer_seconds: how much work to release ahead for each slot.
        costs: what runs are expected to take.
    """

    def __init__(self, buffer_seconds: float, costs: Costs) -> None:
        self._buffer_seconds = buffer_seconds
        self._shares: dict[str, float] = {}
        """Queue → how much of the buffer is used, where that is not all of it."""
        self._read_at = time.monotonic()
        self._costs = costs
        self._flights: dict[Holding, Flight] = {}
        self._pools: list[Pool] = []
        self._windows: dict[str, tuple[Window, Window]] = {}
        """Queue → its pool's window, and its own."""
        self._known: list[tuple[frozenset[str], list[str] | None]] = []

    def read(self, ledger: Ledger, *, alive_seconds: float) -> tuple[list[Flight], dict[Holding, Flight]]:
        """Read the live workers, and what is released or running.

        Returns:
            What was not known, and what is no more.
        """
        rows = ledger.call(_WORKERS, alive_seconds)
        self._pools = _pooled([(frozenset(queues), slots) for queues, slots, _ in rows], self._buffer_seconds)
        self._windows = {name: (pool.window, own) for pool in self._pools for name, own in pool.queues.items()}
        self._known = [(frozenset(queues), tasks) for queues, slots, tasks in rows if slots]
        self._widen()
        before, self._flights = self._flights, {}
        new = []
        for run, fence, tenant, queue, task, key, queues, _ in ledger.call(_IN_FLIGHT, alive_seconds):
            known = before.pop((run, fence), None)
            line = known.line if known else Line(tenant, queue, task, key)
            flight = Flight(line, known.expected if known else self._costs.of(line), queues)
            self._add((run, fence), flight)
            if known is None:
                new.append(flight)
        return new, before

    def pools(self) -> list[Pool]:
        """The groups of queues that share workers."""
        return self._pools

    def knows(self, line: Line) -> bool:
        """Whether a worker that consumes the line's queue has code for its task."""
        return any(serves(queues, tasks, line.queue, line.task) for queues, tasks in self._known)

    def room(self, pool: Pool) -> Room:
        """What may be released to the pool now."""
        share = self._share(pool)
        return Room(pool.window.space(share), {name: own.space(share) for name, own in pool.queues.items()})

    def free(self) -> bool:
        """Whether anything could be released now."""
        return any(pool.window.space(self._share(pool)).open for pool in self._pools)

    def flights(self) -> list[Flight]:
        """What is released or running."""
        return list(self._flights.values())

    def released(self, run: UUID, fence: int, flight: Flight) -> None:
        """One more run is on its way."""
        self._add((run, fence), flight)

    def ended(self, run: UUID, fence: int) -> Flight | None:
        """A run has left its slot; None where it is not known, or has been told before."""
        flight = self._flights.pop((run, fence), None)
        if flight is not None:
            for window in self._windows_of(flight):
                window.drop((run, fence))
        return flight

    def narrow(self, queues: Iterable[str]) -> None:
        """Runs of these queues were not claimed in time: less is released ahead, as the way to workers may be slow."""
        for queue in queues:
            self._shares[queue] = self._shares.get(queue, 1.0) * _NARROWED

    def _widen(self) -> None:
        now = time.monotonic()
        wider = {queue: share + _WIDENED * (now - self._read_at) for queue, share in self._shares.items()}
        self._shares = {queue: share for queue, share in wider.items() if share < 1.0}
        self._read_at = now

    def _share(self, pool: Pool) -> float:
        return min((self._shares.get(queue, 1.0) for queue in pool.queues), default=1.0)

    def _add(self, holding: Holding, flight: Flight) -> None:
        self._flights[holding] = flight
        for window in self._windows_of(flight):
            window.add(holding, flight.expected)

    def _windows_of(self, flight: Flight) -> list[Window]:
        """Those in which it takes up a slot: one of each of its queues, and their pool's."""
        found = [self._windows[queue] for queue in flight.queues if queue in self._windows]
        return [*(own for _, own in found), *dict.fromkeys(whole for whole, _ in found)]


def serves(queues: Collection[str], tasks: Collection[str] | None, queue: str, task: str) -> bool:
    """Whether a worker of these queues and tasks, of all where None, runs this task from this queue."""
    return queue in queues and (tasks is None or task in tasks)


def _pooled(workers: Iterable[tuple[frozenset[str], int]], buffer_seconds: float) -> list[Pool]:
    """Workers joined to pools: two that share a queue are in one."""
    groups: list[tuple[set[str], list[tuple[frozenset[str], int]]]] = []
    for queues_, slots in workers:
        touching = [group for group in groups if group[0] & queues_]
        merged = (set(queues_).union(*(group[0] for group in touching)), [(queues_, slots)])
        for group in touching:
            merged[1].extend(group[1])
            groups.remove(group)
        groups.append(merged)
    # In an order of their own: the rows of workers change their places with every report.
    return [_pool(members, buffer_seconds) for _, members in sorted(groups, key=lambda group: sorted(group[0]))]


def _pool(members: list[tuple[frozenset[str], int]], buffer_seconds: float) -> Pool:
    of_queues: Counter[str] = Counter()
    for queues_, slots in members:
        of_queues.update(dict.fromkeys(queues_, slots))
    queues = {name: Window(slots, buffer_seconds) for name, slots in of_queues.items()}
    return Pool(Window(sum(slots for _, slots in members), buffer_seconds), queues)

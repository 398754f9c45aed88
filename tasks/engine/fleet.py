"""The workers there are, what is on its way to them or running, and what they can start now."""

from __future__ import annotations

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
_WIDENED = 0.02
"""What comes back of it with every reading."""
_WORKERS = """
SELECT queues, slots, tasks FROM workers WHERE last_seen > clock_timestamp() - make_interval(secs => %s)
"""
_IN_FLIGHT = """
SELECT r.id, r.fence, r.tenant_id, r.queue, r.task, r.concurrency_key, true, r.released_at
FROM runs r WHERE r.state = 'RELEASED'
UNION ALL
SELECT r.id, l.fence, r.tenant_id, r.queue, r.task, r.concurrency_key,
       coalesce(w.slots > 0 AND w.last_seen > clock_timestamp() - make_interval(secs => %s), false), NULL
FROM run_leases l
JOIN runs r ON r.tenant_id = l.tenant_id AND r.id = l.run_id
LEFT JOIN workers w ON w.name = l.worker
ORDER BY released_at NULLS FIRST
"""
"""With whether it takes up one of the slots there are: not what a worker still holds that has none left to give."""


@dataclass(frozen=True, slots=True)
class Flight:
    """A run that has been released and has not ended.

    Args:
        expected: the worker-seconds it was charged with.
        takes_slot: whether it takes up a slot.
    """

    line: Line
    expected: float
    takes_slot: bool = True


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
        self._share = 1.0
        self._costs = costs
        self._flights: dict[Holding, Flight] = {}
        self._pools: list[Pool] = []
        self._windows: dict[str, tuple[Window, Window]] = {}
        """Queue → its pool's window, and its own."""
        self._known: list[tuple[frozenset[str], list[str] | None]] = []

    def read(self, ledger: Ledger, *, alive_seconds: float) -> tuple[list[Flight], list[Flight]]:
        """Read the live workers, and what is released or running.

        Returns:
            What was not known, and what is no more.
        """
        rows = ledger.call(_WORKERS, alive_seconds)
        self._pools = _pooled([(frozenset(queues), slots) for queues, slots, _ in rows], self._buffer_seconds)
        self._windows = {name: (pool.window, own) for pool in self._pools for name, own in pool.queues.items()}
        self._known = [(frozenset(queues), tasks) for queues, slots, tasks in rows if slots]
        self._share = min(1.0, self._share + _WIDENED)
        before, self._flights = self._flights, {}
        new = []
        for run, fence, tenant, queue, task, key, takes_slot, _ in ledger.call(_IN_FLIGHT, alive_seconds):
            known = before.pop((run, fence), None)
            line = known.line if known else Line(tenant, queue, task, key)
            flight = Flight(line, known.expected if known else self._costs.of(line), takes_slot)
            self.released(run, fence, flight)
            if known is None:
                new.append(flight)
        return new, list(before.values())

    def pools(self) -> list[Pool]:
        """The groups of queues that share workers."""
        return self._pools

    def knows(self, line: Line) -> bool:
        """Whether a worker that consumes the line's queue has code for its task."""
        return any(serves(queues, tasks, line.queue, line.task) for queues, tasks in self._known)

    def room(self, pool: Pool) -> Room:
        """What may be released to the pool now."""
        queues = {name: own.space(self._share) for name, own in pool.queues.items()}
        return Room(pool.window.space(self._share), queues)

    def free(self) -> bool:
        """Whether anything could be released now."""
        return any(pool.window.space(self._share).open for pool in self._pools)

    def flights(self) -> list[Flight]:
        """What is released or running."""
        return list(self._flights.values())

    def released(self, run: UUID, fence: int, flight: Flight) -> None:
        """One more run is on its way."""
        self._flights[(run, fence)] = flight
        if flight.takes_slot:
            for window in self._windows.get(flight.line.queue, ()):
                window.add((run, fence), flight.expected)

    def ended(self, run: UUID, fence: int) -> Flight | None:
        """A run has left its slot; None where it is not known, or has been told before."""
        flight = self._flights.pop((run, fence), None)
        if flight is not None:
            for window in self._windows.get(flight.line.queue, ()):
                window.drop((run, fence))
        return flight

    def narrow(self) -> None:
        """Something was not claimed in time: less is released ahead, as the way to the workers may be slow."""
        self._share *= _NARROWED


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
    return [_pool(members, buffer_seconds) for _, members in groups]


def _pool(members: list[tuple[frozenset[str], int]], buffer_seconds: float) -> Pool:
    of_queues: Counter[str] = Counter()
    for queues_, slots in members:
        of_queues.update(dict.fromkeys(queues_, slots))
    queues = {name: Window(slots, buffer_seconds) for name, slots in of_queues.items()}
    return Pool(Window(sum(slots for _, slots in members), buffer_seconds), queues)

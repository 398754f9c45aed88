"""The workers there are, what is on its way to them or running, and what they can start now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from uuid import UUID

from tasks.engine.costs import Costs
from tasks.engine.ledger import Holding, Ledger
from tasks.engine.lines import Line

_LARGEST_BUFFER = 64
"""The most runs released ahead for one slot."""
_WORKERS = """
SELECT queues, slots, tasks FROM workers WHERE last_seen > clock_timestamp() - make_interval(secs => %s)
"""
_IN_FLIGHT = """
SELECT r.id, r.fence, r.tenant_id, r.queue, r.task, r.concurrency_key, true
FROM runs r WHERE r.state = 'RELEASED'
UNION ALL
SELECT r.id, l.fence, r.tenant_id, r.queue, r.task, r.concurrency_key,
       coalesce(w.slots > 0 AND w.last_seen > clock_timestamp() - make_interval(secs => %s), false)
FROM run_leases l
JOIN runs r ON r.tenant_id = l.tenant_id AND r.id = l.run_id
LEFT JOIN workers w ON w.name = l.worker
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


@dataclass(slots=True)
class Pool:
    """Queues that share workers, directly or through others: they share the window too."""

    fleet: Fleet
    slots: int = 0
    queues: dict[str, int] = field(default_factory=dict)
    """Queue → slots of the workers that consume it."""

    def room(self) -> int:
        """How many more runs may be released to the pool now."""
        ahead = max((self.fleet.ahead(queue) for queue in self.queues), default=0.0)
        return max(0, int(self.slots * (1 + ahead)) - sum(self.fleet.in_flight(queue) for queue in self.queues))

    def rooms(self) -> dict[str, int]:
        """How many more runs each queue may take."""
        return {
            queue: max(0, int(slots * (1 + self.fleet.ahead(queue))) - self.fleet.in_flight(queue))
            for queue, slots in self.queues.items()
        }


class Fleet:
    """What the dispatcher knows of the workers: read at every sweep, kept in step by releases and bells in between.

    Args:
        buffer_seconds: how much work to release ahead for each slot.
        costs: what runs are expected to take.
    """

    def __init__(self, buffer_seconds: float, costs: Costs) -> None:
        self._buffer_seconds = buffer_seconds
        self._costs = costs
        self._flights: dict[Holding, Flight] = {}
        self._counts: Counter[str] = Counter()
        self._pools: list[Pool] = []
        self._known: list[tuple[frozenset[str], list[str] | None]] = []

    def read(self, ledger: Ledger, *, alive_seconds: float) -> tuple[list[Flight], list[Flight]]:
        """Read the live workers, and what is released or running.

        Returns:
            What was not known, and what is no more.
        """
        rows = ledger.call(_WORKERS, alive_seconds)
        self._pools = _pooled(self, [(frozenset(queues), slots) for queues, slots, _ in rows])
        self._known = [(frozenset(queues), tasks) for queues, slots, tasks in rows if slots]
        found: dict[Holding, Flight] = {}
        for run, fence, tenant, queue, task, key, takes_slot in ledger.call(_IN_FLIGHT, alive_seconds):
            known = self._flights.get((run, fence))
            line = known.line if known else Line(tenant, queue, task, key)
            found[(run, fence)] = Flight(line, known.expected if known else self._costs.of(line), takes_slot)
        new = [flight for holding, flight in found.items() if holding not in self._flights]
        gone = [flight for holding, flight in self._flights.items() if holding not in found]
        self._flights = found
        self._counts = Counter(flight.line.queue for flight in found.values() if flight.takes_slot)
        return new, gone

    def pools(self) -> list[Pool]:
        """The groups of queues that share workers."""
        return self._pools

    def knows(self, line: Line) -> bool:
        """Whether a worker that consumes the line's queue has code for its task."""
        return any(serves(queues, tasks, line.queue, line.task) for queues, tasks in self._known)

    def free(self) -> bool:
        """Whether anything could be released now."""
        return any(pool.room() for pool in self._pools)

    def flights(self) -> list[Flight]:
        """What is released or running."""
        return list(self._flights.values())

    def in_flight(self, queue: str) -> int:
        """How many runs of the queue take up slots."""
        return self._counts[queue]

    def ahead(self, queue: str) -> float:
        """How many runs of the queue a slot is expected to start within the buffer's time."""
        cost = self._costs.of_queue(queue)
        return 0.0 if cost is None else min(_LARGEST_BUFFER, self._buffer_seconds / cost)

    def released(self, run: UUID, fence: int, flight: Flight) -> None:
        """One more run is on its way."""
        self._flights[(run, fence)] = flight
        self._counts[flight.line.queue] += 1

    def ended(self, run: UUID, fence: int) -> Flight | None:
        """A run has left its slot; None where it is not known, or has been told before."""
        flight = self._flights.pop((run, fence), None)
        if flight is not None and flight.takes_slot:
            self._counts[flight.line.queue] -= 1
        return flight


def serves(queues: Collection[str], tasks: Collection[str] | None, queue: str, task: str) -> bool:
    """Whether a worker of these queues and tasks, of all where None, runs this task from this queue."""
    return queue in queues and (tasks is None or task in tasks)


def _pooled(fleet: Fleet, workers: list[tuple[frozenset[str], int]]) -> list[Pool]:
    """Workers joined to pools: two that share a queue are in one."""
    groups: list[tuple[set[str], list[tuple[frozenset[str], int]]]] = []
    for queues_, slots in workers:
        touching = [group for group in groups if group[0] & queues_]
        merged = (set(queues_).union(*(group[0] for group in touching)), [(queues_, slots)])
        for group in touching:
            merged[1].extend(group[1])
            groups.remove(group)
        groups.append(merged)
    return [_pool(fleet, members) for _, members in groups]


def _pool(fleet: Fleet, members: list[tuple[frozenset[str], int]]) -> Pool:
    pool = Pool(fleet, slots=sum(slots for _, slots in members))
    for queues_, slots in members:
        for queue in queues_:
            pool.queues[queue] = pool.queues.get(queue, 0) + slots
    return pool

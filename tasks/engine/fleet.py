"""The workers there are, and what they can start now."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.engine.ledger import Ledger

_LARGEST_BUFFER = 64
"""The most runs released ahead for one slot."""
_MEMORY_OF_COST = 0.9

_IN_FLIGHT = """
SELECT queue, count(*) FROM (
  SELECT queue FROM runs WHERE state = 'RELEASED' UNION ALL
  SELECT l.queue FROM run_leases l JOIN workers w ON w.name = l.worker
  WHERE w.slots > 0 AND w.last_seen > clock_timestamp() - make_interval(secs => %s)
) AS flying GROUP BY queue
"""
"""What takes up the slots there are: not what a worker still holds that has none left to give."""


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
    """What the dispatcher knows of the workers: read at every sweep, kept in step by bells in between.

    Args:
        buffer_seconds: how much work to release ahead for each slot.
    """

    def __init__(self, buffer_seconds: float) -> None:
        self._buffer_seconds = buffer_seconds
        self._flying: dict[str, int] = {}
        self._costs: dict[str, float] = {}
        self._pools: list[Pool] = []

    def read(self, ledger: Ledger, *, alive_seconds: float) -> None:
        """Read the live workers, and what is released or running."""
        rows = ledger.call(
            "SELECT queues, slots FROM workers WHERE last_seen > clock_timestamp() - make_interval(secs => %s)",
            alive_seconds,
        )
        self._pools = _pooled(self, [(frozenset(queues), slots) for queues, slots in rows])
        self._flying = dict(ledger.call(_IN_FLIGHT, alive_seconds))

    def pools(self) -> list[Pool]:
        """The groups of queues that share workers."""
        return self._pools

    def free(self) -> bool:
        """Whether anything could be released now."""
        return any(pool.room() for pool in self._pools)

    def in_flight(self, queue: str) -> int:
        """How many runs of the queue are released or running."""
        return self._flying.get(queue, 0)

    def ahead(self, queue: str) -> float:
        """How many runs of the queue a slot is expected to start within the buffer's time."""
        cost = self._costs.get(queue)
        return 0.0 if cost is None else min(_LARGEST_BUFFER, self._buffer_seconds / max(cost, 1e-4))

    def released(self, queue: str) -> None:
        """One more run is on its way."""
        self._flying[queue] = self._flying.get(queue, 0) + 1

    def freed(self, queue: str, cost: float) -> None:
        """A run has left its slot after so many seconds; after none, if it was not begun."""
        self._flying[queue] = max(0, self._flying.get(queue, 0) - 1)
        if not cost:
            return
        before = self._costs.get(queue)
        self._costs[queue] = cost if before is None else _MEMORY_OF_COST * before + (1 - _MEMORY_OF_COST) * cost


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

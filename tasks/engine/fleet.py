"""The workers there are, what they can start now, and the figures of queues and workers for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tasks import registry
from tasks.engine.models import Run, RunLease, Worker
from tasks.engine.states import RunState

if TYPE_CHECKING:
    from tasks.engine.ledger import Ledger

_ALIVE_SECONDS = 10.0
_LARGEST_BUFFER = 64
"""The most runs released ahead for one slot."""
_MEMORY_OF_COST = 0.9

_IN_FLIGHT = """
SELECT queue, count(*) FROM (
  SELECT queue FROM runs WHERE state = 'RELEASED' UNION ALL SELECT queue FROM run_leases
) AS flying GROUP BY queue
"""


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
        self._flying = dict(ledger.call(_IN_FLIGHT))

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
        """A run has ended after so many seconds."""
        self._flying[queue] = max(0, self._flying.get(queue, 0) - 1)
        before = self._costs.get(queue)
        self._costs[queue] = cost if before is None else _MEMORY_OF_COST * before + (1 - _MEMORY_OF_COST) * cost


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """A queue as the tenant sees it."""

    name: str
    waiting: int
    released: int
    running: int
    oldest_wait_seconds: float | None
    workers: int


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """A worker process."""

    name: str
    queues: list[str]
    slots: int
    running: int
    memory_bytes: int | None
    started_at: datetime
    last_seen: datetime
    last_claim: datetime | None
    alive: bool


def queues(session: Session) -> list[QueueFigures]:
    """Every queue with the tenant's own figures."""
    now = session.scalar(select(func.clock_timestamp()))
    counted = {
        (queue, state): (number, oldest)
        for queue, state, number, oldest in session.execute(
            select(Run.queue, Run.state, func.count(), func.min(Run.available_at))
            .where(Run.state.in_([RunState.QUEUED, RunState.RELEASED, RunState.RUNNING]))
            .group_by(Run.queue, Run.state)
        )
    }
    alive = [worker for worker in workers(session) if worker.alive]
    return [
        QueueFigures(
            name=name,
            waiting=counted.get((name, RunState.QUEUED), (0, None))[0],
            released=counted.get((name, RunState.RELEASED), (0, None))[0],
            running=counted.get((name, RunState.RUNNING), (0, None))[0],
            oldest_wait_seconds=(now - oldest).total_seconds()
            if now and (oldest := counted.get((name, RunState.QUEUED), (0, None))[1])
            else None,
            workers=sum(name in worker.queues for worker in alive),
        )
        for name in registry.queues()
    ]


def workers(session: Session) -> list[WorkerFigures]:
    """Every worker that has reported lately; `running` counts the tenant's own runs."""
    now = session.scalar(select(func.clock_timestamp()))
    assert now is not None
    running = dict(session.execute(select(RunLease.worker, func.count()).group_by(RunLease.worker)).all())
    return [
        WorkerFigures(
            name=worker.name,
            queues=worker.queues,
            slots=worker.slots,
            running=running.get(worker.name, 0),
            memory_bytes=worker.memory_bytes,
            started_at=worker.started_at,
            last_seen=worker.last_seen,
            last_claim=worker.last_claim,
            alive=(now - worker.last_seen).total_seconds() < _ALIVE_SECONDS,
        )
        for worker in session.scalars(select(Worker).order_by(Worker.name))
    ]


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

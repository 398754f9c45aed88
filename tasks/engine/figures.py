"""The figures of queues and workers, for people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from tasks import registry
from tasks.engine.models import DispatcherLeader, Run, RunLease, Worker
from tasks.engine.states import RunState
from tenants import settings


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
    tasks: list[str] | None
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
    living = [worker for worker in workers(session) if worker.alive]
    return [
        QueueFigures(
            name=name,
            waiting=counted.get((name, RunState.QUEUED), (0, None))[0],
            released=counted.get((name, RunState.RELEASED), (0, None))[0],
            running=counted.get((name, RunState.RUNNING), (0, None))[0],
            oldest_wait_seconds=(now - oldest).total_seconds()
            if now and (oldest := counted.get((name, RunState.QUEUED), (0, None))[1])
            else None,
            workers=sum(name in worker.queues for worker in living),
        )
        for name in registry.queues()
    ]


def workers(session: Session) -> list[WorkerFigures]:
    """Every worker that has reported lately; `running` counts the tenant's own runs."""
    running = dict(session.execute(select(RunLease.worker, func.count()).group_by(RunLease.worker)).all())
    return [
        WorkerFigures(
            name=worker.name,
            queues=worker.queues,
            tasks=worker.tasks,
            slots=worker.slots,
            running=running.get(worker.name, 0),
            memory_bytes=worker.memory_bytes,
            started_at=worker.started_at,
            last_seen=worker.last_seen,
            last_claim=worker.last_claim,
            alive=living,
        )
        for worker, living in session.execute(select(Worker, alive()).order_by(Worker.name))
    ]


def alive() -> ColumnElement[bool]:
    """Whether a worker has reported within the time that its leases hold: until then the dispatcher counts on it."""
    return Worker.last_seen > func.clock_timestamp() - timedelta(seconds=settings.current().engine.lease_seconds)


def leading() -> ColumnElement[bool]:
    """Whether a dispatcher's leadership still holds."""
    return DispatcherLeader.expires_at > func.clock_timestamp()

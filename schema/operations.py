"""Operation: queues, workers, figures, usage. A tenant sees its own figures, an operator all."""

from __future__ import annotations

from datetime import datetime
from enum import Enum

import strawberry

from schema import later, permissions
from schema.context import Info
from schema.nodes import Node
from tasks.engine import figures


@strawberry.type
class QueueStatus(Node):
    name: str
    waiting: int
    released: int
    running: int
    oldest_wait_seconds: float | None
    workers: int


@strawberry.type
class WorkerStatus(Node):
    name: str
    queues: list[str]
    slots: int
    running: int
    memory_bytes: float | None
    started_at: datetime
    last_seen: datetime
    last_claim: datetime | None
    alive: bool


@strawberry.enum
class MetricsWindow(Enum):
    MINUTE = "MINUTE"
    HOUR = "HOUR"
    DAY = "DAY"
    WEEK = "WEEK"


@strawberry.type
class TaskMetrics:
    task_name: str
    accepted: int
    succeeded: int
    failed: int
    retried: int
    run_seconds_p50: float | None = strawberry.field(name="runSecondsP50")
    run_seconds_p95: float | None = strawberry.field(name="runSecondsP95")
    worker_seconds: float


@strawberry.type
class Metrics:
    window: MetricsWindow
    accepted: int
    succeeded: int
    failed: int
    throughput_per_second: float
    wait_seconds_p50: float | None = strawberry.field(name="waitSecondsP50")
    wait_seconds_p95: float | None = strawberry.field(name="waitSecondsP95")
    run_seconds_p50: float | None = strawberry.field(name="runSecondsP50")
    run_seconds_p95: float | None = strawberry.field(name="runSecondsP95")
    by_task: list[TaskMetrics]


@strawberry.type
class Query:
    @strawberry.field(extensions=[permissions.TENANT_READ])
    async def queues(self, info: Info) -> list[QueueStatus]:
        return [
            QueueStatus(
                id=strawberry.ID(f"que_{queue.name}"),
                name=queue.name,
                waiting=queue.waiting,
                released=queue.released,
                running=queue.running,
                oldest_wait_seconds=queue.oldest_wait_seconds,
                workers=queue.workers,
            )
            for queue in await info.context.data.read(figures.queues)
        ]

    @strawberry.field(extensions=[permissions.TENANT_READ])
    async def workers(self, info: Info) -> list[WorkerStatus]:
        return [
            WorkerStatus(
                id=strawberry.ID(f"wrk_{worker.name}"),
                name=worker.name,
                queues=list(worker.queues),
                slots=worker.slots,
                running=worker.running,
                memory_bytes=worker.memory_bytes,
                started_at=worker.started_at,
                last_seen=worker.last_seen,
                last_claim=worker.last_claim,
                alive=worker.alive,
            )
            for worker in await info.context.data.read(figures.workers)
        ]

    metrics: Metrics = later.field(permissions.TENANT_READ, window=(MetricsWindow | None, MetricsWindow.HOUR))

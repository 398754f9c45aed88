"""Runs: the type, its events and progress, and the queries."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import datetime
from functools import lru_cache
from typing import Annotated
from uuid import UUID

import orjson
import strawberry

from schema import nodes, paging, permissions
from schema.context import Info
from schema.nodes import Node
from schema.paging import Connection
from schema.scalars import JSON
from schema.schedules import Schedule
from tasks.engine import filters, models, runs
from tasks.engine.states import RunState
from tenants import ids, log
from tenants.errors import InvalidInput, Issue, NotFound, RateLimited

_SMALL_BYTES, _BYTES_A_POINT = 4096, 256

strawberry.enum(
    RunState,
    description=(
        "SCHEDULED until its time; QUEUED may start; RELEASED to a worker queue; RUNNING; WAITING for an event, holding"
        " no slot; then SUCCEEDED, FAILED, CANCELLED or TIMED_OUT."
    ),
)


@strawberry.type
class Progress:
    current: float
    total: float | None
    message: str | None
    fraction: float | None


@strawberry.type
class RunError:
    type: str
    message: str
    retryable: bool
    detail: strawberry.Private[str | None]

    @strawberry.field(extensions=[permissions.ADMINS], description="For administrators only.")
    def traceback(self) -> str | None:
        return self.detail


@strawberry.type
class RunEvent:
    sequence: int
    state: RunState
    attempt: int
    at: datetime
    note: str | None


@strawberry.type
class Run(Node):
    """One accepted piece of work. Its id is also the Celery task's."""

    row: strawberry.Private[models.Run]
    task_name: str
    family: str
    state: RunState
    queue: str
    priority: int
    attempt: int
    max_attempts: int
    error: RunError | None
    idempotency_key: str | None
    concurrency_key: str | None
    schedule: Schedule | None = None
    cancel_requested_at: datetime | None
    created_at: datetime
    available_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    worker_seconds: float

    @strawberry.field(description="What looks like a secret is blotted out.")
    async def args(self, info: Info) -> JSON:
        args = self.row.__dict__.get("args")
        if args is None:  # The row came in a list, without what may be large.
            args = await info.context.loaders.args.load(self.row.id)
        if args is None:
            raise NotFound
        await _pay(info, args)
        return JSON(log.blotted(args))

    @strawberry.field
    async def result(self, info: Info) -> JSON | None:
        if "result" in self.row.__dict__:
            result = self.row.result
        else:
            result = await info.context.loaders.results.load(self.row.id)
        if result is None:
            return None
        await _pay(info, result)
        return JSON(result)

    @strawberry.field
    async def progress(self, info: Info) -> Progress | None:
        if not self.attempt:
            return None
        found = await info.context.loaders.progress.load(self.row.id)
        return None if found is None else show_progress(found.current, found.total, found.message)

    @strawberry.field(description="The run that this one repeats.")
    async def origin(self, info: Info) -> Annotated[Run, strawberry.lazy("schema.runs")] | None:
        if self.row.origin_id is None:
            return None
        found = await info.context.loaders.runs.load(self.row.origin_id)
        return None if found is None else show(found)

    @strawberry.field(description="Oldest first.")
    async def events(self, info: Info, first: int | None = 50, after: str | None = None) -> Connection[RunEvent]:
        page = await info.context.data.read(runs.events, self.row.id, first=50 if first is None else first, after=after)
        return Connection(**paging.parts(page, show_event))


@strawberry.type(name="RunConnection")
class RunConnection(Connection[Run]):
    wanted: strawberry.Private[filters.RunFilter]

    @strawberry.field(description="Counted up to `max`.")
    async def total_count(self, info: Info, max: int | None = 10_000) -> int:
        most = 10_000 if max is None else max
        if not 1 <= most <= 10_000:
            raise InvalidInput(issues=[Issue(("max",), "must be 1 to 10000")])
        return await info.context.data.read(runs.count, self.wanted, most)


@strawberry.input
class RunFilter:
    ids: list[strawberry.ID] | None = None
    task_name: str | None = None
    family: str | None = None
    states: list[RunState] | None = None
    schedule_id: strawberry.ID | None = None
    concurrency_key: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@strawberry.type
class Query:
    @strawberry.field(extensions=[permissions.RUNS_READ])
    async def run(self, info: Info, id: strawberry.ID) -> Run | None:
        return await find(info, id)

    @strawberry.field(
        extensions=[permissions.RUNS_READ], description="Newest first; 20 when no number is given, at most 100."
    )
    async def runs(
        self,
        info: Info,
        filter: RunFilter | None = None,
        first: int | None = None,
        after: str | None = None,
        last: int | None = None,
        before: str | None = None,
    ) -> RunConnection:
        wanted = read_filter(filter)
        page = await info.context.data.read(runs.page, wanted, first=first, after=after, last=last, before=before)
        return RunConnection(wanted=wanted, **paging.parts(page, show))


async def find(info: Info, id: str) -> Run | None:
    """The caller's run with this id; None for any other id, whatever is wrong with it."""
    found = await nodes.find(info, "run", id, runs.get)
    return None if found is None else show(found)


def show(row: models.Run) -> Run:
    """A row as clients see it."""
    return Run(
        row=row,
        id=strawberry.ID(ids.show("run", row.id)),
        task_name=row.task,
        family=row.task.partition(".")[0],
        state=RunState(row.state),
        queue=row.queue,
        priority=row.priority,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        error=None if row.error is None else _show_error(row.error),
        idempotency_key=row.idempotency_key,
        concurrency_key=row.concurrency_key,
        cancel_requested_at=row.cancel_requested_at,
        created_at=row.created_at,
        available_at=row.available_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        worker_seconds=row.worker_seconds,
    )


def show_event(row: models.RunEvent) -> RunEvent:
    """A change of state as clients see it."""
    return RunEvent(sequence=row.sequence, state=RunState(row.state), attempt=row.attempt, at=row.at, note=row.note)


def show_progress(current: float, total: float | None, message: str | None) -> Progress:
    """Progress with the part of the whole that it is, 0 to 1, where the whole is known."""
    fraction = min(max(current / total, 0.0), 1.0) if total else None
    return Progress(current=current, total=total, message=message, fraction=fraction)


def read_filter(given: RunFilter | None) -> filters.RunFilter:
    """A filter as services take it. An id that names nothing here matches nothing; it is no error."""
    if given is None:
        return filters.RunFilter()
    schedule_id = None if given.schedule_id is None else _known("sch", [given.schedule_id])
    return filters.RunFilter(
        ids=[] if schedule_id == [] else None if given.ids is None else _known("run", given.ids),
        task_name=given.task_name,
        family=given.family,
        states=given.states,
        schedule_id=schedule_id[0] if schedule_id else None,
        concurrency_key=given.concurrency_key,
        created_after=given.created_after,
        created_before=given.created_before,
    )


def _known(kind: str, texts: Collection[str]) -> list[UUID]:
    if len(texts) > 1000:
        raise InvalidInput(issues=[Issue(("filter", "ids"), "must be at most 1,000")])
    known = []
    for text in texts:
        try:
            known.append(ids.read(kind, text))
        except NotFound:
            continue
    return known


async def _pay(info: Info, value: object) -> None:
    """Pay for a large value by its size, and wait: one is shown at a time, and others are served in between.

    Raises:
        RateLimited: the caller has nothing left.
    """
    size = len(orjson.dumps(value))
    if size <= _SMALL_BYTES:
        return
    async with _turn(asyncio.get_running_loop()):
        if wait := info.context.budget.wait(1):
            raise RateLimited("Your budget is used up: wait, or ask for less.", retry_after_seconds=wait)
        info.context.budget.pour(size // _BYTES_A_POINT)
        await asyncio.sleep(0)


@lru_cache(maxsize=1)
def _turn(_: asyncio.AbstractEventLoop) -> asyncio.Lock:
    return asyncio.Lock()


def _show_error(error: dict[str, object]) -> RunError:
    detail = error.get("traceback")
    return RunError(
        type=str(error.get("type", "")),
        message=str(error.get("message", "")),
        retryable=bool(error.get("retryable", False)),
        detail=None if detail is None else str(detail),
    )

"""The subscriptions: one run, or all runs that match, as they change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from uuid import UUID

import strawberry

from schema import permissions
from schema import runs as shown
from schema.context import Info
from schema.runs import Progress, Run, RunFilter
from schema.scalars import Cursor
from tasks.engine import filters, runs
from tasks.engine.feeds import Update, UpdateKind
from tasks.engine.states import RunState
from tenants import ids

strawberry.enum(UpdateKind, name="RunUpdateKind", description="RESET: the cursor is too old, snapshots follow.")


@strawberry.type
class RunUpdate:
    """`sequence` grows by one with each change of state of a run, without gap in what one subscription sends.

    PROGRESS updates carry the sequence of the state they belong to and are coalesced. After a resume an update may be
    repeated; sequence tells.
    """

    kind: UpdateKind
    cursor: Cursor
    run_id: strawberry.ID | None
    sequence: int | None
    state: RunState | None
    attempt: int | None
    progress: Progress | None
    at: datetime
    coalesced: int
    key: strawberry.Private[UUID | None]

    @strawberry.field(description="As it is when the update is sent.")
    async def run(self, info: Info) -> Run | None:
        row = None if self.key is None else await info.context.loaders.runs.load(self.key)
        return None if row is None else shown.show(row)


@strawberry.type
class Subscription:
    @strawberry.subscription(
        extensions=[permissions.RUNS_READ],
        description="One run: a snapshot, then every change, ending after a terminal state.",
    )
    async def task_updates(
        self, info: Info, task_id: strawberry.ID, after: Cursor | None = None
    ) -> AsyncIterator[RunUpdate]:
        run = await info.context.data.read(runs.get, ids.read("run", task_id))
        return _follow(info, run.id, after)

    @strawberry.subscription(
        extensions=[permissions.RUNS_READ],
        description="All runs of the caller's tenant that match; snapshots of the unfinished ones first.",
    )
    async def run_updates(
        self, info: Info, filter: RunFilter | None = None, after: Cursor | None = None
    ) -> AsyncIterator[RunUpdate]:
        return _follow(info, shown.read_filter(filter), after)


async def _follow(info: Info, wanted: UUID | filters.RunFilter, after: str | None) -> AsyncIterator[RunUpdate]:
    updates = info.context.hub.follow(info.context.data, wanted, after)
    async for update in info.context.live(updates):
        yield _show(update)


def _show(update: Update) -> RunUpdate:
    return RunUpdate(
        kind=update.kind,
        cursor=Cursor(update.cursor),
        run_id=None if update.run_id is None else strawberry.ID(ids.show("run", update.run_id)),
        sequence=update.sequence,
        state=None if update.state is None else RunState(update.state),
        attempt=update.attempt,
        progress=None if update.progress is None else shown.show_progress(*update.progress),
        at=update.at,
        coalesced=update.coalesced,
        key=update.run_id,
    )

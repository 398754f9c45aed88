"""Actions on many runs: cancel, retry, and how far they are."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import strawberry

from schema import nodes, permissions
from schema.context import Info
from schema.errors import AS_PROBLEM
from schema.nodes import Node
from schema.problems import Payload
from schema.runs import RunFilter, read_filter
from tasks.engine import bulk_actions, filters, models
from tasks.engine.bulk_actions import ActionKind
from tenants import ids


@strawberry.type(description="An action on many runs. Ask for it again by its id to see how far it is.")
class BulkAction(Node):
    total: int = strawberry.field(description="The runs that matched when it was begun.")
    done: int
    failed: int = strawberry.field(
        description="Runs that had ended or been retried in the meantime, are gone, or may not be retried here."
    )
    finished_at: datetime | None = strawberry.field(description="When done and failed had become the total.")


@strawberry.type
class BulkActionPayload(Payload):
    matched: int = 0
    bulk_action: BulkAction | None = None


_DryRun = Annotated[bool, strawberry.argument(description="Only count what matches.")]


@strawberry.type
class Mutation:
    @strawberry.mutation(
        extensions=[permissions.RUNS_WRITE, AS_PROBLEM],
        description="Cancels what matches and has not ended: what waits never starts, what runs is told to stop.",
    )
    async def cancel_runs(self, info: Info, filter: RunFilter, dry_run: _DryRun = True) -> BulkActionPayload:
        return await _act(info, ActionKind.CANCEL, read_filter(filter), dry_run)

    @strawberry.mutation(
        extensions=[permissions.RUNS_WRITE, AS_PROBLEM],
        description=(
            "Repeats what matches and has ended; only FAILED and TIMED_OUT where the filter names no states. A run that"
            " was retried before is left out."
        ),
    )
    async def retry_runs(self, info: Info, filter: RunFilter, dry_run: _DryRun = True) -> BulkActionPayload:
        return await _act(info, ActionKind.RETRY, read_filter(filter), dry_run)

    @strawberry.mutation(
        extensions=[permissions.RUNS_WRITE, AS_PROBLEM], description="Repeats each run of a group of dead letters."
    )
    async def retry_dead_letters(
        self, info: Info, group_id: strawberry.ID, dry_run: _DryRun = True
    ) -> BulkActionPayload:
        wanted = filters.RunFilter(dead_letter_group=ids.read("dlg", group_id))
        return await _act(info, ActionKind.RETRY, wanted, dry_run)


async def find(info: Info, id: str) -> BulkAction | None:
    """The caller's tenant's action with this id; None for any other id."""
    found = await nodes.find(info, "bulk", id, bulk_actions.get)
    return None if found is None else _show(found)


def _show(row: models.BulkAction) -> BulkAction:
    """A row as clients see it."""
    return BulkAction(
        id=strawberry.ID(ids.show("bulk", row.id)),
        total=row.total,
        done=row.done,
        failed=row.failed,
        finished_at=row.finished_at,
    )


async def _act(info: Info, kind: ActionKind, wanted: filters.RunFilter, dry_run: bool) -> BulkActionPayload:
    if dry_run:
        matched = await info.context.data.read(bulk_actions.count, kind, wanted)
        return BulkActionPayload(success=True, message=f"{matched} runs match; nothing was done.", matched=matched)
    action = _show(await info.context.data.write(bulk_actions.begin, kind, wanted))
    return BulkActionPayload(
        success=True, message=f"Begun on {action.total} runs.", matched=action.total, bulk_action=action
    )

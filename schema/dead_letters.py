"""Dead letters in groups."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import strawberry

from schema import nodes, paging, permissions
from schema.context import Info
from schema.nodes import Node
from schema.paging import Connection
from schema.runs import RunConnection
from schema.runs import show as show_run
from tasks.engine import dead_letters, filters, runs
from tenants import ids


@strawberry.type(
    description=(
        "Runs that FAILED or TIMED_OUT for the same reason and wait for a person: those of one task with one error,"
        " but for the numbers, ids and quoted parts of its message. A run that is retried leaves its group; should the"
        " new run fail too, that one is in it. Without runs there is no group."
    )
)
class DeadLetterGroup(Node):
    key: strawberry.Private[UUID]
    task_name: str
    error_type: str
    message: str = strawberry.field(description="The newest run's.")
    count: int
    first_at: datetime = strawberry.field(description="When the first of its runs ended.")
    last_at: datetime = strawberry.field(description="When the last of its runs ended.")

    @strawberry.field(description="Newest first.")
    async def runs(self, info: Info, first: int | None = None, after: str | None = None) -> RunConnection:
        wanted = filters.RunFilter(dead_letter_group=self.key)
        page = await info.context.data.read(runs.page, wanted, first=first, after=after)
        return RunConnection(wanted=wanted, **paging.parts(page, show_run))


@strawberry.type
class Query:
    @strawberry.field(extensions=[permissions.RUNS_READ], description="The group that grew last comes first.")
    async def dead_letters(
        self, info: Info, first: int | None = None, after: str | None = None
    ) -> Connection[DeadLetterGroup]:
        page = await info.context.data.read(dead_letters.page, first=first, after=after)
        return Connection(**paging.parts(page, _show))


async def find(info: Info, id: str) -> DeadLetterGroup | None:
    """The caller's tenant's group with this id; None for any other id."""
    found = await nodes.find(info, "dlg", id, dead_letters.get)
    return None if found is None else _show(found)


def _show(group: dead_letters.Group) -> DeadLetterGroup:
    """A group as clients see it."""
    return DeadLetterGroup(
        id=strawberry.ID(ids.show("dlg", group.id)),
        key=group.id,
        task_name=group.task,
        error_type=group.error_type,
        message=group.message,
        count=group.count,
        first_at=group.first_at,
        last_at=group.last_at,
    )

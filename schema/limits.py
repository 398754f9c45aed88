"""Limits: what holds a tenant's runs down, and how far it is used."""

from __future__ import annotations

from uuid import UUID

import strawberry

from schema import nodes, permissions
from schema.context import Info
from schema.errors import AS_PROBLEM
from schema.nodes import Node
from schema.problems import DeletePayload, Payload
from tasks.engine import limits, models
from tasks.engine.admission import LimitKind
from tasks.engine.limits import LimitRequest
from tenants import ids

strawberry.enum(LimitKind)


@strawberry.type(
    description=(
        "RATE: amount per perSeconds with burst. CONCURRENCY: amount at once. BACKLOG: amount waiting."
        " WEIGHT: share under contention (operators only). It holds for what matches all that it names."
    )
)
class Limit(Node):
    name: str
    kind: LimitKind
    amount: float
    per_seconds: float | None
    burst: float | None
    task_name: str | None
    queue: str | None
    concurrency_key: str | None = strawberry.field(description="`*`: each key by itself.")
    used: float | None = strawberry.field(description="Null for a weight, and where each key is by itself.")


@strawberry.input
class LimitInput:
    name: str
    kind: LimitKind
    amount: float
    per_seconds: float | None = strawberry.field(default=None, description="1 when left out.")
    burst: float | None = strawberry.field(
        default=None, description="Starts that may come at once; 1 when left out, so that they are spread evenly."
    )
    task_name: str | None = None
    queue: str | None = None
    concurrency_key: str | None = strawberry.field(default=None, description="`*`: each key by itself.")


@strawberry.type
class LimitPayload(Payload):
    limit: Limit | None = None


@strawberry.type
class Query:
    @strawberry.field(extensions=[permissions.TENANT_READ], description="By name.")
    async def limits(self, info: Info) -> list[Limit]:
        used = await info.context.data.read(limits.used)
        return [_show(row, used) for row in await info.context.data.read(limits.every)]


@strawberry.type
class Mutation:
    @strawberry.mutation(
        extensions=[permissions.LIMITS_WRITE, AS_PROBLEM],
        description="One of the same name and kind is replaced. It binds what waits already too.",
    )
    async def set_limit(self, info: Info, input: LimitInput) -> LimitPayload:
        row = await info.context.data.write(
            limits.put,
            LimitRequest(
                input.name,
                input.kind,
                input.amount,
                input.per_seconds,
                input.burst,
                input.task_name,
                input.queue,
                input.concurrency_key,
            ),
        )
        limit = _show(row, await info.context.data.read(limits.used))
        return LimitPayload(success=True, message=f"{limit.name} is set.", limit=limit)

    @strawberry.mutation(extensions=[permissions.LIMITS_WRITE, AS_PROBLEM])
    async def remove_limit(self, info: Info, id: strawberry.ID) -> DeletePayload:
        await info.context.data.write(limits.remove, ids.read("lim", id))
        return DeletePayload(success=True, message="The limit is gone.", deleted_id=id)


async def find(info: Info, id: str) -> Limit | None:
    """The caller's limit with this id; None for any other id, whatever is wrong with it."""
    found = await nodes.find(info, "lim", id, limits.get)
    return None if found is None else _show(found, await info.context.data.read(limits.used))


def _show(row: models.Limit, used: dict[UUID, float]) -> Limit:
    return Limit(
        id=strawberry.ID(ids.show("lim", row.id)),
        name=row.name,
        kind=LimitKind(row.kind),
        amount=row.amount,
        per_seconds=row.per_seconds,
        burst=row.burst,
        task_name=row.task,
        queue=row.queue,
        concurrency_key=row.concurrency_key,
        used=used.get(row.id),
    )

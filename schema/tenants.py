"""Who is calling: the viewer and the tenant, and what the tenant has paused."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import Enum
from typing import Annotated

import strawberry

from schema import permissions
from schema.context import Info
from schema.errors import AS_PROBLEM
from schema.nodes import Node
from schema.problems import Payload
from tasks.engine import switches
from tasks.engine.models import WHOLE
from tasks.engine.models import Pause as PauseRow
from tenants import identity, ids, models
from tenants.context import ActorKind, Role

strawberry.enum(Role)


@strawberry.enum(name="ActorKind", description="OPERATOR: keys of the reserved tenant _operator.")
class CallerKind(Enum):
    USER = "USER"
    API_KEY = "API_KEY"
    OPERATOR = "OPERATOR"


@strawberry.type(description="Nothing starts; or, draining, nothing new is accepted, and what was accepted still runs.")
class Pause:
    task_name: str | None = strawberry.field(description="Null: all tasks of the tenant.")
    draining: bool
    note: str | None
    at: datetime


@strawberry.type
class Tenant(Node):
    slug: str
    name: str
    timezone: str
    plan: str
    paused: bool
    pause_note: str | None
    pauses: list[Pause]
    sso_only: bool = strawberry.field(
        description="Whether members, but for owners, log in through an identity provider only."
    )


@strawberry.type
class TenantPayload(Payload):
    tenant: Tenant | None = None


@strawberry.type
class Viewer:
    kind: CallerKind
    email: str | None
    role: Role | None = strawberry.field(description="Null for keys, and for a role of the tenant's own.")
    role_name: str | None = strawberry.field(description="What the tenant calls its own role.")
    user_id: strawberry.ID | None = strawberry.field(description="The member, where a person has logged in.")
    scopes: list[str]

    @strawberry.field
    async def tenant(self, info: Info) -> Tenant:
        return await read_tenant(info)


@strawberry.type
class Query:
    @strawberry.field(extensions=[permissions.SIGNED_IN])
    def viewer(self, info: Info) -> Viewer:
        caller = info.context.caller
        return Viewer(
            kind=CallerKind(caller.kind),
            email=caller.email,
            role=caller.role,
            role_name=caller.role_name,
            user_id=strawberry.ID(caller.actor) if caller.kind is ActorKind.USER else None,
            scopes=sorted(caller.scopes),
        )


_TaskName = Annotated[str | None, strawberry.argument(description="No name: the whole tenant.")]


@strawberry.type
class Mutation:
    @strawberry.mutation(
        extensions=[permissions.TENANT_WRITE, AS_PROBLEM], description="What runs already goes on to its end."
    )
    async def pause_tasks(
        self,
        info: Info,
        task_name: _TaskName = None,
        note: str | None = None,
        draining: Annotated[
            bool, strawberry.argument(description="Accept nothing new, but run what was accepted.")
        ] = False,
    ) -> TenantPayload:
        await info.context.data.write(switches.pause, task_name, note, draining=draining)
        done = "drained" if draining else "paused"
        return TenantPayload(
            success=True, message=f"{task_name or 'All tasks'}: {done}.", tenant=await read_tenant(info)
        )

    @strawberry.mutation(
        extensions=[permissions.TENANT_WRITE, AS_PROBLEM],
        description="Pauses of single tasks outlast the whole tenant's.",
    )
    async def resume_tasks(self, info: Info, task_name: _TaskName = None) -> TenantPayload:
        await info.context.data.write(switches.resume, task_name)
        return TenantPayload(
            success=True, message=f"{task_name or 'All tasks'}: resumed.", tenant=await read_tenant(info)
        )


async def read_tenant(info: Info) -> Tenant:
    """The caller's tenant."""
    return show_tenant(await info.context.data.read(identity.tenant), await info.context.data.read(switches.pauses))


def show_tenant(row: models.Tenant, pauses: Iterable[PauseRow]) -> Tenant:
    """Rows as clients see them."""
    whole = next((pause for pause in pauses if pause.task == WHOLE and not pause.draining), None)
    return Tenant(
        id=strawberry.ID(ids.show("ten", row.id)),
        slug=row.slug,
        name=row.name,
        timezone=row.timezone,
        plan=row.plan,
        paused=whole is not None,
        pause_note=None if whole is None else whole.note,
        sso_only=row.sso_only,
        pauses=[
            Pause(task_name=pause.task or None, draining=pause.draining, note=pause.note, at=pause.at)
            for pause in pauses
        ],
    )

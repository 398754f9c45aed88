"""Who is calling: the viewer and the tenant."""

from __future__ import annotations

from enum import Enum

import strawberry

from schema import later, permissions
from schema.context import Info
from schema.problems import Node, Problem
from tenants import identity, ids, models
from tenants.context import Role

strawberry.enum(Role)


@strawberry.enum(name="ActorKind", description="OPERATOR: keys of the reserved tenant _operator.")
class CallerKind(Enum):
    USER = "USER"
    API_KEY = "API_KEY"
    OPERATOR = "OPERATOR"


@strawberry.type
class Tenant(Node):
    slug: str
    name: str
    timezone: str
    plan: str
    paused: bool
    pause_note: str | None


@strawberry.type
class TenantPayload:
    success: bool
    message: str
    tenant: Tenant | None = None
    problem: Problem | None = None


@strawberry.type
class Viewer:
    kind: CallerKind
    email: str | None
    role: Role | None
    scopes: list[str]

    @strawberry.field
    async def tenant(self, info: Info) -> Tenant:
        return await read_tenant(info)


@strawberry.type
class Query:
    @strawberry.field(extensions=[permissions.SIGNED_IN])
    def viewer(self, info: Info) -> Viewer:
        caller = info.context.caller
        return Viewer(kind=CallerKind(caller.kind), email=caller.email, role=caller.role, scopes=sorted(caller.scopes))


@strawberry.type
class Mutation:
    pause_tasks: TenantPayload = later.field(
        permissions.TENANT_WRITE, "No name: the whole tenant.", task_name=str | None, note=str | None
    )
    resume_tasks: TenantPayload = later.field(permissions.TENANT_WRITE, task_name=str | None)


async def read_tenant(info: Info) -> Tenant:
    """The caller's tenant."""
    return show_tenant(await info.context.data.read(identity.tenant))


def show_tenant(row: models.Tenant) -> Tenant:
    """A row as clients see it."""
    return Tenant(
        id=strawberry.ID(ids.show("ten", row.id)),
        slug=row.slug,
        name=row.name,
        timezone=row.timezone,
        plan=row.plan,
        paused=row.paused,
        pause_note=row.pause_note,
    )

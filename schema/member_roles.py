"""A tenant's own roles: named sets of scopes."""

from __future__ import annotations

from datetime import datetime

import strawberry

from schema import nodes, paging, permissions
from schema.context import Info
from schema.errors import AS_PROBLEM
from schema.nodes import Node
from schema.paging import Connection
from schema.problems import DeletePayload, Payload
from tenants import ids, member_roles, models


@strawberry.type(description="A role of the tenant's own. Its name is none of the built-in ones.")
class CustomRole(Node):
    name: str
    scopes: list[str]
    created_at: datetime


@strawberry.type
class CustomRolePayload(Payload):
    role: CustomRole | None = None


@strawberry.type
class Query:
    @strawberry.field(extensions=[permissions.MEMBERS_MANAGE], description="The tenant's own, newest first.")
    async def roles(self, info: Info, first: int | None = None, after: str | None = None) -> Connection[CustomRole]:
        page = await info.context.data.read(member_roles.page, first=first, after=after)
        return Connection(**paging.parts(page, _show))


@strawberry.type
class Mutation:
    @strawberry.mutation(
        extensions=[permissions.MEMBERS_CHANGE, AS_PROBLEM], description="Worth no more than the caller's own."
    )
    async def create_role(self, info: Info, name: str, scopes: list[str]) -> CustomRolePayload:
        row = await info.context.data.write(member_roles.create, name, scopes)
        return CustomRolePayload(success=True, message=f"{row.name} can be given.", role=_show(row))

    @strawberry.mutation(
        extensions=[permissions.MEMBERS_CHANGE, AS_PROBLEM],
        description="For all who have it, within seconds. What is left out stays as it is.",
    )
    async def update_role(
        self, info: Info, id: strawberry.ID, name: str | None = None, scopes: list[str] | None = None
    ) -> CustomRolePayload:
        row = await info.context.data.write(member_roles.change, ids.read("rol", id), name, scopes)
        return CustomRolePayload(success=True, message=f"{row.name} is changed.", role=_show(row))

    @strawberry.mutation(
        extensions=[permissions.MEMBERS_CHANGE, AS_PROBLEM], description="One that nobody has or is invited to."
    )
    async def delete_role(self, info: Info, id: strawberry.ID) -> DeletePayload:
        await info.context.data.write(member_roles.remove, ids.read("rol", id))
        return DeletePayload(success=True, message="The role is gone.", deleted_id=id)


async def find(info: Info, id: str) -> CustomRole | None:
    """The tenant's own role with this id; None for any other id."""
    found = await nodes.find(info, "rol", id, member_roles.get)
    return None if found is None else _show(found)


def _show(row: models.CustomRole) -> CustomRole:
    return CustomRole(
        id=strawberry.ID(ids.show("rol", row.id)), name=row.name, scopes=row.scopes, created_at=row.created_at
    )

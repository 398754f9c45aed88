"""The members of a tenant and their logins."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

import strawberry

from schema import nodes, paging, permissions
from schema.context import Info
from schema.errors import AS_PROBLEM
from schema.nodes import Node
from schema.paging import Connection
from schema.problems import DeletePayload, Payload
from tasks import registry
from tenants import ids, logins, members, models
from tenants.context import Role
from tenants.errors import NotFound


@strawberry.type
class Member(Node):
    email: str
    role: Role | None = strawberry.field(description="Null for a role of the tenant's own.")
    role_id: strawberry.ID | None = strawberry.field(description="Of the tenant's own role.")
    role_name: str | None = strawberry.field(description="What the tenant calls its own role.")
    created_at: datetime


@strawberry.type
class MemberPayload(Payload):
    member: Member | None = None


@strawberry.type(description="A login to this tenant that has not ended.")
class LoginSession(Node):
    user_id: strawberry.ID
    agent: str | None = strawberry.field(description="What it was opened with, by its own word.")
    created_at: datetime
    refreshed_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    current: bool = strawberry.field(description="Whether it is the one that asks.")


@strawberry.type
class LoginSessionPayload(Payload):
    session: LoginSession | None = None


@strawberry.type
class Query:
    @strawberry.field(extensions=[permissions.MEMBERS_MANAGE], description="The newest people first.")
    async def members(self, info: Info, first: int | None = None, after: str | None = None) -> Connection[Member]:
        page = await info.context.data.read(members.page, first=first, after=after)
        return Connection(**paging.parts(page, _show))

    @strawberry.field(extensions=[permissions.SIGNED_IN], description="Newest first.")
    async def sessions(
        self,
        info: Info,
        user_id: Annotated[
            strawberry.ID | None,
            strawberry.argument(description="The caller's own when left out; a member's for who has members:manage."),
        ] = None,
        first: int | None = None,
        after: str | None = None,
    ) -> Connection[LoginSession]:
        user = None if user_id is None else _user(user_id)
        page = await info.context.data.read(logins.page, user, first=first, after=after)
        return Connection(**paging.parts(page, lambda row: _show_login(row, info)))


@strawberry.type
class Mutation:
    @strawberry.mutation(
        extensions=[permissions.MEMBERS_CHANGE, AS_PROBLEM],
        description="To a role that is worth no more than the caller's, from one that is not. Only owners make owners.",
    )
    async def set_member_role(
        self, info: Info, id: strawberry.ID, role: Role | None = None, role_id: strawberry.ID | None = None
    ) -> MemberPayload:
        custom = None if role_id is None else ids.read("rol", role_id)
        row = await info.context.data.write(members.change, ids.read("usr", id), role, custom, families())
        return MemberPayload(success=True, message=f"{row.user.email} has the role.", member=_show(row))

    @strawberry.mutation(
        extensions=[permissions.MEMBERS_CHANGE, AS_PROBLEM],
        description="Ends the person's logins to this tenant, and the keys that they made.",
    )
    async def remove_member(self, info: Info, id: strawberry.ID) -> DeletePayload:
        await info.context.data.write(members.remove, ids.read("usr", id), families())
        return DeletePayload(success=True, message="They are no member any more.", deleted_id=id)

    @strawberry.mutation(
        extensions=[permissions.SIGNED_IN_CHANGE, AS_PROBLEM],
        description="One's own; a member's for who has members:manage. Open sockets end within seconds.",
    )
    async def revoke_session(self, info: Info, id: strawberry.ID) -> LoginSessionPayload:
        row = await info.context.data.write(logins.revoke, ids.read("ses", id), families())
        return LoginSessionPayload(success=True, message="The login has ended.", session=_show_login(row, info))


def families() -> list[str]:
    """The families that roles speak of."""
    return list(registry.offered())


async def find(info: Info, id: str) -> Member | None:
    """The member with this id; None for any other id."""
    found = await nodes.find(info, "usr", id, members.get)
    return None if found is None else _show(found)


async def find_login(info: Info, id: str) -> LoginSession | None:
    """The login with this id that the caller may see; None for any other id."""
    found = await nodes.find(info, "ses", id, logins.get)
    return None if found is None else _show_login(found, info)


def shown_role(row: models.Membership | models.Invitation) -> dict[str, object]:
    """The role of a row, as clients see it."""
    return {
        "role": None if row.role is None else Role(row.role),
        "role_id": None if row.role_id is None else strawberry.ID(ids.show("rol", row.role_id)),
        "role_name": None if row.custom is None else row.custom.name,
    }


def _user(id: str) -> UUID:
    """The user behind an id; nobody behind one that is none."""
    try:
        return ids.read("usr", id)
    except NotFound:
        return UUID(int=0)


def _show(row: models.Membership) -> Member:
    return Member(
        id=strawberry.ID(ids.show("usr", row.user_id)),
        email=row.user.email,
        created_at=row.created_at,
        **shown_role(row),  # type: ignore[arg-type]
    )


def _show_login(row: models.LoginSession, info: Info) -> LoginSession:
    return LoginSession(
        id=strawberry.ID(ids.show("ses", row.id)),
        user_id=strawberry.ID(ids.show("usr", row.user_id)),
        agent=row.agent,
        created_at=row.created_at,
        refreshed_at=row.refreshed_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        current=row.id == info.context.caller.login,
    )

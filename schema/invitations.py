"""Invitations: who is to become a member, by a link in a mail."""

from __future__ import annotations

from datetime import datetime

import strawberry

from schema import nodes, paging, permissions
from schema.context import Info
from schema.errors import AS_PROBLEM
from schema.members import shown_role
from schema.nodes import Node
from schema.paging import Connection
from schema.problems import Payload
from tasks.families.accounts.service import requests
from tenants import ids, invitations, models
from tenants.context import Role


@strawberry.type
class Invitation(Node):
    email: str
    role: Role | None = strawberry.field(description="Null for a role of the tenant's own.")
    role_id: strawberry.ID | None = strawberry.field(description="Of the tenant's own role.")
    role_name: str | None = strawberry.field(description="What the tenant calls its own role.")
    invited_by: str
    created_at: datetime
    expires_at: datetime
    accepted_at: datetime | None
    revoked_at: datetime | None


@strawberry.input(description="Exactly one of role and roleId.")
class InviteMemberInput:
    email: str
    role: Role | None = None
    role_id: strawberry.ID | None = None


@strawberry.type
class InvitationPayload(Payload):
    invitation: Invitation | None = None


@strawberry.type
class Query:
    @strawberry.field(extensions=[permissions.MEMBERS_MANAGE], description="Newest first.")
    async def invitations(
        self, info: Info, first: int | None = None, after: str | None = None
    ) -> Connection[Invitation]:
        page = await info.context.data.read(invitations.page, first=first, after=after)
        return Connection(**paging.parts(page, _show))


@strawberry.type
class Mutation:
    @strawberry.mutation(
        extensions=[permissions.MEMBERS_CHANGE, AS_PROBLEM],
        description="Mails a link that works once. An open invitation of the same address ends.",
    )
    async def invite_member(self, info: Info, input: InviteMemberInput) -> InvitationPayload:
        custom = None if input.role_id is None else ids.read("rol", input.role_id)
        row = await info.context.data.write(requests.invite, info.context.settings, input.email, input.role, custom)
        return InvitationPayload(success=True, message=f"{row.email} gets a mail.", invitation=_show(row))

    @strawberry.mutation(extensions=[permissions.MEMBERS_CHANGE, AS_PROBLEM])
    async def revoke_invitation(self, info: Info, id: strawberry.ID) -> InvitationPayload:
        row = await info.context.data.write(invitations.revoke, ids.read("inv", id))
        return InvitationPayload(
            success=True, message=f"The invitation of {row.email} is revoked.", invitation=_show(row)
        )


async def find(info: Info, id: str) -> Invitation | None:
    """The invitation with this id; None for any other id."""
    found = await nodes.find(info, "inv", id, invitations.get)
    return None if found is None else _show(found)


def _show(row: models.Invitation) -> Invitation:
    return Invitation(
        id=strawberry.ID(ids.show("inv", row.id)),
        email=row.email,
        invited_by=row.invited_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        accepted_at=row.accepted_at,
        revoked_at=row.revoked_at,
        **shown_role(row),  # type: ignore[arg-type]
    )

"""Invitations: what an address may become in a tenant, once, by a link that is mailed to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select, text
from sqlalchemy.orm import Session, joinedload

from tenants import audit, context, db, identity, ids, links, member_roles, members, pages
from tenants.context import Role
from tenants.errors import Conflict, InvalidState, NotFound, QuotaExceeded, RateLimited
from tenants.models import CustomRole, Invitation, Membership, User
from tenants.pages import Page

_AGAIN = timedelta(minutes=1)
"""How soon the same address may be invited again: each time it gets a mail."""
_MOST_OPEN = 1000
_FIND = text("SELECT * FROM find_invitation(:tenant, :invitation)")
_ACCEPT = text("SELECT * FROM accept_invitation(:tenant, :invitation, :user, :hash)")
_IS_OPEN = (Invitation.accepted_at.is_(None), Invitation.revoked_at.is_(None))


@dataclass(frozen=True, slots=True)
class Open:
    """An invitation that can be accepted, and the password of the person who has its address, if there is one."""

    email: str
    password_hash: str | None
    suspended: bool


def create(
    session: Session, email: str, role: Role | None, custom: UUID | None, families: Sequence[str], days: float
) -> Invitation:
    """Invite an address. An invitation of the same address that is still open ends.

    Args:
        role: what it is invited to become: a built-in role.
        custom: or one of the tenant's own.
        families: those of this installation.
        days: how long it can be accepted.

    Raises:
        InvalidInput: it is no address, or neither role is named, or both.
        NotFound: the tenant has no such role.
        Forbidden: the caller doesn't hold all that the role is worth; only owners make owners.
        Conflict: the person is a member.
        RateLimited: the address was invited a moment ago.
        QuotaExceeded: too many invitations are open.
    """
    address = links.deliverable(email)
    member_roles.check_grantable(session, role, custom, families)
    identity.lock_tenant(session)
    member = select(User.id).join(Membership, Membership.user_id == User.id).where(User.email == address)
    if session.scalar(member) is not None:
        raise Conflict(f"{address} is a member already.")
    now = datetime.now(UTC)
    for earlier in session.scalars(select(Invitation).where(Invitation.email == address, *_IS_OPEN)).all():
        wait = (earlier.created_at + _AGAIN - now).total_seconds()
        if wait > 0:
            raise RateLimited(f"{address} was invited a moment ago.", retry_after_seconds=wait)
        earlier.revoked_at = now
    pending = select(func.count()).select_from(Invitation).where(*_IS_OPEN, Invitation.expires_at > now)
    waiting = session.scalar(pending) or 0
    if waiting >= _MOST_OPEN:
        raise QuotaExceeded(
            f"{waiting} invitations are open: revoke some.", limit_name="invitations", limit=_MOST_OPEN, used=waiting
        )
    session.flush()
    row = Invitation(
        id=ids.new(),
        email=address,
        role=None if role is None else role.value,
        role_id=custom,
        invited_by=context.principal(session).actor,
        inviter=context.principal(session).person,
        expires_at=now + timedelta(days=days),
    )
    session.add(row)
    session.flush()
    audit.record(session, "invitation.create", ids.show("inv", row.id), after=_shown(row))
    return get(session, row.id)


def get(session: Session, invitation: UUID) -> Invitation:
    """One invitation of the tenant's.

    Raises:
        NotFound: there is none with this id.
    """
    row: Invitation | None = session.scalar(_whole().where(Invitation.id == invitation))
    if row is None:
        raise NotFound
    return row


def page(session: Session, *, first: int | None = None, after: str | None = None) -> Page[Invitation]:
    """One page of the tenant's invitations, newest first."""
    return pages.read(session, _whole(), Invitation.id, "invitation", first=first, after=after)


def revoke(session: Session, invitation: UUID) -> Invitation:
    """End an invitation that has not been accepted; one that is revoked already stays as it is.

    Raises:
        NotFound: there is none with this id.
        InvalidState: it has been accepted.
    """
    row = session.scalar(select(Invitation).where(Invitation.id == invitation).with_for_update())
    if row is None:
        raise NotFound
    if row.accepted_at is not None:
        raise InvalidState("The invitation has been accepted: remove the member.", state="ACCEPTED")
    if row.revoked_at is None:
        row.revoked_at = datetime.now(UTC)
        session.flush()
        audit.record(session, "invitation.revoke", ids.show("inv", row.id), before=_shown(row))
    return get(session, invitation)


def is_open(row: Invitation, now: datetime) -> bool:
    """Whether it can be accepted."""
    return row.accepted_at is None and row.revoked_at is None and row.expires_at > now


@db.single_statement
def find(session: Session, tenant: UUID, invitation: UUID) -> Open:
    """An invitation that can be accepted, before its person is known.

    Raises:
        NotFound: it can't be.
    """
    rows = db.fetch(session, _FIND, {"tenant": tenant, "invitation": invitation})
    if not rows:
        raise links.gone()
    return Open(rows[0]["email"], rows[0]["password_hash"], rows[0]["suspended"])


def accept(session: Session, invitation: UUID, password_hash: str, families: Sequence[str]) -> UUID:
    """Make the invited person a member; returns the person. Who is one already stays what they are.

    Worth nothing once who invited them could not do it any more.

    Args:
        password_hash: theirs: verified where they have one, new where they have none.
        families: those of this installation.

    Raises:
        NotFound: it can't be accepted any more.
        QuotaExceeded: the tenant has as many members as its plan has room for.
    """
    tenant = context.principal(session).tenant
    values = {"tenant": tenant, "invitation": invitation, "user": ids.new(), "hash": password_hash}
    rows = db.fetch(session, _ACCEPT, values)
    if not rows:
        raise links.gone()
    [accepted] = rows
    user: UUID = accepted["user_id"]
    role = None if accepted["role"] is None else Role(accepted["role"])
    joined = members.add(session, user, role, accepted["role_id"])
    if accepted["inviter"] is not None:
        custom = session.scalar(select(CustomRole).where(CustomRole.id == accepted["role_id"]))
        if not member_roles.covers(members.find(session, accepted["inviter"]), role, custom, families):
            raise links.gone()
    audit.record(session, "invitation.accept", ids.show("inv", invitation), user=ids.show("usr", user), joined=joined)
    return user


def _whole() -> Select[Any]:
    return select(Invitation).options(joinedload(Invitation.custom))


def _shown(row: Invitation) -> dict[str, Any]:
    """What the audit log tells of an invitation."""
    return {"email": row.email, **member_roles.shown_role(row.role, row.role_id)}

"""The members of a tenant, and their logins: listed, changed, ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, joinedload

from tenants import audit, context, identity, ids, member_roles, pages
from tenants.context import Role
from tenants.errors import NotFound
from tenants.models import LoginSession, Membership
from tenants.pages import Page


def page(session: Session, *, first: int | None = None, after: str | None = None) -> Page[Membership]:
    """One page of the tenant's members, the newest people first."""
    return pages.read(session, _whole(), Membership.user_id, "member", first=first, after=after)


def get(session: Session, user: UUID) -> Membership:
    """One member.

    Raises:
        NotFound: the person is none.
    """
    row: Membership | None = session.scalar(_whole().where(Membership.user_id == user))
    if row is None:
        raise NotFound
    return row


def change(session: Session, user: UUID, role: Role | None, custom: UUID | None, families: Sequence[str]) -> Membership:
    """Give a member another role.

    Args:
        role: a built-in one.
        custom: or one of the tenant's own.
        families: those of this installation.

    Raises:
        NotFound: the person is no member, or the tenant has no such role.
        InvalidInput: neither role is named, or both.
        Forbidden: the caller doesn't hold all that the old role is worth, or the new one; only owners make owners.
        InvalidState: the tenant would be left without an owner.
    """
    identity.lock_member(session, user)
    _require_above(session, get(session, user), families)
    given = member_roles.gift(session, role, custom, families)
    identity.join(session, user, given.role, given.custom_id)
    session.expire_all()
    return get(session, user)


def remove(session: Session, user: UUID, families: Sequence[str]) -> None:
    """End a membership, and with it the person's logins to this tenant and the keys that they made.

    Raises:
        NotFound: the person is no member.
        Forbidden: the caller doesn't hold all that the member's role is worth; only owners remove owners.
        InvalidState: the tenant would be left without an owner.
    """
    identity.lock_member(session, user)
    _require_above(session, get(session, user), families)
    identity.leave(session, user)


def logins(
    session: Session, user: UUID | None = None, *, first: int | None = None, after: str | None = None
) -> Page[LoginSession]:
    """One page of the open logins of a person to this tenant, newest first.

    Args:
        user: whose; the caller's own when None. Others' are none for who may not manage members.
    """
    caller = context.principal(session)
    person = caller.person if user is None else user
    if person != caller.person and not caller.may("members:manage"):
        person = None
    query = select(LoginSession).where(
        LoginSession.user_id == person, LoginSession.revoked_at.is_(None), LoginSession.expires_at > func.now()
    )
    return pages.read(session, query, LoginSession.id, "login", first=first, after=after)


def get_login(session: Session, login: UUID) -> LoginSession:
    """A login to this tenant: the caller's own, or a member's for who may manage members.

    Raises:
        NotFound: there is none with this id.
    """
    caller = context.principal(session)
    row = session.scalar(select(LoginSession).where(LoginSession.id == login))
    if row is None or (row.user_id != caller.person and not caller.may("members:manage")):
        raise NotFound
    return row


def end_login(session: Session, login: UUID, families: Sequence[str]) -> LoginSession:
    """End a login, within seconds also on open sockets; one that has ended stays as it is.

    Raises:
        NotFound: as `get_login`.
        Forbidden: it is of somebody whose role is worth more than the caller's.
    """
    row = get_login(session, login)
    if row.user_id != context.principal(session).person:
        _require_above(session, get(session, row.user_id), families)
    if row.revoked_at is None:
        row.revoked_at = datetime.now(UTC)
        session.flush()
    audit.record(session, "login.revoke", ids.show("ses", row.id), user=ids.show("usr", row.user_id))
    return row


def _whole() -> Select[Any]:
    return select(Membership).options(joinedload(Membership.user), joinedload(Membership.custom))


def _require_above(session: Session, member: Membership, families: Sequence[str]) -> None:
    """Make sure that the caller may do all that the member may."""
    member_roles.require(session, member_roles.worth(member.role, member.custom, families), member.role)

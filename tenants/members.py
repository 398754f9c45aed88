"""The members of a tenant: they join, are listed, get another role, and leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session, joinedload

from tenants import audit, identity, ids, member_roles, pages, quotas
from tenants.context import Role
from tenants.errors import InvalidState, NotFound
from tenants.models import ApiKey, LoginSession, Membership
from tenants.pages import Page
from tenants.quotas import Quota

COUNT = select(func.count(Membership.user_id))
"""How many members there are."""
OWNERS = select(Membership.user_id).where(Membership.role == Role.OWNER.value)
"""Who they are."""


def join(session: Session, user: UUID, role: Role | None, custom: UUID | None = None) -> None:
    """Make a person a member of the session's tenant, or give a member another role.

    Args:
        role: a built-in one; None for one of the tenant's own.
        custom: that one's id.

    Raises:
        InvalidState: the tenant would be left without an owner.
        QuotaExceeded: the tenant has as many members as its plan has room for.
    """
    give(session, lock(session, user) or _new(session, user), role, custom)


def add(session: Session, user: UUID, role: Role | None, custom: UUID | None = None) -> bool:
    """Make a person a member who is none, and say whether they were none: a member stays what they are.

    Raises:
        QuotaExceeded: as `join`.
    """
    if lock(session, user) is not None:
        return False
    give(session, _new(session, user), role, custom)
    return True


def give(session: Session, row: Membership, role: Role | None, custom: UUID | None = None) -> None:
    """Give a locked member another role, or a new one their first.

    Raises:
        InvalidState: the tenant would be left without an owner.
    """
    if role is not Role.OWNER:
        _keep_an_owner(session, row)
    if row.role == Role.OWNER and role is not Role.OWNER:
        _end_password_logins(session, row.user_id)
    had = row.role is not None or row.role_id is not None
    before = member_roles.shown_role(row.role, row.role_id) if had else None
    row.role, row.role_id = None if role is None else role.value, custom
    session.flush()
    after = member_roles.shown_role(row.role, custom)
    audit.record(session, "member.set", ids.show("usr", row.user_id), before=before, after=after)


def lock(session: Session, user: UUID) -> Membership | None:
    """A membership, locked; and the owners' before it, in one order: of two who leave at once, one comes second."""
    session.scalars(OWNERS.order_by(Membership.user_id).with_for_update()).all()
    return session.scalar(select(Membership).where(Membership.user_id == user).with_for_update())


def page(session: Session, *, first: int | None = None, after: str | None = None) -> Page[Membership]:
    """One page of the tenant's members, the newest people first."""
    return pages.read(session, _whole(), Membership.user_id, "member", first=first, after=after)


def get(session: Session, user: UUID) -> Membership:
    """One member.

    Raises:
        NotFound: the person is none.
    """
    row = find(session, user)
    if row is None:
        raise NotFound
    return row


def find(session: Session, user: UUID) -> Membership | None:
    """A person's membership, if they are a member."""
    row: Membership | None = session.scalar(_whole().where(Membership.user_id == user))
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
    row = _lock_below(session, user, families)
    member_roles.check_grantable(session, role, custom, families)
    give(session, row, role, custom)
    session.expire_all()
    return get(session, user)


def remove(session: Session, user: UUID, families: Sequence[str]) -> None:
    """End a membership, and with it the person's logins to this tenant and the keys that they made.

    Raises:
        NotFound: the person is no member.
        Forbidden: the caller doesn't hold all that the member's role is worth; only owners remove owners.
        InvalidState: the tenant would be left without an owner.
    """
    row = _lock_below(session, user, families)
    _keep_an_owner(session, row)
    before = member_roles.shown_role(row.role, row.role_id)
    session.delete(row)
    session.execute(
        update(ApiKey).where(ApiKey.made_by == user, ApiKey.revoked_at.is_(None)).values(revoked_at=func.now())
    )
    session.flush()
    audit.record(session, "member.remove", ids.show("usr", user), before=before)


def require_above(session: Session, member: Membership, families: Sequence[str]) -> None:
    """Make sure that the caller may do all that the member may.

    Raises:
        Forbidden: they may not; only owners stand as high as owners.
    """
    member_roles.require(session, member_roles.worth(member.role, member.custom, families), member.role)


def _whole() -> Select[Any]:
    return select(Membership).options(joinedload(Membership.user), joinedload(Membership.custom))


def _new(session: Session, user: UUID) -> Membership:
    """A member who has no role yet."""
    quotas.take(session, Quota.MEMBERS, COUNT)
    row = Membership(user_id=user)
    session.add(row)
    return row


def _end_password_logins(session: Session, user: UUID) -> None:
    """End the logins that only an owner may have, where all others come through an identity provider."""
    if identity.tenant(session).sso_only:
        session.execute(
            update(LoginSession)
            .where(LoginSession.user_id == user, LoginSession.provider.is_(None), LoginSession.revoked_at.is_(None))
            .values(revoked_at=func.now())
        )


def _lock_below(session: Session, user: UUID, families: Sequence[str]) -> Membership:
    """A member whose role is worth no more than the caller's, locked."""
    row = lock(session, user)
    if row is None:
        raise NotFound
    require_above(session, get(session, user), families)
    return row


def _keep_an_owner(session: Session, row: Membership) -> None:
    """Refuse to let the last owner go."""
    others = OWNERS.where(Membership.user_id != row.user_id)
    if row.role == Role.OWNER and session.scalar(others.limit(1)) is None:
        raise InvalidState("A tenant keeps at least one owner.", state=Role.OWNER.value)

"""People: who they are, what their role lets them do, and their logins."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from tenants import audit, ids, quotas
from tenants.context import Role
from tenants.errors import InvalidInput, InvalidState, Issue, NotFound
from tenants.models import ApiKey, Membership, Tenant
from tenants.quotas import Quota

_EMAIL = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,255}")
_SLUG = re.compile(r"[a-z][a-z0-9_-]{0,62}")
IS_OWNER = Membership.role == Role.OWNER.value
MEMBERS = select(func.count(Membership.user_id))
"""How many members there are."""
_READS = frozenset({"runs:read", "schedules:read", "tenant:read"})


def scopes(role: Role, families: Iterable[str]) -> frozenset[str]:
    """What a role may do: owners and administrators all, members work, viewers look.

    Args:
        families: the families of this installation.
    """
    if role in {Role.OWNER, Role.ADMIN}:
        return frozenset({"*"})
    reads = _READS | {f"{family}:read" for family in families}
    if role is Role.VIEWER:
        return reads
    return reads | {"runs:write"} | {f"{family}:write" for family in families}


def tenant(session: Session) -> Tenant:
    """The session's tenant."""
    found: Tenant | None = session.scalar(select(Tenant))
    if found is None:
        raise NotFound
    return found


def check_tenant(slug: str, timezone: str, *, path: str = "slug") -> None:
    """Check what a tenant is to be called, and its local time.

    Args:
        path: what the caller calls the slug.

    Raises:
        InvalidInput: a value is wrong.
    """
    if not _SLUG.fullmatch(slug):
        message = "must be at most 63 of a-z, 0-9, - and _, beginning with a letter"
        raise InvalidInput(f"{path} {message}.", issues=[Issue((path,), message)])
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        message = "is not an IANA name such as Europe/Berlin"
        raise InvalidInput(f"timezone: {timezone!r} {message}.", issues=[Issue(("timezone",), message)]) from None


def lock_tenant(session: Session) -> None:
    """Let one at a time change, until the end of the transaction, what all in the tenant must agree on."""
    session.execute(select(Tenant.id).with_for_update(key_share=True))


def normalise(email: str) -> str:
    """An e-mail address as it is kept and compared.

    Raises:
        InvalidInput: it is no address.
    """
    address = unicodedata.normalize("NFKC", email).strip().casefold()
    if not _EMAIL.fullmatch(address):
        raise InvalidInput("email is not an address.", issues=[Issue(("email",), "is not an address")])
    return address


def join(session: Session, user: UUID, role: Role | None, custom: UUID | None = None) -> Membership:
    """Make a person a member of the session's tenant, or change a member's role.

    Args:
        role: a built-in one; None for one of the tenant's own.
        custom: that one's id.

    Raises:
        InvalidState: the tenant would be left without an owner.
        QuotaExceeded: the tenant has as many members as its plan has room for.
    """
    row = lock_member(session, user)
    before = None if row is None else shown_role(row.role, row.role_id)
    if role is not Role.OWNER:
        _keep_an_owner(session, row)
    if row is None:
        quotas.take(session, Quota.MEMBERS, MEMBERS)
        row = Membership(user_id=user)
        session.add(row)
    row.role, row.role_id = None if role is None else role.value, custom
    session.flush()
    audit.record(session, "member.set", ids.show("usr", user), before=before, after=shown_role(row.role, custom))
    return row


def leave(session: Session, user: UUID) -> None:
    """End a membership, and with it the person's logins to this tenant and the keys that they made.

    Raises:
        NotFound: the person is no member.
        InvalidState: the tenant would be left without an owner.
    """
    row = lock_member(session, user)
    if row is None:
        raise NotFound
    _keep_an_owner(session, row)
    before = shown_role(row.role, row.role_id)
    session.delete(row)
    session.execute(
        update(ApiKey).where(ApiKey.made_by == user, ApiKey.revoked_at.is_(None)).values(revoked_at=func.now())
    )
    session.flush()
    audit.record(session, "member.remove", ids.show("usr", user), before=before)


def lock_member(session: Session, user: UUID) -> Membership | None:
    """A membership, locked; and the owners' before it, in one order: of two who leave at once, one comes second."""
    session.scalars(select(Membership.user_id).where(IS_OWNER).order_by(Membership.user_id).with_for_update()).all()
    return session.scalar(select(Membership).where(Membership.user_id == user).with_for_update())


def shown_role(role: str | None, custom: UUID | None) -> str | None:
    """A role as the audit log tells of it."""
    return role if custom is None else ids.show("rol", custom)


def _keep_an_owner(session: Session, row: Membership | None) -> None:
    """Refuse to let the last owner go."""
    if row is None or row.role != Role.OWNER:
        return
    if session.scalar(select(Membership.user_id).where(IS_OWNER, Membership.user_id != row.user_id).limit(1)) is None:
        raise InvalidState("A tenant keeps at least one owner.", state=Role.OWNER.value)

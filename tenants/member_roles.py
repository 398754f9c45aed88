"""Roles: what each is worth, a tenant's own ones, and who may give which to whom."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tenants import audit, context, identity, ids, keys, pages
from tenants.context import ActorKind, Role
from tenants.errors import Conflict, Forbidden, InvalidInput, InvalidState, Issue, NotFound
from tenants.models import CustomRole, Invitation, Membership
from tenants.pages import Page

_LONGEST_NAME = 100
_READS = frozenset({"runs:read", "schedules:read", "tenant:read"})


def create(session: Session, name: str, scopes: Sequence[str]) -> CustomRole:
    """A new role of the tenant's own.

    Args:
        name: for people; no other role of the tenant has it.
        scopes: what it lets a member do; never more than its maker may.

    Raises:
        InvalidInput: a value is wrong.
        Forbidden: its maker doesn't hold one of the scopes.
        Conflict: the name is taken.
    """
    row = CustomRole(id=ids.new())
    _fill(session, row, name, scopes)
    session.add(row)
    session.flush()
    audit.record(session, "role.set", ids.show("rol", row.id), before=None, after=_shown(row))
    return row


def get(session: Session, role_id: UUID) -> CustomRole:
    """One role of the tenant's own.

    Raises:
        NotFound: there is none with this id.
    """
    row = session.scalar(select(CustomRole).where(CustomRole.id == role_id))
    if row is None:
        raise NotFound
    return row


def page(session: Session, *, first: int | None = None, after: str | None = None) -> Page[CustomRole]:
    """One page of the tenant's own roles, newest first."""
    return pages.read(session, select(CustomRole), CustomRole.id, "role", first=first, after=after)


def change(session: Session, role_id: UUID, name: str | None = None, scopes: Sequence[str] | None = None) -> CustomRole:
    """Change a role, for all who have it, within seconds. What is None stays.

    Raises:
        NotFound: there is no such role.
        Forbidden: the caller doesn't hold all that it is worth, or is to be worth.
        Else as `create`.
    """
    row = _lock(session, role_id)
    before = _shown(row)
    require(session, row.scopes)
    _fill(session, row, row.name if name is None else name, row.scopes if scopes is None else scopes)
    session.flush()
    audit.record(session, "role.set", ids.show("rol", row.id), before=before, after=_shown(row))
    return row


def remove(session: Session, role_id: UUID) -> None:
    """Delete a role that nobody has.

    Raises:
        NotFound: there is no such role.
        Forbidden: the caller doesn't hold all that it is worth.
        InvalidState: somebody has it, or is invited to it.
    """
    row = _lock(session, role_id)
    require(session, row.scopes)
    holders = session.scalar(select(func.count()).select_from(Membership).where(Membership.role_id == role_id)) or 0
    if holders:
        raise InvalidState(f"{row.name} is the role of {holders} members: give them another first.", state="IN_USE")
    invited = select(Invitation).where(Invitation.role_id == role_id).with_for_update()
    for invitation in session.scalars(invited).all():
        ended = invitation.accepted_at or invitation.revoked_at
        if ended is None and invitation.expires_at > datetime.now(UTC):
            raise InvalidState(f"{invitation.email} is invited to be {row.name}: revoke that first.", state="IN_USE")
        session.delete(invitation)
    session.flush()
    session.delete(row)
    session.flush()
    audit.record(session, "role.remove", ids.show("rol", role_id), before=_shown(row))


def check_grantable(session: Session, role: Role | None, custom: UUID | None, families: Sequence[str]) -> None:
    """Make sure that the caller may give somebody a role.

    Args:
        role: a built-in one.
        custom: or one of the tenant's own.
        families: those of this installation.

    Raises:
        InvalidInput: neither is named, or both.
        NotFound: the tenant has no such role.
        Forbidden: the caller doesn't hold all that it is worth, or is no owner and would make one.
    """
    if (role is None) is (custom is None):
        raise InvalidInput("Name role or roleId, one of them.", issues=[Issue(("role",), "name role or roleId")])
    row = None if custom is None else _lock(session, custom, to_keep=True)
    require(session, worth(role, row, families), role)


def built_in(role: Role, families: Iterable[str]) -> frozenset[str]:
    """What a built-in role may do: owners and administrators all, members work, viewers look.

    Args:
        families: the families of this installation.
    """
    if role in {Role.OWNER, Role.ADMIN}:
        return frozenset({"*"})
    reads = _READS | {f"{family}:read" for family in families}
    if role is Role.VIEWER:
        return reads
    return reads | {"runs:write"} | {f"{family}:write" for family in families}


def worth(role: Role | str | None, custom: CustomRole | None, families: Sequence[str]) -> frozenset[str]:
    """What a role lets a member do."""
    if custom is not None:
        return frozenset(custom.scopes)
    return built_in(Role(role or Role.VIEWER), families)


def require(session: Session, scopes: Sequence[str] | frozenset[str], role: Role | str | None = None) -> None:
    """Make sure that the caller stands no lower than a role: nobody gives, takes or changes what they don't hold.

    Raises:
        Forbidden: they don't hold one of the scopes, or the role is the owner's and they are none.
    """
    caller = context.principal(session)
    if role == Role.OWNER and not (caller.role is Role.OWNER or caller.kind is ActorKind.OPERATOR):
        raise Forbidden("Only owners make, change and remove owners.")
    for scope in sorted(scopes):
        if not caller.may(scope):
            raise Forbidden(f"This is for who may do as much: you don't hold {scope}.", required_scope=scope)
    if caller.task_names is not None:
        raise Forbidden("Your key is narrowed to some tasks: it gives nobody a role.")


def covers(holder: Membership | None, role: Role | None, custom: CustomRole | None, families: Sequence[str]) -> bool:
    """Whether somebody is a member who stands no lower than a role."""
    if holder is None or (role is Role.OWNER and holder.role != Role.OWNER):
        return False
    held = worth(holder.role, holder.custom, families)
    return "*" in held or worth(role, custom, families) <= held


def shown_role(role: str | None, custom: UUID | None) -> dict[str, str | None]:
    """A member's role as the audit log tells of it."""
    return {"role": role if custom is None else ids.show("rol", custom)}


def _lock(session: Session, role_id: UUID, *, to_keep: bool = False) -> CustomRole:
    """A role, locked: so that it stays while it is given, or that nobody gives it while it is changed."""
    query = select(CustomRole).where(CustomRole.id == role_id)
    row = session.scalar(query.with_for_update(read=to_keep, key_share=to_keep))
    if row is None:
        raise NotFound
    return row


def _fill(session: Session, row: CustomRole, name: str, scopes: Sequence[str]) -> None:
    name = name.strip()
    issues = []
    if not 1 <= len(name) <= _LONGEST_NAME:
        issues.append(Issue(("name",), f"must be 1 to {_LONGEST_NAME} characters"))
    elif name.upper() in Role.__members__:
        issues.append(Issue(("name",), "is a built-in role"))
    if not scopes:
        issues.append(Issue(("scopes",), "must name at least one scope"))
    issues.extend(
        Issue(("scopes", str(index)), "is not a scope")
        for index, scope in enumerate(scopes)
        if not keys.is_scope(scope)
    )
    if issues:
        raise InvalidInput(issues=issues)
    require(session, scopes)
    identity.lock_tenant(session)
    if session.scalar(select(CustomRole.id).where(CustomRole.name == name, CustomRole.id != row.id)) is not None:
        raise Conflict(f"There is a role {name!r} already.")
    row.name, row.scopes = name, sorted(set(scopes))


def _shown(row: CustomRole) -> dict[str, Any]:
    """What the audit log tells of a role."""
    return {"name": row.name, "scopes": row.scopes}

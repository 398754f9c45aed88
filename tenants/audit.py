"""The audit log: who did what in a tenant. Appended with the change it tells of, chained by hash afterwards.

An entry is written in the transaction of what it tells, so there is none without the other, and no writer waits for
another. The leading dispatcher seals what has been committed: it numbers the entries of each tenant and gives each the
hash of itself and of the one before, so that none can be altered, added or taken out without every later hash changing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from uuid import UUID

import orjson
from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from tenants import context, ids, pages
from tenants.errors import NotFound
from tenants.models import AuditEntry
from tenants.pages import Page

Action: TypeAlias = Literal[
    "authentication.refuse",
    "credential.remove",
    "credential.rotate",
    "credential.set",
    "family.enable",
    "family.set",
    "invitation.accept",
    "invitation.create",
    "invitation.revoke",
    "key.create",
    "key.revoke",
    "key.rotate",
    "limit.remove",
    "limit.set",
    "login.accept",
    "login.close",
    "login.open",
    "login.refuse",
    "login.reuse",
    "login.revoke",
    "member.remove",
    "member.set",
    "password.reset",
    "password.set",
    "plan.assign",
    "plan.remove",
    "plan.set",
    "provider.remove",
    "provider.set",
    "quota.alarm",
    "role.remove",
    "role.set",
    "run.cancel",
    "runs.cancel",
    "runs.retry",
    "sso.require",
    "tasks.drain",
    "tasks.pause",
    "tasks.resume",
    "tenant.create",
    "tenant.erase",
    "tenant.export",
    "tenant.resume",
    "tenant.suspend",
]
"""All that an entry can tell, `<noun>.<verb>`; docs/audit.md says of each what its target and its details are.

SQL functions write those that concern several tenants at once, or none that anybody stands in yet.
"""
_VERIFY = text("SELECT * FROM verify_audit()")
_EXPORTED = 500


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the chain of a tenant's entries says.

    Args:
        sealed: how many entries are in the chain.
        waiting: how many have not been sealed yet.
        head: the last entry's hash, hexadecimal; kept elsewhere it shows later whether the end was cut off.
        broken: the position of the first entry that does not fit; None where all do.
    """

    sealed: int
    waiting: int
    head: str | None
    broken: int | None


def record(session: Session, /, action: Action, target: str | None = None, **detail: Any) -> None:
    """Note what the session's caller does, in the session's transaction; nothing where all is as it was before.

    Args:
        action: what.
        target: what it was done to, as an outside id or a name.
        detail: `before` and `after`, mappings, or None where there was none; `reason`; more by name. No secret.
    """
    if "before" in detail and "after" in detail and detail["before"] == detail["after"]:
        return
    caller = context.principal(session)
    session.execute(
        insert(AuditEntry).values(
            id=ids.new(),
            actor_kind=caller.kind.value,
            actor=caller.actor,
            action=action,
            target=target,
            detail=orjson.loads(orjson.dumps(detail)),
        )
    )


def get(session: Session, entry_id: UUID) -> AuditEntry:
    """One entry of the tenant.

    Raises:
        NotFound: there is none with this id.
    """
    found = session.scalar(select(AuditEntry).where(AuditEntry.id == entry_id))
    if found is None:
        raise NotFound
    return found


def page(session: Session, *, first: int | None = None, after: str | None = None) -> Page[AuditEntry]:
    """One page of the tenant's entries, newest first."""
    return pages.read(session, select(AuditEntry), AuditEntry.id, "audit", first=first, after=after)


def export(session: Session) -> Iterator[AuditEntry]:
    """All entries of the tenant, oldest first."""
    return session.scalars(select(AuditEntry).order_by(AuditEntry.id).execution_options(yield_per=_EXPORTED))


def verify(session: Session) -> Verdict:
    """Compute every hash of the tenant's chain again."""
    row = session.execute(_VERIFY).one()
    return Verdict(row.sealed, row.waiting, row.head, row.broken)

"""Which families a tenant has switched on."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from tasks import registry
from tenants.errors import NotFound
from tenants.models import TenantFamily


def enabled(session: Session) -> frozenset[str]:
    """The names of the families that the tenant has switched on."""
    return frozenset(session.scalars(select(TenantFamily.family)))


def enable(session: Session, family: str) -> None:
    """Switch a family on; nothing changes where it is on.

    Raises:
        NotFound: this installation has no such family.
    """
    if family not in registry.families():
        raise NotFound(f"There is no family {family!r}: choose from {', '.join(registry.families())}.")
    if session.scalar(select(TenantFamily).where(TenantFamily.family == family)) is None:
        session.add(TenantFamily(family=family))
        session.flush()

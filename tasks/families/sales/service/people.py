"""Who is written to."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from tenants.context import Role
from tenants.models import Membership, Tenant, User


def responsible(session: Session) -> list[str]:
    """The mail addresses of the tenant's owners and admins."""
    members = select(Membership.user_id).where(Membership.role.in_((Role.OWNER, Role.ADMIN)))
    return list(session.scalars(select(User.email).where(User.id.in_(members)).order_by(User.email)))


def tenant_name(session: Session) -> str:
    """What the tenant is called."""
    return session.scalars(select(Tenant.name)).one()

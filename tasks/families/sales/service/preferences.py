"""How a tenant's sales are kept: its currency, and for how long."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from tasks.families.sales.models import Order, SalesSettings
from tenants.errors import Conflict

DEFAULT_CURRENCY = "EUR"
DEFAULT_RETENTION_MONTHS = 24


def read(session: Session) -> SalesSettings:
    """The tenant's settings, or the defaults."""
    found = session.scalars(select(SalesSettings)).one_or_none()
    return found or SalesSettings(currency=DEFAULT_CURRENCY, retention_months=DEFAULT_RETENTION_MONTHS)


def configure(session: Session, *, currency: str | None = None, retention_months: int | None = None) -> SalesSettings:
    """Change what is given and leave the rest.

    Args:
        currency: ISO 4217 code of all amounts.
        retention_months: how long orders are kept, in months.

    Raises:
        Conflict: there are orders in another currency.
    """
    current = read(session)
    if currency not in (None, current.currency) and session.scalar(select(select(Order.number).exists())):
        raise Conflict(f"There are orders in {current.currency}: amounts of two currencies can't be added.")
    wanted = {
        "currency": currency or current.currency,
        "retention_months": retention_months or current.retention_months,
    }
    session.execute(
        upsert(SalesSettings)
        .values(**wanted)
        .on_conflict_do_update(index_elements=[SalesSettings.tenant_id], set_=wanted)
    )
    session.expire_all()
    return read(session)

"""How a tenant's sales are kept: its currency, and for how long."""

from __future__ import annotations

import re

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from tasks.families.sales.models import Order, SalesSettings
from tenants import audit
from tenants.errors import Conflict, InvalidInput, Issue

DEFAULT_CURRENCY = "EUR"
DEFAULT_RETENTION_MONTHS = 24
LONGEST_RETENTION_MONTHS = 600


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
        InvalidInput: a value can't be.
        Conflict: there are orders in another currency.
    """
    if currency is not None and not re.fullmatch("[A-Z]{3}", currency):
        raise InvalidInput("A currency is its ISO 4217 code, such as EUR.", issues=[Issue(("currency",), "not a code")])
    if retention_months is not None and not 1 <= retention_months <= LONGEST_RETENTION_MONTHS:
        message = f"must be 1 to {LONGEST_RETENTION_MONTHS}"
        raise InvalidInput(f"The retention {message} months.", issues=[Issue(("retentionMonths",), message)])
    current = read(session)
    if currency not in (None, current.currency) and session.scalar(select(select(Order.number).exists())):
        raise Conflict(f"There are orders in {current.currency}: amounts of two currencies can't be added.")
    before = {"currency": current.currency, "retention_months": current.retention_months}
    wanted = {
        "currency": currency or current.currency,
        "retention_months": retention_months or current.retention_months,
    }
    session.execute(
        upsert(SalesSettings)
        .values(**wanted)
        .on_conflict_do_update(index_elements=[SalesSettings.tenant_id], set_=wanted)
    )
    audit.record(session, "family.set", "sales.settings", before=before, after=wanted)
    session.expire_all()
    return read(session)

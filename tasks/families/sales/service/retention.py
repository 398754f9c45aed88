"""Orders past the tenant's retention go, month by month."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import CursorResult, delete, func, select
from sqlalchemy.orm import Session

from tasks.families.sales.models import Order, OrderLine
from tasks.families.sales.service import periods, preferences


def cutoff(session: Session, now: datetime) -> datetime:
    """Orders placed before this moment are past the retention: it is the start of a month in the tenant's timezone."""
    months = preferences.read(session).retention_months
    zone = periods.zone(session)
    today = now.astimezone(zone)
    year, month = divmod(today.year * 12 + today.month - 1 - months, 12)
    return periods.month(f"{year:04}-{month + 1:02}", zone).start


def oldest_month(session: Session, before: datetime) -> datetime | None:
    """The start, in UTC, of the oldest month with an order placed before the moment; None if there is none."""
    oldest = session.scalar(select(func.min(Order.placed_at)).where(Order.placed_at < before))
    return oldest and oldest.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def remove_month(session: Session, month: datetime, before: datetime) -> int:
    """Remove the orders placed from the start of a month until its end, or until the moment if that is sooner.

    Returns:
        How many orders went.
    """
    end = min(month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1), before)
    for table in (OrderLine, Order):
        gone = session.execute(
            delete(table)
            .where(table.placed_at >= month, table.placed_at < end)
            .execution_options(synchronize_session=False)
        )
    assert isinstance(gone, CursorResult)
    return gone.rowcount

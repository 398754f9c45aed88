"""Customer segments by recency, frequency and monetary value.

Each customer gets a score of 1 to 5 for how recently, how often and how much he bought, by quintiles among the
tenant's customers; equal values get equal scores. Recency and the mean of the other two name the segment. Source:
A. M. Hughes, *Strategic Database Marketing* (1994), for the scores; the names are those in common use.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Date, Integer, Select, case, cast, func, literal, select, type_coerce
from sqlalchemy.orm import Session

from tasks.families.sales.service import measures, periods


def assign(session: Session, as_of: datetime) -> Select[Any]:
    """Every customer's figures, scores and segment as of a moment.

    Monetary value is net of cancellations; recency is in days of the tenant's calendar.
    """
    zone = periods.zone(session)
    customers = measures.by_customer(as_of).subquery()
    today = periods.day_before(as_of, zone)
    recency = type_coerce(
        cast(literal(today), Date) - cast(func.timezone(zone.key, customers.c.last_at), Date), Integer
    )
    scored = select(
        customers.c.customer,
        recency.label("recency_days"),
        customers.c.orders.label("frequency"),
        customers.c.net.label("monetary"),
        quintile(-recency).label("recency_score"),
        quintile(customers.c.orders).label("frequency_score"),
        quintile(customers.c.net).label("monetary_score"),
    ).subquery()
    return select(
        *scored.c, name(scored.c.recency_score, scored.c.frequency_score, scored.c.monetary_score).label("segment")
    )


def quintile(value: ColumnElement[Any]) -> ColumnElement[int]:
    """1 for the lowest fifth of the rows to 5 for the highest; equal values share the lower score."""
    rank = func.rank().over(order_by=value)
    return 1 + (rank - 1) * 5 // func.count().over()


def name(
    recency: ColumnElement[int], frequency: ColumnElement[int], monetary: ColumnElement[int]
) -> ColumnElement[str]:
    """The segment that three scores name."""
    worth = (frequency + monetary + 1) // 2
    return case(
        ((recency >= 4) & (worth >= 4), "champions"),
        ((recency == 3) & (worth >= 4), "loyal"),
        ((recency >= 4) & (worth >= 2), "potential loyalists"),
        (recency == 5, "new"),
        (recency == 4, "promising"),
        ((recency == 3) & (worth == 3), "need attention"),
        (recency == 3, "about to sleep"),
        (worth == 5, "cannot lose"),
        (worth >= 3, "at risk"),
        (recency == 2, "hibernating"),
        else_="lost",
    )

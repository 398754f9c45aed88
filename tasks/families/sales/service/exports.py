"""Figures by day, country and product as a table, row by row however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tasks.families.sales.models import Product
from tasks.families.sales.service import measures, money, periods, preferences

COLUMNS = ("date", "country", "sku", "description", "orders", "units", "revenue", "cancelled", "currency")
_FETCHED_ROWS = 2_000


def rows(session: Session, first: date, last: date) -> Iterator[tuple[Any, ...]]:
    """The rows of an export in the order of `COLUMNS`, by date, country and product; the database holds them meanwhile.

    Args:
        first: first day, in the tenant's timezone.
        last: last day, included.
    """
    measures.prepare(session)
    period = periods.Period(first, last, periods.zone(session))
    currency = preferences.read(session).currency
    found = measures.by_country_and_product(period).subquery()
    statement = (
        select(found.c.day, found.c.country, found.c.sku, Product.description)
        .add_columns(found.c.orders, found.c.units, found.c.revenue, found.c.cancelled)
        .join(Product, Product.sku == found.c.sku)
        .order_by(found.c.day, found.c.country, found.c.sku)
    )
    for *keys, revenue, cancelled in session.execute(statement, execution_options={"yield_per": _FETCHED_ROWS}):
        yield *keys, money.rounded(revenue, currency), money.rounded(cancelled, currency), currency

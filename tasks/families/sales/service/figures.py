"""The figures of a period, drawn from the orders themselves, whatever the rollups hold."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tasks.families.sales.models import Product as ProductRow
from tasks.families.sales.service import measures, preferences, segments
from tasks.families.sales.service.periods import Period

TOP_PRODUCTS = 10


class Part(BaseModel):
    """A part of an answer, never changed once read."""

    model_config = ConfigDict(frozen=True)


class Figures(Part):
    """What was sold: amounts in the tenant's currency; revenue is before cancellations."""

    revenue: Decimal
    cancelled: Decimal
    orders: int
    units: int


class Day(Figures):
    """One day; days without orders are there, with zeros."""

    day: date
    new_customers: int
    returning_customers: int


class Country(Figures):
    """One country over the whole period."""

    country: str


class Product(Figures):
    """One product over the whole period."""

    sku: str
    description: str


class Hour(Figures):
    """One hour in which something happened."""

    hour: datetime


class Segment(Part):
    """The customers of one segment."""

    segment: str
    customers: int
    monetary: Decimal


class PeriodFigures(Part):
    """All that a report says about a period; countries and products begin with the greatest revenue."""

    currency: str
    totals: Figures
    new_customers: int
    returning_customers: int
    by_day: list[Day]
    by_country: list[Country]
    top_products: list[Product]
    segments: list[Segment]


def of_period(session: Session, period: Period) -> PeriodFigures:
    """The figures of a period; its customers' segments are those at its end."""
    measures.prepare(session)
    days = _days(session, period)
    return PeriodFigures(
        currency=preferences.read(session).currency,
        totals=total(days),
        new_customers=sum(day.new_customers for day in days),
        returning_customers=sum(day.returning_customers for day in days),
        by_day=days,
        by_country=_countries(session, period),
        top_products=_products(session, period),
        segments=_segments(session, period.end),
    )


def total(parts: list[Day]) -> Figures:
    """The sum of days."""
    return Figures(
        revenue=sum((part.revenue for part in parts), Decimal(0)),
        cancelled=sum((part.cancelled for part in parts), Decimal(0)),
        orders=sum(part.orders for part in parts),
        units=sum(part.units for part in parts),
    )


def _days(session: Session, period: Period) -> list[Day]:
    rows = session.execute(measures.by_day(period.start, period.end, period.zone)).mappings()
    found = {row["day"]: Day(**row) for row in rows}
    every_day = [period.first + timedelta(days=count) for count in range(period.days)]
    return [found.get(day) or _empty(day) for day in every_day]


def _empty(day: date) -> Day:
    nothing = Decimal(0)
    return Day(day=day, revenue=nothing, cancelled=nothing, orders=0, units=0, new_customers=0, returning_customers=0)


def _countries(session: Session, period: Period) -> list[Country]:
    rows = measures.by_country(period.start, period.end, period.zone).subquery()
    revenue = func.sum(rows.c.revenue)
    statement = (
        select(
            rows.c.country,
            revenue.label("revenue"),
            func.sum(rows.c.cancelled).label("cancelled"),
            func.sum(rows.c.orders).label("orders"),
            func.sum(rows.c.units).label("units"),
        )
        .group_by(rows.c.country)
        .order_by(revenue.desc(), rows.c.country)
    )
    return [Country(**row) for row in session.execute(statement).mappings()]


def _products(session: Session, period: Period) -> list[Product]:
    rows = measures.by_product(period.start, period.end, period.zone).subquery()
    revenue = func.sum(rows.c.revenue)
    statement = (
        select(
            rows.c.sku,
            ProductRow.description,
            revenue.label("revenue"),
            func.sum(rows.c.cancelled).label("cancelled"),
            func.sum(rows.c.orders).label("orders"),
            func.sum(rows.c.units).label("units"),
        )
        .join(ProductRow, ProductRow.sku == rows.c.sku)
        .where(ProductRow.stocked)
        .group_by(rows.c.sku, ProductRow.description)
        .order_by(revenue.desc(), rows.c.sku)
        .limit(TOP_PRODUCTS)
    )
    return [Product(**row) for row in session.execute(statement).mappings()]


def _segments(session: Session, end: datetime) -> list[Segment]:
    rows = segments.assign(session, end).subquery()
    monetary = func.sum(rows.c.monetary)
    statement = (
        select(rows.c.segment, func.count().label("customers"), monetary.label("monetary"))
        .group_by(rows.c.segment)
        .order_by(monetary.desc(), rows.c.segment)
    )
    return [Segment(**row) for row in session.execute(statement).mappings()]

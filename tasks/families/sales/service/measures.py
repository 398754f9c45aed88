"""What is counted, and how: the one place that says what revenue is.

Revenue is the sum of quantity × unit price over the lines of sales. What cancellations took back is `cancelled`, a
positive amount on the day of the cancellation; net revenue is the difference. Orders and units are those of sales.
A customer is new on the day of the first sale ever, and returning on every later day with a sale; guests are neither.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import ColumnElement, Date, Select, Subquery, and_, case, cast, func, select
from sqlalchemy.orm import Session

from tasks.families.sales.models import Order, OrderLine
from tasks.families.sales.service.periods import Period


def prepare(session: Session) -> None:
    """Bind the planner for the rest of the transaction; to be called before any of these statements.

    They join all of a tenant's orders with all of their lines. Where the newest months have no statistics yet, the
    planner expects a single row and would compare each with each; where there are few tenants, it would read all of
    them to find one's; and what it then believes to be dear, it would compile. Each costs more than the statement.
    """
    for choice in ("enable_nestloop", "enable_seqscan", "jit"):
        session.execute(select(func.set_config(choice, "off", True)))


def by_hour(start: datetime, end: datetime, zone: ZoneInfo) -> Select[Any]:
    """Figures of each hour in [start, end): hour, revenue, cancelled, orders, units."""
    orders = _orders(start, end)
    hour = func.date_trunc("hour", orders.c.placed_at, zone.key)
    return select(hour.label("hour"), *_figures(orders)).group_by(hour)


def by_day(start: datetime | None, end: datetime, zone: ZoneInfo) -> Select[Any]:
    """Figures of each day in [start, end): day, revenue, cancelled, orders, units, new_, returning_customers."""
    orders = _orders(start, end)
    first = _first_sales(end)
    day = _day(orders.c.placed_at, zone)
    is_new = _day(first.c.placed_at, zone) == day
    buyer = case((~orders.c.cancellation, orders.c.customer))
    return (
        select(
            day.label("day"),
            *_figures(orders),
            func.count(buyer.distinct()).filter(is_new).label("new_customers"),
            func.count(buyer.distinct()).filter(~is_new).label("returning_customers"),
        )
        .select_from(orders.outerjoin(first, first.c.customer == orders.c.customer))
        .group_by(day)
    )


def by_country(start: datetime | None, end: datetime, zone: ZoneInfo) -> Select[Any]:
    """Figures of each day and country in [start, end): day, country, revenue, cancelled, orders, units."""
    orders = _orders(start, end)
    day = _day(orders.c.placed_at, zone)
    return select(day.label("day"), orders.c.country, *_figures(orders)).group_by(day, orders.c.country)


def by_product(start: datetime | None, end: datetime, zone: ZoneInfo) -> Select[Any]:
    """Figures of each day and product in [start, end): day, sku, revenue, cancelled, orders, units."""
    day = _day(Order.placed_at, zone)
    return _product_lines(start, end, day.label("day"), OrderLine.sku).group_by(day, OrderLine.sku)


def by_country_and_product(period: Period) -> Select[Any]:
    """Figures of each day, country and product of a period: day, country, sku, revenue, cancelled, orders, units."""
    day = _day(Order.placed_at, period.zone)
    lines = _product_lines(period.start, period.end, day.label("day"), Order.country, OrderLine.sku)
    return lines.group_by(day, Order.country, OrderLine.sku)


def by_customer(end: datetime) -> Select[Any]:
    """Each customer with a sale before the end: customer, orders, revenue, net, first_at, last_at."""
    orders = _orders(None, end)
    sale = ~orders.c.cancellation
    return (
        select(
            orders.c.customer,
            func.count().filter(sale).label("orders"),
            func.sum(orders.c.amount).filter(sale).label("revenue"),
            func.sum(orders.c.amount).label("net"),
            func.min(orders.c.placed_at).filter(sale).label("first_at"),
            func.max(orders.c.placed_at).filter(sale).label("last_at"),
        )
        .where(orders.c.customer.is_not(None))
        .group_by(orders.c.customer)
        .having(func.count().filter(sale) > 0)
    )


def _orders(start: datetime | None, end: datetime) -> Subquery:
    """One row for each order in [start, end), its lines summed up."""
    return (
        select(
            Order.placed_at,
            Order.number,
            Order.cancellation,
            Order.customer,
            Order.country,
            func.sum(OrderLine.amount).label("amount"),
            func.sum(OrderLine.quantity).label("units"),
        )
        .join(OrderLine, _of_order())
        .where(*_within(start, end))
        .group_by(Order.placed_at, Order.number, Order.cancellation, Order.customer, Order.country)
        .subquery()
    )


def _product_lines(start: datetime | None, end: datetime, *keys: Any) -> Select[Any]:
    sale = ~Order.cancellation
    return (
        select(
            *keys,
            func.coalesce(func.sum(OrderLine.amount).filter(sale), 0).label("revenue"),
            func.coalesce(-func.sum(OrderLine.amount).filter(Order.cancellation), 0).label("cancelled"),
            func.count(Order.number.distinct()).filter(sale).label("orders"),
            func.coalesce(func.sum(OrderLine.quantity).filter(sale), 0).label("units"),
        )
        .select_from(Order)
        .join(OrderLine, _of_order())
        .where(*_within(start, end))
    )


def _figures(orders: Subquery) -> tuple[ColumnElement[Any], ...]:
    sale = ~orders.c.cancellation
    return (
        func.coalesce(func.sum(orders.c.amount).filter(sale), 0).label("revenue"),
        func.coalesce(-func.sum(orders.c.amount).filter(orders.c.cancellation), 0).label("cancelled"),
        func.count().filter(sale).label("orders"),
        func.coalesce(func.sum(orders.c.units).filter(sale), 0).label("units"),
    )


def _first_sales(end: datetime) -> Subquery:
    return (
        select(Order.customer, func.min(Order.placed_at).label("placed_at"))
        .where(~Order.cancellation, Order.customer.is_not(None), Order.placed_at < end)
        .group_by(Order.customer)
        .subquery()
    )


def _of_order() -> ColumnElement[bool]:
    return and_(
        OrderLine.tenant_id == Order.tenant_id,
        OrderLine.placed_at == Order.placed_at,
        OrderLine.number == Order.number,
    )


def _within(start: datetime | None, end: datetime) -> list[ColumnElement[bool]]:
    """On both tables, so that both leave out the months that can't match."""
    conditions = [Order.placed_at < end, OrderLine.placed_at < end]
    if start is not None:
        conditions += [Order.placed_at >= start, OrderLine.placed_at >= start]
    return conditions


def _day(moment: Any, zone: ZoneInfo) -> ColumnElement[Any]:
    return cast(func.timezone(zone.key, moment), Date)

"""Sales as clients see them."""

from __future__ import annotations

from dataclasses import fields
from datetime import date, datetime
from decimal import Decimal
from typing import Any, TypeVar

import strawberry

from schema import paging
from schema.context import Info
from schema.nodes import Node
from schema.paging import Connection
from tasks.families.sales import models
from tasks.families.sales.service import customers, dashboard, imports, money

T = TypeVar("T")


@strawberry.type(
    description="Amounts are in the dashboard's currency, in whole minor units; revenue is before cancellations."
)
class SalesFigures:
    revenue: Decimal
    cancelled: Decimal
    orders: int
    units: int


@strawberry.type
class SalesDay(SalesFigures):
    day: date
    new_customers: int
    returning_customers: int


@strawberry.type
class SalesCountry(SalesFigures):
    country: str


@strawberry.type
class SalesProduct(SalesFigures):
    sku: str
    description: str


@strawberry.type
class SalesHour(SalesFigures):
    hour: datetime


@strawberry.type
class SalesSegment:
    segment: str
    customers: int
    monetary: Decimal


@strawberry.type
class SalesDashboard(SalesFigures):
    currency: str
    first_day: date
    last_day: date
    as_of: datetime | None = strawberry.field(description="The moment of the last refresh's figures.")
    refreshed_at: datetime | None
    average_order: Decimal
    new_customers: int
    returning_customers: int
    by_day: list[SalesDay] = strawberry.field(description="Every day of the window, oldest first.")
    by_country: list[SalesCountry] = strawberry.field(description="Greatest revenue first.")
    top_products: list[SalesProduct] = strawberry.field(description="The ten with the greatest revenue.")
    hourly: list[SalesHour] = strawberry.field(description="The hours with orders among the 48 before the refresh.")
    segments: list[SalesSegment]


@strawberry.type
class SalesCustomer:
    reference: str
    currency: str
    country: str
    segment: str | None
    recency_days: int | None
    orders: int | None
    historic: Decimal | None
    average_order: Decimal | None
    active_probability: float | None
    predicted: Decimal | None = strawberry.field(description="Expected revenue of the next twelve months.")


@strawberry.type
class SalesStock:
    sku: str
    description: str
    stock: int
    reorder_point: int


@strawberry.type
class SalesFile(Node):
    name: str
    media_type: str
    size: float
    created_at: datetime
    expires_at: datetime


@strawberry.type
class SalesImportRemark:
    row_number: int
    kept: bool
    reason: str


@strawberry.type
class SalesImport(Node):
    row: strawberry.Private[models.OrderImport]
    source: str
    kept: int
    refused: int
    started_at: datetime
    finished_at: datetime | None

    @strawberry.field(description="What was odd about rows, in their order.")
    async def remarks(
        self, info: Info, first: int | None = None, after: str | None = None
    ) -> Connection[SalesImportRemark]:
        page = await info.context.data.read(imports.remarks, self.row.id, first=first, after=after)
        return Connection(**paging.parts(page, show_remark))


@strawberry.type
class SalesSettings:
    currency: str
    retention_months: int


def show_dashboard(found: dashboard.Dashboard) -> SalesDashboard:
    unit = found.currency
    return show(
        SalesDashboard,
        found,
        unit,
        **{name: getattr(found.totals, name) for name in ("orders", "units")},
        revenue=money.rounded(found.totals.revenue, unit),
        cancelled=money.rounded(found.totals.cancelled, unit),
        by_day=[show(SalesDay, row, unit) for row in found.by_day],
        by_country=[show(SalesCountry, row, unit) for row in found.by_country],
        top_products=[show(SalesProduct, row, unit) for row in found.top_products],
        hourly=[show(SalesHour, row, unit) for row in found.hourly],
        segments=[show(SalesSegment, row, unit) for row in found.segments],
    )


def show_customer(found: customers.CustomerView) -> SalesCustomer:
    return show(SalesCustomer, found, found.currency)


def show_remark(row: models.ImportRemark) -> SalesImportRemark:
    return show(SalesImportRemark, row)


def show(kind: type[T], row: object, currency: str = "", /, **others: Any) -> T:
    """A row as clients see it: its fields of the same names, amounts in whole minor units.

    Args:
        currency: of the amounts, where there are any.
        others: the fields that have no counterpart of the same name.
    """
    values = {field.name: getattr(row, field.name) for field in fields(kind) if field.init and field.name not in others}  # type: ignore[arg-type]
    for name, value in values.items():
        if isinstance(value, Decimal):
            values[name] = money.rounded(value, currency)
    return kind(**values, **others)

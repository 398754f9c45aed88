"""Sales in the graph: the dashboard, customers, stock, files and imports, and typed triggers of the family's tasks."""

from __future__ import annotations

from dataclasses import fields
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, TypeVar

import strawberry

from schema import paging, permissions
from schema.context import Info
from schema.errors import AS_PROBLEM
from schema.paging import Connection
from schema.problems import Node, Problem
from schema.triggers import TriggerBackgroundTaskPayload, accept
from tasks.engine.runs import TriggerRequest
from tasks.families.sales import inputs, models
from tasks.families.sales.service import customers, dashboard, files, imports, money, preferences, stock
from tasks.registry import TaskDefinition
from tenants import ids
from tenants.errors import InvalidInput, Issue, NotFound

T = TypeVar("T")
_READ = permissions.family_read("sales")
_WRITE = permissions.family_write("sales")
_LONGEST_DAYS = 366


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
    low_stock: int = strawberry.field(description="Products below their reorder point.")


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
        return Connection(**paging.parts(page, _show_remark))


@strawberry.type
class SalesSettings:
    currency: str
    retention_months: int


@strawberry.type
class SalesSettingsPayload:
    success: bool
    message: str
    settings: SalesSettings | None = None
    problem: Problem | None = None


@strawberry.type
class SalesStockPayload:
    success: bool
    message: str
    problem: Problem | None = None


@strawberry.input
class SalesStockInput:
    sku: str
    stock: int
    reorder_point: int


@strawberry.enum
class SalesViews(Enum):
    ALL = "ALL"
    REALTIME = "REALTIME"
    DAILY = "DAILY"
    SEGMENTS = "SEGMENTS"
    LIFETIME_VALUES = "LIFETIME_VALUES"


@strawberry.enum
class SalesExportFormat(Enum):
    CSV = "csv"
    JSON = "json"
    XLSX = "xlsx"


_REFRESHES: dict[SalesViews, TaskDefinition[Any]] = {
    SalesViews.ALL: inputs.REFRESH_ALL,
    SalesViews.REALTIME: inputs.REFRESH_REALTIME,
    SalesViews.DAILY: inputs.REFRESH_DAILY,
    SalesViews.SEGMENTS: inputs.UPDATE_SEGMENTS,
    SalesViews.LIFETIME_VALUES: inputs.UPDATE_VALUES,
}
_AsOf = Annotated[
    datetime | None, strawberry.argument(description="Only orders placed before this moment count; now when left out.")
]


@strawberry.type
class Query:
    @strawberry.field(
        extensions=[_READ], description="The last days up to a moment; up to the last refresh if none is given."
    )
    async def sales_dashboard(
        self, info: Info, days: int = dashboard.DEFAULT_DAYS, as_of: datetime | None = None
    ) -> SalesDashboard:
        if not 1 <= days <= _LONGEST_DAYS:
            issue = Issue(("days",), f"must be 1 to {_LONGEST_DAYS}")
            raise InvalidInput(f"days must be 1 to {_LONGEST_DAYS}.", issues=[issue])
        return _show_dashboard(await info.context.data.read(dashboard.read, days=days, as_of=as_of))

    @strawberry.field(extensions=[_READ])
    async def sales_customer(self, info: Info, reference: str) -> SalesCustomer | None:
        found = await info.context.data.read(customers.find, reference)
        return None if found is None else _show_customer(found)

    @strawberry.field(extensions=[_READ], description="Those expected to bring most in the next twelve months.")
    async def sales_best_customers(
        self, info: Info, first: int = 20, segment: str | None = None
    ) -> list[SalesCustomer]:
        return [_show_customer(one) for one in await info.context.data.read(customers.best, first, segment)]

    @strawberry.field(extensions=[_READ], description="Products below their reorder point, the emptiest first.")
    async def sales_low_stock(self, info: Info) -> list[SalesStock]:
        return [_show(SalesStock, row) for row in await info.context.data.read(stock.low)]

    @strawberry.field(extensions=[_READ], description="Reports and exports, newest first.")
    async def sales_files(self, info: Info) -> list[SalesFile]:
        found = await info.context.data.read(files.recent)
        return [_show(SalesFile, row, id=strawberry.ID(files.show_id(row)), size=float(row.size)) for row in found]

    @strawberry.field(extensions=[_READ])
    async def sales_import(self, info: Info, id: strawberry.ID) -> SalesImport | None:
        try:
            found = await info.context.data.read(imports.find, ids.read("imp", id))
        except NotFound:
            return None
        return _show(SalesImport, found, row=found, id=id)

    @strawberry.field(extensions=[_READ])
    async def sales_settings(self, info: Info) -> SalesSettings:
        return _show(SalesSettings, await info.context.data.read(preferences.read))


@strawberry.type
class Mutation:
    @strawberry.mutation(extensions=[AS_PROBLEM, permissions.TASKS_TRIGGER])
    async def refresh_sales(
        self, info: Info, views: SalesViews = SalesViews.ALL, as_of: _AsOf = None
    ) -> TriggerBackgroundTaskPayload:
        return await _trigger(info, _REFRESHES[views], as_of=as_of)

    @strawberry.mutation(
        extensions=[AS_PROBLEM, permissions.TASKS_TRIGGER], description="A month's PDF, stored and mailed."
    )
    async def generate_sales_report(
        self, info: Info, month: str | None = None, recipients: list[str] | None = None, as_of: _AsOf = None
    ) -> TriggerBackgroundTaskPayload:
        return await _trigger(info, inputs.MONTHLY_REPORT, month=month, recipients=recipients, as_of=as_of)

    @strawberry.mutation(extensions=[AS_PROBLEM, permissions.TASKS_TRIGGER], description="Both days are included.")
    async def export_sales(
        self, info: Info, start_date: date, end_date: date, format: SalesExportFormat = SalesExportFormat.CSV
    ) -> TriggerBackgroundTaskPayload:
        return await _trigger(info, inputs.EXPORT, start_date=start_date, end_date=end_date, export_format=format.value)

    @strawberry.mutation(
        extensions=[AS_PROBLEM, permissions.TASKS_TRIGGER], description="From a file among the uploads."
    )
    async def import_sales_orders(
        self, info: Info, file: str, currency: str | None = None
    ) -> TriggerBackgroundTaskPayload:
        return await _trigger(info, inputs.IMPORT_ORDERS, file=file, currency=currency)

    @strawberry.mutation(extensions=[AS_PROBLEM, _WRITE], description="What is left out stays as it is.")
    async def update_sales_settings(
        self, info: Info, currency: str | None = None, retention_months: int | None = None
    ) -> SalesSettingsPayload:
        found = await info.context.data.write(
            preferences.configure, currency=currency, retention_months=retention_months
        )
        return SalesSettingsPayload(success=True, message="Saved.", settings=_show(SalesSettings, found))

    @strawberry.mutation(extensions=[AS_PROBLEM, _WRITE], description="All are noted or none is.")
    async def record_sales_stock(self, info: Info, counts: list[SalesStockInput]) -> SalesStockPayload:
        given = [stock.Count(one.sku, one.stock, one.reorder_point) for one in counts]
        await info.context.data.write(stock.record, given)
        return SalesStockPayload(success=True, message=f"Noted {len(given)} counts.")


async def _trigger(info: Info, definition: TaskDefinition[Any], **given: object) -> TriggerBackgroundTaskPayload:
    args = {
        name: value.isoformat() if isinstance(value, date) else value
        for name, value in given.items()
        if value is not None
    }
    return await accept(info, TriggerRequest(definition.name, args))


def _show_dashboard(found: dashboard.Dashboard) -> SalesDashboard:
    unit = found.currency
    return _show(
        SalesDashboard,
        found,
        unit,
        **{name: getattr(found.totals, name) for name in ("orders", "units")},
        revenue=money.rounded(found.totals.revenue, unit),
        cancelled=money.rounded(found.totals.cancelled, unit),
        by_day=[_show(SalesDay, row, unit) for row in found.by_day],
        by_country=[_show(SalesCountry, row, unit) for row in found.by_country],
        top_products=[_show(SalesProduct, row, unit) for row in found.top_products],
        hourly=[_show(SalesHour, row, unit) for row in found.hourly],
        segments=[_show(SalesSegment, row, unit) for row in found.segments],
    )


def _show_customer(found: customers.CustomerView) -> SalesCustomer:
    return _show(SalesCustomer, found, found.currency)


def _show_remark(row: models.ImportRemark) -> SalesImportRemark:
    return _show(SalesImportRemark, row)


def _show(kind: type[T], row: object, currency: str = "", /, **others: Any) -> T:
    """A row as clients see it: its fields of the same names, amounts in whole minor units.

    Args:
        currency: of the amounts, where there are any.
        others: the fields that have no counterpart of the same name.
    """
    values = {field.name: getattr(row, field.name) for field in fields(kind) if field.name not in others}  # type: ignore[arg-type]
    for name, value in values.items():
        if isinstance(value, Decimal):
            values[name] = money.rounded(value, currency)
    return kind(**values, **others)

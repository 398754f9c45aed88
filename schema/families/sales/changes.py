"""Typed triggers of the sales tasks, and what people may set."""

from __future__ import annotations

from datetime import date, datetime
from enum import Enum
from typing import Annotated, Any

import strawberry

from schema import permissions
from schema.context import Info
from schema.errors import AS_PROBLEM
from schema.families.sales import types
from schema.problems import Payload
from schema.triggers import TriggerBackgroundTaskPayload, accept
from tasks.engine.runs import TriggerRequest
from tasks.families.sales import inputs
from tasks.families.sales.service import preferences, stock
from tasks.registry import TaskDefinition

_WRITE = permissions.family_write("sales")


@strawberry.type
class SalesSettingsPayload(Payload):
    settings: types.SalesSettings | None = None


@strawberry.type
class SalesStockPayload(Payload):
    pass


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
class Mutation:
    @strawberry.mutation(extensions=[permissions.TASKS_TRIGGER, AS_PROBLEM])
    async def refresh_sales(
        self, info: Info, views: SalesViews = SalesViews.ALL, as_of: _AsOf = None
    ) -> TriggerBackgroundTaskPayload:
        return await _trigger(info, _REFRESHES[views], as_of=as_of)

    @strawberry.mutation(
        extensions=[permissions.TASKS_TRIGGER, AS_PROBLEM], description="A month's PDF, stored and mailed."
    )
    async def generate_sales_report(
        self, info: Info, month: str | None = None, recipients: list[str] | None = None, as_of: _AsOf = None
    ) -> TriggerBackgroundTaskPayload:
        return await _trigger(info, inputs.MONTHLY_REPORT, month=month, recipients=recipients, as_of=as_of)

    @strawberry.mutation(extensions=[permissions.TASKS_TRIGGER, AS_PROBLEM], description="Both days are included.")
    async def export_sales(
        self, info: Info, start_date: date, end_date: date, format: SalesExportFormat = SalesExportFormat.CSV
    ) -> TriggerBackgroundTaskPayload:
        return await _trigger(info, inputs.EXPORT, start_date=start_date, end_date=end_date, export_format=format.value)

    @strawberry.mutation(
        extensions=[permissions.TASKS_TRIGGER, AS_PROBLEM], description="From a file among the uploads."
    )
    async def import_sales_orders(
        self, info: Info, file: str, currency: str | None = None
    ) -> TriggerBackgroundTaskPayload:
        return await _trigger(info, inputs.IMPORT_ORDERS, file=file, currency=currency)

    @strawberry.mutation(extensions=[_WRITE, AS_PROBLEM], description="What is left out stays as it is.")
    async def update_sales_settings(
        self, info: Info, currency: str | None = None, retention_months: int | None = None
    ) -> SalesSettingsPayload:
        found = await info.context.data.write(
            preferences.configure, currency=currency, retention_months=retention_months
        )
        return SalesSettingsPayload(success=True, message="Saved.", settings=types.show(types.SalesSettings, found))

    @strawberry.mutation(extensions=[_WRITE, AS_PROBLEM], description="All are noted or none is.")
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

"""Questions about sales."""

from __future__ import annotations

import asyncio
from datetime import datetime

import strawberry

from schema import nodes, permissions
from schema.context import Info
from schema.families.sales import types
from tasks.families.sales.service import customers, dashboard, files, imports, preferences, stock
from tasks.gateways import cache
from tenants.errors import InvalidInput, Issue

_READ = permissions.family_read("sales")
_LONGEST_DAYS = 366


@strawberry.type
class Query:
    @strawberry.field(
        extensions=[_READ], description="The last days up to a moment; up to the last refresh if none is given."
    )
    async def sales_dashboard(
        self, info: Info, days: int = dashboard.DEFAULT_DAYS, as_of: datetime | None = None
    ) -> types.SalesDashboard:
        if not 1 <= days <= _LONGEST_DAYS:
            raise InvalidInput(issues=[Issue(("days",), f"must be 1 to {_LONGEST_DAYS}")])
        name = dashboard.cache_name(await info.context.data.read(dashboard.version), days, as_of)
        tenant = info.context.caller.tenant
        kept = await asyncio.to_thread(cache.get, info.context.settings, tenant, "sales", name)
        if kept is not None:
            return types.show_dashboard(dashboard.parse(kept))
        return types.show_dashboard(await info.context.data.read(dashboard.read, days=days, as_of=as_of))

    @strawberry.field(extensions=[_READ])
    async def sales_customer(self, info: Info, reference: str) -> types.SalesCustomer | None:
        found = await info.context.data.read(customers.find, reference)
        return None if found is None else types.show_customer(found)

    @strawberry.field(extensions=[_READ], description="Those expected to bring most in the next twelve months.")
    async def sales_best_customers(
        self, info: Info, first: int = 20, segment: str | None = None
    ) -> list[types.SalesCustomer]:
        return [types.show_customer(one) for one in await info.context.data.read(customers.best, first, segment)]

    @strawberry.field(extensions=[_READ], description="Products below their reorder point, the emptiest first.")
    async def sales_low_stock(self, info: Info) -> list[types.SalesStock]:
        return [types.show(types.SalesStock, row) for row in await info.context.data.read(stock.low)]

    @strawberry.field(extensions=[_READ], description="Reports and exports, newest first.")
    async def sales_files(self, info: Info) -> list[types.SalesFile]:
        found = await info.context.data.read(files.recent)
        return [
            types.show(types.SalesFile, row, id=strawberry.ID(files.show_id(row)), size=float(row.size))
            for row in found
        ]

    @strawberry.field(extensions=[_READ])
    async def sales_import(self, info: Info, id: strawberry.ID) -> types.SalesImport | None:
        found = await nodes.find(info, "imp", id, imports.find)
        return None if found is None else types.show(types.SalesImport, found, row=found, id=id)

    @strawberry.field(extensions=[_READ])
    async def sales_settings(self, info: Info) -> types.SalesSettings:
        return types.show(types.SalesSettings, await info.context.data.read(preferences.read))

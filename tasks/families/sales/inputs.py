"""What the sales tasks take, and how each of them is run."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, EmailStr, Field, model_validator

from tasks.registry import OPERATOR_QUEUE, Input, RetryPolicy, TaskDefinition

_RETRY = RetryPolicy(attempts=4, base_seconds=2.0, factor=2.0)
_SHORT = (60.0, 90.0)
_USUAL = (240.0, 300.0)
_LONG = (1500.0, 1800.0)


class AsOf(Input):
    """The moment to look back from."""

    as_of: AwareDatetime | None = Field(
        None,
        description="Look at the orders placed before this moment; now when left out.",
    )


class Letter(AsOf):
    """A message to people of the tenant."""

    recipients: Annotated[list[EmailStr], Field(min_length=1, max_length=50)] | None = Field(
        None,
        description="Mail addresses; the tenant's owners and admins when left out.",
    )


class MonthlyReport(Letter):
    """A month's report."""

    month: str | None = Field(
        None,
        pattern=r"^(19|20)\d{2}-(0[1-9]|1[0-2])$",
        description="Such as 2011-01; the month before `as_of` when left out.",
    )


class Export(AsOf):
    """Figures by day, country and product between two days, both included."""

    start_date: date = Field(description="First day, in the tenant's timezone.")
    end_date: date = Field(description="Last day.")
    export_format: Literal["json", "csv", "xlsx"] = "csv"

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.end_date < self.start_date:
            raise ValueError("end_date is before start_date")
        return self


class OrderFile(AsOf):
    """A file of order lines among the tenant's uploads."""

    file: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$",
        description="Its name there; .csv, or .csv.gz when compressed.",
    )
    currency: str | None = Field(
        None,
        pattern="^[A-Z]{3}$",
        description="ISO 4217 code of the prices; the tenant's own when left out.",
    )


REFRESH_REALTIME = TaskDefinition(
    "sales.refresh_realtime_materialized_views",
    AsOf,
    "Refresh the hourly figures of the last 48 hours.",
    "analytics",
    9,
    *_SHORT,
    _RETRY,
)
REFRESH_DAILY = TaskDefinition(
    "sales.refresh_daily_materialized_views",
    AsOf,
    "Refresh revenue, orders and customers by day, country and product.",
    "analytics",
    6,
    *_USUAL,
    _RETRY,
)
REFRESH_ALL = TaskDefinition(
    "sales.refresh_all_materialized_views",
    AsOf,
    "Refresh every figure of the dashboard: hours, days, segments, lifetime values.",
    "analytics",
    6,
    *_LONG,
    _RETRY,
)
WARM_CACHE = TaskDefinition(
    "sales.warm_dashboard_cache",
    AsOf,
    "Put the dashboard's answers into the cache before anybody asks.",
    "analytics",
    7,
    *_SHORT,
    _RETRY,
)
MONTHLY_REPORT = TaskDefinition(
    "sales.generate_monthly_report",
    MonthlyReport,
    "A month in figures and charts, as a PDF, stored and mailed.",
    "analytics",
    4,
    *_USUAL,
    _RETRY,
)
EXPORT = TaskDefinition(
    "sales.export_analytics_data",
    Export,
    "Export figures by day, country and product as JSON, CSV or XLSX.",
    "analytics",
    5,
    *_LONG,
    _RETRY,
)
IMPORT_ORDERS = TaskDefinition(
    "sales.import_orders",
    OrderFile,
    "Import order lines from an uploaded CSV file.",
    "analytics",
    5,
    *_LONG,
    _RETRY,
)
UPDATE_SEGMENTS = TaskDefinition(
    "sales.update_customer_segments",
    AsOf,
    "Sort customers into segments by recency, frequency and monetary value.",
    "maintenance",
    5,
    *_USUAL,
    _RETRY,
)
UPDATE_VALUES = TaskDefinition(
    "sales.update_customer_lifetime_values",
    AsOf,
    "What each customer has brought, and may bring in the next twelve months.",
    "maintenance",
    5,
    *_USUAL,
    _RETRY,
)
CLEAN_PARTITIONS = TaskDefinition(
    "sales.clean_old_order_partitions",
    AsOf,
    "Remove orders older than the tenant's retention.",
    "maintenance",
    3,
    *_USUAL,
    _RETRY,
)
CLEAN_FILES = TaskDefinition(
    "sales.clean_expired_files",
    AsOf,
    "Remove reports and exports that have expired.",
    "maintenance",
    3,
    *_USUAL,
    _RETRY,
)
CHECK_STOCK = TaskDefinition(
    "sales.check_low_stock_products",
    Letter,
    "Tell people which products have fallen below their reorder point.",
    "notifications",
    5,
    *_SHORT,
    _RETRY,
)
DAILY_SUMMARY = TaskDefinition(
    "sales.send_daily_summary",
    Letter,
    "Mail yesterday's figures.",
    "notifications",
    5,
    *_USUAL,
    _RETRY,
)
WEEKLY_REPORT = TaskDefinition(
    "sales.weekly_performance_report",
    Letter,
    "Last week in figures and charts, as a PDF, stored and mailed.",
    "notifications",
    5,
    *_USUAL,
    _RETRY,
)
DROP_PARTITIONS = TaskDefinition(
    "sales.drop_empty_order_partitions",
    AsOf,
    "Drop months of the order tables that no tenant has orders in.",
    OPERATOR_QUEUE,
    3,
    *_USUAL,
    _RETRY,
    operator_only=True,
)

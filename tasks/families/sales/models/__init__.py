"""The tables of the sales family: what happened, and the figures drawn from it."""

from tasks.families.sales.models.facts import (
    Customer,
    ImportRemark,
    Order,
    OrderImport,
    OrderLine,
    Product,
    SalesSettings,
    StockAlert,
    StoredFile,
)
from tasks.families.sales.models.rollups import (
    CountryDay,
    CustomerSegment,
    CustomerValue,
    Day,
    Hour,
    ProductDay,
    Refresh,
)

__all__ = [
    "CountryDay",
    "Customer",
    "CustomerSegment",
    "CustomerValue",
    "Day",
    "Hour",
    "ImportRemark",
    "Order",
    "OrderImport",
    "OrderLine",
    "Product",
    "ProductDay",
    "Refresh",
    "SalesSettings",
    "StockAlert",
    "StoredFile",
]

"""What is sold: customers, products, orders and their lines, imports, and the settings they are read by.

Orders and lines are partitioned by month of the order's time.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Computed,
    ForeignKeyConstraint,
    Index,
    Integer,
    Numeric,
    SmallInteger,
    Text,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from tenants.db import Base, TenantRow
from tenants.models import Key, Moment

Price = Numeric(14, 4)
Amount = Numeric(20, 4)
"""Money as an exact decimal in the tenant's currency; rounded to minor units only where people read it."""

_BY_MONTH = {"postgresql_partition_by": "RANGE (placed_at)"}


class SalesSettings(TenantRow, Base):
    """How a tenant's sales are kept; a tenant without a row has the defaults."""

    __tablename__ = "sales_settings"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency"),
        CheckConstraint("retention_months BETWEEN 1 AND 600", name="retention_months"),
    )

    currency: Mapped[str] = mapped_column(Text, server_default="EUR")
    """ISO 4217 code of every amount of the tenant."""
    retention_months: Mapped[int] = mapped_column(SmallInteger, server_default=text("24"))
    """Orders older than this are removed."""


class Customer(TenantRow, Base):
    """Somebody who ordered under a number."""

    __tablename__ = "sales_customers"
    __table_args__ = (ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),)

    reference: Mapped[str] = mapped_column(Text, primary_key=True)
    """The customer's number in the shop."""
    country: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())


class Product(TenantRow, Base):
    """Something that is sold."""

    __tablename__ = "sales_products"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        Index(
            "ix_sales_products_low",
            "tenant_id",
            "sku",
            postgresql_where=text("stock < reorder_point"),
        ),
    )

    sku: Mapped[str] = mapped_column(Text, primary_key=True)
    description: Mapped[str] = mapped_column(Text)
    stocked: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    """Whether it is goods; postage, fees and discounts are not."""
    stock: Mapped[int | None] = mapped_column(Integer)
    """Units at hand; None while nobody has counted."""
    reorder_point: Mapped[int | None] = mapped_column(Integer)
    """Below this the product is to be ordered again."""
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())


class StockAlert(TenantRow, Base):
    """A product that fell below its reorder point, until it is above again."""

    __tablename__ = "sales_stock_alerts"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "sku"],
            ["sales_products.tenant_id", "sales_products.sku"],
            ondelete="CASCADE",
        ),
    )

    sku: Mapped[str] = mapped_column(Text, primary_key=True)
    raised_at: Mapped[datetime] = mapped_column(Moment)


class OrderImport(TenantRow, Base):
    """One reading of a file of order lines."""

    __tablename__ = "sales_imports"
    __table_args__ = (ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),)

    id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    source: Mapped[str] = mapped_column(Text)
    kept: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    refused: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    started_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())
    finished_at: Mapped[datetime | None] = mapped_column(Moment)


class ImportRemark(TenantRow, Base):
    """What was odd about one row of an import, and whether the row was kept."""

    __tablename__ = "sales_import_remarks"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "import_id"],
            ["sales_imports.tenant_id", "sales_imports.id"],
            ondelete="CASCADE",
        ),
    )

    import_id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    row_number: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    """The row's place in the file; the first row after the header is 1."""
    kept: Mapped[bool] = mapped_column(Boolean)
    reason: Mapped[str] = mapped_column(Text)


class Order(TenantRow, Base):
    """A sale, or the cancellation of one."""

    __tablename__ = "sales_orders"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(
            ["tenant_id", "customer"],
            ["sales_customers.tenant_id", "sales_customers.reference"],
        ),
        Index("ix_sales_orders_number", "tenant_id", "number"),
        Index("ix_sales_orders_customer", "tenant_id", "customer", "placed_at"),
        _BY_MONTH,
    )

    placed_at: Mapped[datetime] = mapped_column(Moment, primary_key=True)
    number: Mapped[str] = mapped_column(Text, primary_key=True)
    cancellation: Mapped[bool] = mapped_column(Boolean)
    customer: Mapped[str | None] = mapped_column(Text)
    """None for a guest."""
    country: Mapped[str] = mapped_column(Text)
    import_id: Mapped[UUID | None] = mapped_column(Key)
    """The import that wrote the order last."""


class OrderLine(TenantRow, Base):
    """One product in an order; a cancellation's quantities are negative."""

    __tablename__ = "sales_order_lines"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "placed_at", "number"],
            ["sales_orders.tenant_id", "sales_orders.placed_at", "sales_orders.number"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(["tenant_id", "sku"], ["sales_products.tenant_id", "sales_products.sku"]),
        _BY_MONTH,
    )

    placed_at: Mapped[datetime] = mapped_column(Moment, primary_key=True)
    number: Mapped[str] = mapped_column(Text, primary_key=True)
    line: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    """Unique in the order: the row of the file that brought it."""
    sku: Mapped[str] = mapped_column(Text)
    quantity: Mapped[int] = mapped_column(Integer)
    unit_price: Mapped[Decimal] = mapped_column(Price)
    amount: Mapped[Decimal] = mapped_column(Amount, Computed("quantity * unit_price", persisted=True))


class StoredFile(TenantRow, Base):
    """A report or an export that was stored for the tenant."""

    __tablename__ = "sales_files"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        Index("ix_sales_files_expires_at", "tenant_id", "expires_at"),
    )

    id: Mapped[UUID] = mapped_column(Key, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    path: Mapped[str] = mapped_column(Text)
    """Where it stands in the object storage."""
    media_type: Mapped[str] = mapped_column(Text)
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(Moment, server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(Moment)

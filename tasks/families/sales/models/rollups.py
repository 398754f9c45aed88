"""The figures that dashboards read: rollups of a tenant's orders, replaced as a whole by each refresh."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal

from sqlalchemy import (
    BigInteger,
    Date,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    SmallInteger,
    Text,
)
from sqlalchemy.orm import Mapped, mapped_column

from tasks.families.sales.models.facts import Amount
from tenants.db import Base, TenantRow
from tenants.models import Moment


def _of_tenant() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE")


def _of_customer() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["tenant_id", "customer"],
        ["sales_customers.tenant_id", "sales_customers.reference"],
        ondelete="CASCADE",
    )


def _of_product() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["tenant_id", "sku"],
        ["sales_products.tenant_id", "sales_products.sku"],
        ondelete="CASCADE",
    )


class Refresh(TenantRow, Base):
    """When a view was refreshed last, and as of which moment."""

    __tablename__ = "sales_refreshes"
    __table_args__ = (_of_tenant(),)

    view: Mapped[str] = mapped_column(Text, primary_key=True)
    as_of: Mapped[datetime] = mapped_column(Moment)
    refreshed_at: Mapped[datetime] = mapped_column(Moment)
    rows: Mapped[int] = mapped_column(BigInteger)


class Hour(TenantRow, Base):
    """One of the last 48 hours in which something happened."""

    __tablename__ = "sales_hourly"
    __table_args__ = (_of_tenant(),)

    hour: Mapped[datetime] = mapped_column(Moment, primary_key=True)
    revenue: Mapped[Decimal] = mapped_column(Amount)
    cancelled: Mapped[Decimal] = mapped_column(Amount)
    orders: Mapped[int] = mapped_column(BigInteger)
    units: Mapped[int] = mapped_column(BigInteger)


class Day(TenantRow, Base):
    """One day of the tenant's calendar on which something happened."""

    __tablename__ = "sales_daily"
    __table_args__ = (_of_tenant(),)

    day: Mapped[date] = mapped_column(Date, primary_key=True)
    revenue: Mapped[Decimal] = mapped_column(Amount)
    cancelled: Mapped[Decimal] = mapped_column(Amount)
    orders: Mapped[int] = mapped_column(BigInteger)
    units: Mapped[int] = mapped_column(BigInteger)
    new_customers: Mapped[int] = mapped_column(BigInteger)
    returning_customers: Mapped[int] = mapped_column(BigInteger)


class CountryDay(TenantRow, Base):
    """What one country bought on one day."""

    __tablename__ = "sales_daily_countries"
    __table_args__ = (_of_tenant(),)

    day: Mapped[date] = mapped_column(Date, primary_key=True)
    country: Mapped[str] = mapped_column(Text, primary_key=True)
    revenue: Mapped[Decimal] = mapped_column(Amount)
    cancelled: Mapped[Decimal] = mapped_column(Amount)
    orders: Mapped[int] = mapped_column(BigInteger)
    units: Mapped[int] = mapped_column(BigInteger)


class ProductDay(TenantRow, Base):
    """What was sold of one product on one day."""

    __tablename__ = "sales_daily_products"
    __table_args__ = (_of_product(),)

    day: Mapped[date] = mapped_column(Date, primary_key=True)
    sku: Mapped[str] = mapped_column(Text, primary_key=True)
    revenue: Mapped[Decimal] = mapped_column(Amount)
    cancelled: Mapped[Decimal] = mapped_column(Amount)
    orders: Mapped[int] = mapped_column(BigInteger)
    units: Mapped[int] = mapped_column(BigInteger)


class CustomerSegment(TenantRow, Base):
    """A customer's recency, frequency and monetary value, their quintiles, and the segment they name."""

    __tablename__ = "sales_customer_segments"
    __table_args__ = (
        _of_customer(),
        Index("ix_sales_customer_segments_segment", "tenant_id", "segment"),
    )

    customer: Mapped[str] = mapped_column(Text, primary_key=True)
    recency_days: Mapped[int] = mapped_column(Integer)
    frequency: Mapped[int] = mapped_column(BigInteger)
    monetary: Mapped[Decimal] = mapped_column(Amount)
    recency_score: Mapped[int] = mapped_column(SmallInteger)
    frequency_score: Mapped[int] = mapped_column(SmallInteger)
    monetary_score: Mapped[int] = mapped_column(SmallInteger)
    segment: Mapped[str] = mapped_column(Text)


class CustomerValue(TenantRow, Base):
    """What a customer has brought, and may bring in the next twelve months."""

    __tablename__ = "sales_customer_values"
    __table_args__ = (_of_customer(),)

    customer: Mapped[str] = mapped_column(Text, primary_key=True)
    orders: Mapped[int] = mapped_column(BigInteger)
    historic: Mapped[Decimal] = mapped_column(Amount)
    average_order: Mapped[Decimal] = mapped_column(Amount)
    active_probability: Mapped[float] = mapped_column(Double)
    yearly_orders: Mapped[float] = mapped_column(Double)
    predicted: Mapped[Decimal] = mapped_column(Amount)

"""Customers, products, orders by month, imports, stored files, and the rollups of the dashboard."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations import rls

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

MOMENT = postgresql.TIMESTAMP(timezone=True)
AMOUNT = sa.Numeric(precision=20, scale=4)
FUNCTIONS = "tasks/families/sales/sql"
TABLES = (
    "sales_customers",
    "sales_daily",
    "sales_daily_countries",
    "sales_files",
    "sales_hourly",
    "sales_imports",
    "sales_products",
    "sales_refreshes",
    "sales_settings",
    "sales_customer_segments",
    "sales_customer_values",
    "sales_daily_products",
    "sales_import_remarks",
    "sales_orders",
    "sales_stock_alerts",
    "sales_order_lines",
)
"""In the order they are made: what is referred to comes first."""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "sales_customers",
        rls.tenant_column(),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("country", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        _of_tenant("sales_customers"),
        sa.PrimaryKeyConstraint("tenant_id", "reference", name=op.f("pk_sales_customers")),
    )
    op.create_table(
        "sales_daily",
        rls.tenant_column(),
        sa.Column("day", sa.Date(), nullable=False),
        *_figures(),
        sa.Column("new_customers", sa.BigInteger(), nullable=False),
        sa.Column("returning_customers", sa.BigInteger(), nullable=False),
        _of_tenant("sales_daily"),
        sa.PrimaryKeyConstraint("tenant_id", "day", name=op.f("pk_sales_daily")),
    )
    op.create_table(
        "sales_daily_countries",
        rls.tenant_column(),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("country", sa.Text(), nullable=False),
        *_figures(),
        _of_tenant("sales_daily_countries"),
        sa.PrimaryKeyConstraint("tenant_id", "day", "country", name=op.f("pk_sales_daily_countries")),
    )
    op.create_table(
        "sales_files",
        rls.tenant_column(),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        _of_tenant("sales_files"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_sales_files")),
    )
    op.create_index(
        "ix_sales_files_expires_at",
        "sales_files",
        ["tenant_id", "expires_at"],
        unique=False,
    )
    op.create_table(
        "sales_hourly",
        rls.tenant_column(),
        sa.Column("hour", MOMENT, nullable=False),
        *_figures(),
        _of_tenant("sales_hourly"),
        sa.PrimaryKeyConstraint("tenant_id", "hour", name=op.f("pk_sales_hourly")),
    )
    op.create_table(
        "sales_imports",
        rls.tenant_column(),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("kept", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("refused", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("started_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", MOMENT, nullable=True),
        _of_tenant("sales_imports"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_sales_imports")),
    )
    op.create_table(
        "sales_products",
        rls.tenant_column(),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("stocked", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("stock", sa.Integer(), nullable=True),
        sa.Column("reorder_point", sa.Integer(), nullable=True),
        sa.Column("created_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        _of_tenant("sales_products"),
        sa.PrimaryKeyConstraint("tenant_id", "sku", name=op.f("pk_sales_products")),
    )
    op.create_index(
        "ix_sales_products_low",
        "sales_products",
        ["tenant_id", "sku"],
        unique=False,
        postgresql_where=sa.text("stock < reorder_point"),
    )
    op.create_table(
        "sales_refreshes",
        rls.tenant_column(),
        sa.Column("view", sa.Text(), nullable=False),
        sa.Column("as_of", MOMENT, nullable=False),
        sa.Column("refreshed_at", MOMENT, nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        _of_tenant("sales_refreshes"),
        sa.PrimaryKeyConstraint("tenant_id", "view", name=op.f("pk_sales_refreshes")),
    )
    op.create_table(
        "sales_settings",
        rls.tenant_column(),
        sa.Column("currency", sa.Text(), server_default="EUR", nullable=False),
        sa.Column(
            "retention_months",
            sa.SmallInteger(),
            server_default=sa.text("24"),
            nullable=False,
        ),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("ck_sales_settings_currency")),
        sa.CheckConstraint(
            "retention_months BETWEEN 1 AND 600",
            name=op.f("ck_sales_settings_retention_months"),
        ),
        _of_tenant("sales_settings"),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_sales_settings")),
    )
    op.create_table(
        "sales_customer_segments",
        rls.tenant_column(),
        sa.Column("customer", sa.Text(), nullable=False),
        sa.Column("recency_days", sa.Integer(), nullable=False),
        sa.Column("frequency", sa.BigInteger(), nullable=False),
        sa.Column("monetary", AMOUNT, nullable=False),
        sa.Column("recency_score", sa.SmallInteger(), nullable=False),
        sa.Column("frequency_score", sa.SmallInteger(), nullable=False),
        sa.Column("monetary_score", sa.SmallInteger(), nullable=False),
        sa.Column("segment", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "customer"],
            ["sales_customers.tenant_id", "sales_customers.reference"],
            name=op.f("fk_sales_customer_segments_tenant_id_customer"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "customer", name=op.f("pk_sales_customer_segments")),
    )
    op.create_index(
        "ix_sales_customer_segments_segment",
        "sales_customer_segments",
        ["tenant_id", "segment"],
        unique=False,
    )
    op.create_table(
        "sales_customer_values",
        rls.tenant_column(),
        sa.Column("customer", sa.Text(), nullable=False),
        sa.Column("orders", sa.BigInteger(), nullable=False),
        sa.Column("historic", AMOUNT, nullable=False),
        sa.Column("average_order", AMOUNT, nullable=False),
        sa.Column("active_probability", sa.Double(), nullable=False),
        sa.Column("yearly_orders", sa.Double(), nullable=False),
        sa.Column("predicted", AMOUNT, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "customer"],
            ["sales_customers.tenant_id", "sales_customers.reference"],
            name=op.f("fk_sales_customer_values_tenant_id_customer"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "customer", name=op.f("pk_sales_customer_values")),
    )
    op.create_table(
        "sales_daily_products",
        rls.tenant_column(),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        *_figures(),
        sa.ForeignKeyConstraint(
            ["tenant_id", "sku"],
            ["sales_products.tenant_id", "sales_products.sku"],
            name=op.f("fk_sales_daily_products_tenant_id_sku"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "day", "sku", name=op.f("pk_sales_daily_products")),
    )
    op.create_table(
        "sales_import_remarks",
        rls.tenant_column(),
        sa.Column("import_id", sa.UUID(), nullable=False),
        sa.Column("row_number", sa.BigInteger(), nullable=False),
        sa.Column("kept", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "import_id"],
            ["sales_imports.tenant_id", "sales_imports.id"],
            name=op.f("fk_sales_import_remarks_tenant_id_import_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "import_id", "row_number", name=op.f("pk_sales_import_remarks")),
    )
    op.create_table(
        "sales_orders",
        rls.tenant_column(),
        sa.Column("placed_at", MOMENT, nullable=False),
        sa.Column("number", sa.Text(), nullable=False),
        sa.Column("cancellation", sa.Boolean(), nullable=False),
        sa.Column("customer", sa.Text(), nullable=True),
        sa.Column("country", sa.Text(), nullable=False),
        sa.Column("import_id", sa.UUID(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "customer"],
            ["sales_customers.tenant_id", "sales_customers.reference"],
            name=op.f("fk_sales_orders_tenant_id_customer"),
        ),
        _of_tenant("sales_orders"),
        sa.PrimaryKeyConstraint("tenant_id", "placed_at", "number", name=op.f("pk_sales_orders")),
        postgresql_partition_by="RANGE (placed_at)",
    )
    op.create_index(
        "ix_sales_orders_customer",
        "sales_orders",
        ["tenant_id", "customer", "placed_at"],
        unique=False,
    )
    op.create_index("ix_sales_orders_number", "sales_orders", ["tenant_id", "number"], unique=False)
    op.create_table(
        "sales_stock_alerts",
        rls.tenant_column(),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("raised_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "sku"],
            ["sales_products.tenant_id", "sales_products.sku"],
            name=op.f("fk_sales_stock_alerts_tenant_id_sku"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "sku", name=op.f("pk_sales_stock_alerts")),
    )
    op.create_table(
        "sales_order_lines",
        rls.tenant_column(),
        sa.Column("placed_at", MOMENT, nullable=False),
        sa.Column("number", sa.Text(), nullable=False),
        sa.Column("line", sa.BigInteger(), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("unit_price", sa.Numeric(precision=14, scale=4), nullable=False),
        sa.Column(
            "amount",
            AMOUNT,
            sa.Computed("quantity * unit_price", persisted=True),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "placed_at", "number"],
            ["sales_orders.tenant_id", "sales_orders.placed_at", "sales_orders.number"],
            name=op.f("fk_sales_order_lines_tenant_id_placed_at_number"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "sku"],
            ["sales_products.tenant_id", "sales_products.sku"],
            name=op.f("fk_sales_order_lines_tenant_id_sku"),
        ),
        sa.PrimaryKeyConstraint(
            "tenant_id",
            "placed_at",
            "number",
            "line",
            name=op.f("pk_sales_order_lines"),
        ),
        postgresql_partition_by="RANGE (placed_at)",
    )

    for table in ("sales_orders", "sales_order_lines"):
        op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
    rls.protect(*TABLES)
    rls.install(FUNCTIONS)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    rls.uninstall(FUNCTIONS)
    for table in reversed(TABLES):
        op.drop_table(table)


def _of_tenant(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant_id"],
        ["tenants.id"],
        name=op.f(f"fk_{table}_tenant_id"),
        ondelete="CASCADE",
    )


def _figures() -> list[sa.Column[Any]]:
    return [
        sa.Column("revenue", AMOUNT, nullable=False),
        sa.Column("cancelled", AMOUNT, nullable=False),
        sa.Column("orders", sa.BigInteger(), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
    ]

"""Tenants are suspended, resumed and erased; every transaction inside one holds a lock that erasing waits for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations import rls

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("tenants", sa.Column("erasing_since", postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.execute("REVOKE UPDATE (suspended_at) ON tenants FROM tenantry_system")
    rls.install("tenants/sql")
    rls.install("tasks/engine/sql")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("GRANT UPDATE (suspended_at) ON tenants TO tenantry_system")
    op.drop_column("tenants", "erasing_since")

"""Delayed runs are found by tenant too; the dispatcher reads of limits and pauses what it goes by, and no more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import rls

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

LIMIT = "tenant_id, id, kind, amount, per_seconds, burst, task, queue, concurrency_key"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_index(
        "ix_runs_delayed", "runs", ["tenant_id", "available_at"], postgresql_where=sa.text("state = 'SCHEDULED'")
    )
    op.execute("REVOKE SELECT ON limits, pauses FROM tenantry_system")
    op.execute(f"GRANT SELECT ({LIMIT}) ON limits TO tenantry_system")
    op.execute("GRANT SELECT (tenant_id, task, draining) ON pauses TO tenantry_system")
    rls.install("tasks/engine/sql")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("GRANT SELECT ON limits, pauses TO tenantry_system")
    op.drop_index("ix_runs_delayed", table_name="runs")

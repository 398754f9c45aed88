"""Delayed runs and repetitions have indexes; the dispatcher may read and delete no more than what it goes by."""

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
    op.create_index(
        "ix_runs_effects_of", "runs", ["tenant_id", "effects_of"], postgresql_where=sa.text("effects_of IS NOT NULL")
    )
    op.execute("REVOKE SELECT ON limits, pauses FROM tenantry_system")
    op.execute(f"GRANT SELECT ({LIMIT}) ON limits TO tenantry_system")
    op.execute("GRANT SELECT (tenant_id, task, draining) ON pauses TO tenantry_system")
    op.execute("REVOKE SELECT (expires_at), DELETE ON idempotency_keys FROM tenantry_system")
    op.execute("DROP POLICY system ON idempotency_keys")
    op.execute("REVOKE DELETE ON bulk_actions FROM tenantry_system")
    rls.install("tasks/engine/sql")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("GRANT DELETE ON bulk_actions TO tenantry_system")
    rls.open_to_system("idempotency_keys", "SELECT (expires_at), DELETE")
    op.execute("GRANT SELECT ON limits, pauses TO tenantry_system")
    op.drop_index("ix_runs_effects_of", table_name="runs")
    op.drop_index("ix_runs_delayed", table_name="runs")

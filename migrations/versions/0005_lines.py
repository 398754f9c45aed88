"""What waits is found line by line: by tenant, queue, task and concurrency key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

QUEUED = sa.text("state = 'QUEUED'")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index("ix_runs_queued", table_name="runs")
    op.create_index(
        "ix_runs_queued",
        "runs",
        ["tenant_id", "queue", "task", sa.text("coalesce(concurrency_key, '')"), "rank"],
        postgresql_where=QUEUED,
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index("ix_runs_queued", table_name="runs")
    op.create_index("ix_runs_queued", "runs", ["tenant_id", "queue", "rank"], postgresql_where=QUEUED)

"""What a run's repetition shares, how long it is tried again, and which tasks a worker knows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations import rls

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("runs", sa.Column("effects_of", sa.UUID(), nullable=True))
    op.add_column("runs", sa.Column("retry_until", postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.execute("UPDATE runs SET effects_of = origin_id WHERE origin_id IS NOT NULL")
    op.add_column("workers", sa.Column("tasks", sa.ARRAY(sa.Text()), nullable=True))
    rls.install("tasks/engine/sql")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column("workers", "tasks")
    op.drop_column("runs", "retry_until")
    op.drop_column("runs", "effects_of")

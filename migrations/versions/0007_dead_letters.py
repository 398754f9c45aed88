"""Dead letters in groups, and actions on many runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations import rls

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

MOMENT = postgresql.TIMESTAMP(timezone=True)
OPEN = sa.text("fingerprint IS NOT NULL AND retried_by IS NULL")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("runs", sa.Column("fingerprint", sa.UUID(), nullable=True))
    op.add_column("runs", sa.Column("retried_by", sa.UUID(), nullable=True))
    op.create_index(
        "ix_runs_dead",
        "runs",
        ["tenant_id", "fingerprint", "id"],
        unique=False,
        postgresql_include=["finished_at"],
        postgresql_where=OPEN,
    )
    op.create_table(
        "bulk_actions",
        rls.tenant_column(),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("actor_kind", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("pending", sa.ARRAY(sa.UUID()), nullable=False),
        sa.Column("position", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("done", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("advanced_at", MOMENT, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.CheckConstraint("kind IN ('CANCEL', 'RETRY')", name=op.f("ck_bulk_actions_kind")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_bulk_actions")),
    )
    op.create_index(
        "ix_bulk_actions_open",
        "bulk_actions",
        ["advanced_at"],
        unique=False,
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    rls.protect("bulk_actions", grants="SELECT, INSERT")
    rls.open_to_system("bulk_actions", "SELECT (finished_at), DELETE")
    rls.install("tasks/engine/sql")
    op.execute(
        "UPDATE runs SET fingerprint = dead_letter_fingerprint(tenant_id, task, error)"
        " WHERE state IN ('FAILED', 'TIMED_OUT')"
    )
    op.execute(
        "UPDATE runs r SET retried_by = n.next FROM ("
        "  SELECT tenant_id, id, lead(id) OVER (PARTITION BY tenant_id, coalesce(origin_id, id) ORDER BY id) AS next"
        "  FROM runs"
        ") n WHERE r.tenant_id = n.tenant_id AND r.id = n.id AND n.next IS NOT NULL"
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("bulk_actions")
    op.drop_index("ix_runs_dead", table_name="runs")
    op.drop_column("runs", "retried_by")
    op.drop_column("runs", "fingerprint")

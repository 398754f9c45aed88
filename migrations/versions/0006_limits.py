"""Limits and pauses of tenants, and what tells the dispatcher that either has changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations import rls

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

MOMENT = postgresql.TIMESTAMP(timezone=True)
KINDS = "'RATE', 'CONCURRENCY', 'BACKLOG', 'WEIGHT'"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "limits",
        rls.tenant_column(),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("amount", sa.Double(), nullable=False),
        sa.Column("per_seconds", sa.Double(), nullable=True),
        sa.Column("burst", sa.Double(), nullable=True),
        sa.Column("task", sa.Text(), nullable=True),
        sa.Column("queue", sa.Text(), nullable=True),
        sa.Column("concurrency_key", sa.Text(), nullable=True),
        sa.Column("actor_kind", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("changed_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(f"kind IN ({KINDS})", name=op.f("ck_limits_kind")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_limits_tenant_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_limits")),
        sa.UniqueConstraint("tenant_id", "name", "kind", name=op.f("uq_limits_tenant_id_name_kind")),
    )
    op.create_table(
        "limit_states",
        rls.tenant_column(),
        sa.Column("limit_id", sa.UUID(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("arrival", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "limit_id", "key", name=op.f("pk_limit_states")),
    )
    op.create_table(
        "pauses",
        rls.tenant_column(),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("actor_kind", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_pauses_tenant_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "task", name=op.f("pk_pauses")),
    )
    op.execute("ALTER TABLE tenants ADD COLUMN changed xid8 NOT NULL DEFAULT pg_current_xact_id()")
    op.create_index("ix_tenants_changed", "tenants", ["changed"])
    op.execute(
        "INSERT INTO pauses (tenant_id, task, draining, note, actor_kind, actor)"
        " SELECT id, '', false, pause_note, 'USER', 'unknown' FROM tenants WHERE paused"
    )
    op.drop_column("tenants", "paused")
    op.drop_column("tenants", "pause_note")
    op.execute("GRANT SELECT (changed) ON tenants TO tenantry_system")

    rls.protect("limits", "pauses")
    rls.protect("limit_states", grants="SELECT")
    rls.open_to_system("limits", "SELECT")
    rls.open_to_system("pauses", "SELECT")
    rls.open_to_system("limit_states", "SELECT, INSERT, UPDATE, DELETE")
    rls.install("tasks/engine/sql")
    op.execute("CREATE TRIGGER note_change BEFORE UPDATE ON tenants FOR EACH ROW EXECUTE FUNCTION note_tenant_change()")
    for table in ("limits", "pauses"):
        op.execute(
            f"CREATE TRIGGER note_change AFTER INSERT OR UPDATE OR DELETE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION note_change_of_tenant()"
        )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table in ("tenants", "limits", "pauses"):
        op.execute(f"DROP TRIGGER note_change ON {table}")
    op.drop_index("ix_tenants_changed", table_name="tenants")
    op.drop_column("tenants", "changed")
    op.add_column("tenants", sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("tenants", sa.Column("pause_note", sa.Text(), nullable=True))
    op.execute("GRANT UPDATE (paused, pause_note) ON tenants TO tenantry_app")
    op.execute("GRANT SELECT (paused) ON tenants TO tenantry_system")
    op.execute(
        "UPDATE tenants t SET paused = true, pause_note = p.note FROM pauses p"
        " WHERE p.tenant_id = t.id AND p.task = '' AND NOT p.draining"
    )
    for table in ("pauses", "limit_states", "limits"):
        op.drop_table(table)

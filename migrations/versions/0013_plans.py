"""Plans and what is used of them; address ranges and predecessors of API keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations import rls
from tenants.models import Xid8

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

MOMENT = postgresql.TIMESTAMP(timezone=True)
OPERATORS = "(SELECT nullif(current_setting('app.tenant_id', true), '')::uuid) = operators()"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("api_keys", sa.Column("address_ranges", sa.ARRAY(sa.Text()), nullable=True))
    op.add_column("api_keys", sa.Column("predecessor_id", sa.UUID(), nullable=True))
    op.create_foreign_key(
        op.f("fk_api_keys_tenant_id_predecessor_id"),
        "api_keys",
        "api_keys",
        ["tenant_id", "predecessor_id"],
        ["tenant_id", "id"],
    )
    op.create_index("uq_api_keys_predecessor", "api_keys", ["tenant_id", "predecessor_id"], unique=True)
    op.create_table(
        "plans",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("quotas", postgresql.JSONB(), nullable=False),
        sa.Column("changed_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_plans")),
    )
    op.create_table(
        "usage",
        rls.tenant_column(),
        sa.Column("period", sa.Date(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("amount", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("alarmed_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_usage_tenant_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "period", "kind", name=op.f("pk_usage")),
    )
    op.create_table(
        "usage_entries",
        rls.tenant_column(),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("period", sa.Date(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("amount", sa.Double(), nullable=False),
        sa.Column("xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "kind", "period", "id", name=op.f("pk_usage_entries")),
    )
    op.execute("ALTER TABLE usage_entries SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)")
    op.execute("INSERT INTO plans (name, quotas) SELECT DISTINCT plan, '{}'::jsonb FROM tenants")
    op.execute("INSERT INTO plans (name, quotas) VALUES ('standard', '{}') ON CONFLICT DO NOTHING")
    op.add_column("tenants", sa.Column("quotas", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False))
    op.create_foreign_key(op.f("fk_tenants_plan"), "tenants", "plans", ["plan"], ["name"])
    rls.protect("usage", grants="SELECT, INSERT (tenant_id, period, kind, alarmed_at), UPDATE (alarmed_at)")
    rls.protect("usage_entries", grants="SELECT, INSERT")
    rls.force("plans")
    op.execute("CREATE POLICY readable ON plans FOR SELECT TO tenantry_app USING (true)")
    op.execute(f"CREATE POLICY operators ON plans TO tenantry_app USING ({OPERATORS}) WITH CHECK ({OPERATORS})")
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON plans TO tenantry_app")
    rls.install("tenants/sql")
    rls.install("tasks/engine/sql")
    op.execute(
        "INSERT INTO usage (tenant_id, period, kind, amount)"
        " SELECT tenant_id, usage_period(created_at), 'runs', count(*) FROM runs GROUP BY 1, 2"
        " UNION ALL SELECT tenant_id, usage_period(coalesce(finished_at, created_at)), 'workerSeconds',"
        " sum(worker_seconds) FROM runs WHERE worker_seconds > 0 GROUP BY 1, 2"
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_constraint("fk_tenants_plan", "tenants")
    op.drop_column("tenants", "quotas")
    op.drop_table("usage_entries")
    op.drop_table("usage")
    op.drop_table("plans")
    op.drop_column("api_keys", "predecessor_id")
    op.drop_column("api_keys", "address_ranges")

"""Tenants, people, memberships, sessions, keys, refused messages."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations import rls

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = postgresql.TIMESTAMP(timezone=True)
OPERATOR = UUID("00000000-0000-7000-8000-000000000001")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "tenants",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("timezone", sa.Text(), server_default="UTC", nullable=False),
        sa.Column("plan", sa.Text(), server_default="standard", nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("pause_note", sa.Text(), nullable=True),
        sa.Column("suspended_at", MOMENT, nullable=True),
        sa.Column("created_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("slug ~ '^[a-z_][a-z0-9_-]{0,62}$'", name=op.f("ck_tenants_slug")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
        sa.UniqueConstraint("slug", name=op.f("uq_tenants_slug")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("created_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
    )
    op.create_table(
        "tenant_families",
        rls.tenant_column(),
        sa.Column("family", sa.Text(), nullable=False),
        sa.Column("enabled_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_tenant_families_tenant_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "family", name=op.f("pk_tenant_families")),
    )
    op.create_table(
        "memberships",
        rls.tenant_column(),
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("role IN ('OWNER', 'ADMIN', 'MEMBER', 'VIEWER')", name=op.f("ck_memberships_role")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_memberships_tenant_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_memberships_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "user_id", name=op.f("pk_memberships")),
    )
    op.create_table(
        "login_sessions",
        rls.tenant_column(),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("refreshed_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("revoked_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "user_id"],
            ["memberships.tenant_id", "memberships.user_id"],
            name=op.f("fk_login_sessions_tenant_id_user_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_login_sessions")),
    )
    op.create_table(
        "api_keys",
        rls.tenant_column(),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.Text(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("task_names", sa.ARRAY(sa.Text()), nullable=True),
        sa.Column("created_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=True),
        sa.Column("last_used_at", MOMENT, nullable=True),
        sa.Column("revoked_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_api_keys_tenant_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_api_keys")),
    )
    op.create_index("uq_api_keys_secret_hash", "api_keys", ["secret_hash"], unique=True)
    op.create_table(
        "refused_messages",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refused_messages")),
    )
    op.create_table(
        "refused_counts",
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("reason", name=op.f("pk_refused_counts")),
    )
    op.create_index(op.f("ix_refused_messages_at"), "refused_messages", ["at"], unique=False)

    rls.protect("tenants", column="id", grants="SELECT, UPDATE (name, timezone, paused, pause_note)")
    rls.protect("tenant_families", "memberships", "login_sessions", "api_keys")
    rls.force("users")
    op.execute(
        "CREATE POLICY tenant ON users TO tenantry_app"
        " USING (EXISTS (SELECT 1 FROM memberships m WHERE m.user_id = users.id))"
    )
    op.execute("GRANT SELECT (id, email, created_at) ON users TO tenantry_app")
    rls.force("refused_messages")
    rls.open_to_system("refused_messages", "SELECT")
    rls.force("refused_counts")
    rls.open_to_system("refused_counts", "SELECT")
    op.execute("CREATE POLICY readable ON refused_counts FOR SELECT TO tenantry_app USING (true)")
    op.execute("GRANT SELECT ON refused_counts TO tenantry_app")
    rls.open_to_system(
        "tenants", "SELECT (id, slug, name, timezone, plan, paused, suspended_at, created_at), UPDATE (suspended_at)"
    )
    rls.open_to_system("tenant_families", "SELECT")
    rls.install("tenants/sql")
    op.execute(
        sa.text("INSERT INTO tenants (id, slug, name) VALUES (:id, '_operator', 'Operators')").bindparams(id=OPERATOR)
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    rls.uninstall("tenants/sql")
    op.execute("DROP POLICY tenant ON users")
    for table in (
        "refused_messages",
        "refused_counts",
        "api_keys",
        "login_sessions",
        "memberships",
        "tenant_families",
        "users",
        "tenants",
    ):
        op.drop_table(table)

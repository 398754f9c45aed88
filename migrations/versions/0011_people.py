"""People: custom roles, invitations, links of nobody's tenant, who made a key, how a login was opened."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations import rls

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

MOMENT = postgresql.TIMESTAMP(timezone=True)
ROLES = "role IN ('OWNER', 'ADMIN', 'MEMBER', 'VIEWER')"
ONE_ROLE = "(role IS NULL) <> (role_id IS NULL)"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "roles",
        rls.tenant_column(),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_roles_tenant_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_roles")),
    )
    op.create_index("uq_roles_name", "roles", ["tenant_id", "name"], unique=True)
    op.create_table(
        "invitations",
        rls.tenant_column(),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=True),
        sa.Column("role_id", sa.UUID(), nullable=True),
        sa.Column("invited_by", sa.Text(), nullable=False),
        sa.Column("inviter", sa.UUID(), nullable=True),
        sa.Column("created_at", MOMENT, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("accepted_at", MOMENT, nullable=True),
        sa.Column("revoked_at", MOMENT, nullable=True),
        sa.CheckConstraint(ROLES, name=op.f("ck_invitations_role")),
        sa.CheckConstraint(ONE_ROLE, name=op.f("ck_invitations_one_role")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_invitations_tenant_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "role_id"], ["roles.tenant_id", "roles.id"], name=op.f("fk_invitations_tenant_id_role_id")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_invitations")),
    )
    op.create_index(
        "uq_invitations_open",
        "invitations",
        ["tenant_id", "email"],
        unique=True,
        postgresql_where=sa.text("accepted_at IS NULL AND revoked_at IS NULL"),
    )
    op.create_table(
        "account_links",
        rls.tenant_column(),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("detail", postgresql.JSONB(), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("used_at", MOMENT, nullable=True),
        sa.CheckConstraint("kind IN ('RESET', 'SIGN_UP')", name=op.f("ck_account_links_kind")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_account_links_tenant_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_account_links")),
    )
    op.alter_column("memberships", "role", nullable=True)
    op.add_column("memberships", sa.Column("role_id", sa.UUID(), nullable=True))
    op.create_foreign_key(
        op.f("fk_memberships_tenant_id_role_id"),
        "memberships",
        "roles",
        ["tenant_id", "role_id"],
        ["tenant_id", "id"],
    )
    op.create_check_constraint(op.f("ck_memberships_one_role"), "memberships", ONE_ROLE)
    op.create_index("ix_memberships_user_id", "memberships", ["user_id"])
    op.add_column("login_sessions", sa.Column("agent", sa.Text(), nullable=True))
    op.create_index("ix_login_sessions_user_id", "login_sessions", ["user_id"])
    op.add_column("api_keys", sa.Column("made_by", sa.UUID(), nullable=True))
    rls.protect("roles", "invitations", "account_links")
    rls.install("tenants/sql")
    rls.install("tasks/engine/sql")
    for moment, function in (("BEFORE", "lock_person"), ("AFTER", "forget_person")):
        op.execute(
            f"CREATE TRIGGER {function} {moment} DELETE ON memberships FOR EACH ROW EXECUTE FUNCTION {function}()"
        )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for function in ("forget_person", "lock_person"):
        op.execute(f"DROP TRIGGER {function} ON memberships")
    op.drop_column("api_keys", "made_by")
    op.drop_index("ix_login_sessions_user_id", table_name="login_sessions")
    op.drop_column("login_sessions", "agent")
    op.drop_index("ix_memberships_user_id", table_name="memberships")
    op.drop_constraint(op.f("ck_memberships_one_role"), "memberships", type_="check")
    op.drop_constraint(op.f("fk_memberships_tenant_id_role_id"), "memberships", type_="foreignkey")
    # A role that is the tenant's own has no equal among the built-in ones: the least of them is nobody's loss.
    op.execute("UPDATE memberships SET role = 'VIEWER' WHERE role IS NULL")
    op.drop_column("memberships", "role_id")
    op.alter_column("memberships", "role", nullable=False)
    for table in ("account_links", "invitations", "roles"):
        op.drop_table(table)

"""API keys have address ranges and predecessors."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import rls

revision = "0013"
down_revision = "0010"
branch_labels = None
depends_on = None


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
    rls.install("tenants/sql")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column("api_keys", "predecessor_id")
    op.drop_column("api_keys", "address_ranges")

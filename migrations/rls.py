"""Forced row-level security: one policy shape for every tenant's table, and the functions that migrations install."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import sqlalchemy as sa
from alembic import op

APP, OWNER, SYSTEM = "tenantry_app", "tenantry_owner", "tenantry_system"
_ROOT = Path(__file__).resolve().parent.parent
_CURRENT = "(SELECT nullif(current_setting('app.tenant_id', true), '')::uuid)"


def tenant_column() -> sa.Column[UUID]:
    """The first column of every tenant's table: the tenant that the transaction stands in."""
    return sa.Column(
        "tenant_id",
        sa.UUID(),
        server_default=sa.text("nullif(current_setting('app.tenant_id', true), '')::uuid"),
        nullable=False,
    )


def protect(*tables: str, column: str = "tenant_id", grants: str = "SELECT, INSERT, UPDATE, DELETE") -> None:
    """Put tables under forced row-level security.

    Args:
        tables: their names.
        column: the column that names the tenant.
        grants: what the app login may do with its tenant's rows.
    """
    for table in tables:
        force(table)
        condition = f"{column} = {_CURRENT}"
        op.execute(f"CREATE POLICY tenant ON {table} TO {APP} USING ({condition}) WITH CHECK ({condition})")
        op.execute(f"GRANT {grants} ON {table} TO {APP}")


def force(table: str) -> None:
    """Forced row-level security with the owner's policy only: nobody else sees a row until a policy says so."""
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY owner ON {table} TO {OWNER} USING (true) WITH CHECK (true)")


def open_to_system(table: str, grants: str) -> None:
    """Let the system login cross tenants on this table, within its grants.

    Args:
        grants: privileges with their columns, such as `SELECT (id, state), UPDATE (state)`.
    """
    op.execute(f"CREATE POLICY system ON {table} TO {SYSTEM} USING (true) WITH CHECK (true)")
    op.execute(f"GRANT {grants} ON {table} TO {SYSTEM}")


def install(folder: str) -> None:
    """Create or replace every function under the folder, such as `tenants/sql`."""
    for file in sorted((_ROOT / folder).glob("*.sql"), key=lambda path: (path.stem != "first_id", path.stem)):
        op.get_bind().exec_driver_sql(file.read_text(encoding="utf-8").replace("%", "%%"))


def uninstall(folder: str) -> None:
    """Drop every function that the files under the folder create."""
    for file in sorted((_ROOT / folder).glob("*.sql")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("CREATE OR REPLACE FUNCTION "):
                name = line.removeprefix("CREATE OR REPLACE FUNCTION ").partition("(")[0].strip()
                op.execute(f"DROP FUNCTION IF EXISTS {name} CASCADE")

"""Forced row-level security: one policy shape for every tenant's table, and the functions that migrations install."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import sqlalchemy as sa
from alembic import op

APP, OWNER, SYSTEM = "tenantry_app", "tenantry_owner", "tenantry_system"
_ROOT = Path(__file__).resolve().parent.parent
_FREE = sa.text(
    "SELECT p.oid::regprocedure::text FROM pg_proc p"
    " WHERE p.proname = :name AND p.pronamespace = 'public'::regnamespace"
    " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.refclassid = 'pg_proc'::regclass AND d.refobjid = p.oid)"
)
"""The functions of a name that nothing depends on."""
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
    """Create every function under the folder, such as `tenants/sql`, and drop what there was of the same names.

    A function that a trigger or a column depends on is replaced, and so keeps its arguments and its result. What their
    bodies name may come in a later migration.
    """
    op.execute("SET LOCAL check_function_bodies = off")
    for name in _names(folder):
        for (found,) in op.get_bind().execute(_FREE, {"name": name}).all():
            op.execute(f"DROP FUNCTION {found}")
    for file in sorted((_ROOT / folder).glob("*.sql"), key=lambda path: (path.stem != "first_id", path.stem)):
        op.get_bind().exec_driver_sql(file.read_text(encoding="utf-8").replace("%", "%%"))


def uninstall(folder: str) -> None:
    """Drop every function that the files under the folder create."""
    for name in _names(folder):
        op.execute(f"DROP FUNCTION IF EXISTS {name} CASCADE")


def _names(folder: str) -> list[str]:
    """The functions that the files under the folder create."""
    begin = "CREATE OR REPLACE FUNCTION "
    return [
        line.removeprefix(begin).partition("(")[0].strip()
        for file in sorted((_ROOT / folder).glob("*.sql"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.startswith(begin)
    ]

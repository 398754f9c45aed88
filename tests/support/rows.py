"""A row in every table of a tenant, whatever tables there are: what a wall is tried with."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg2
from psycopg2 import extras, sql
from sqlalchemy import make_url

from tests.support.installations import Installation

Row = dict[str, Any]
_FITTING: dict[tuple[str, str], Any] = {
    ("account_links", "kind"): "RESET",
    ("bulk_actions", "kind"): "CANCEL",
    ("limits", "kind"): "RATE",
    ("invitations", "role"): None,
    ("memberships", "role"): None,
    ("runs", "state"): "SUCCEEDED",
    ("sales_settings", "currency"): "EUR",
}
"""Values for columns that a check constraint narrows."""


class Rows:
    """The tables that have a `tenant_id`, and rows made in them past all walls and references.

    Args:
        installation: in whose database.
        admin_url: a superuser's address of the server.
    """

    def __init__(self, installation: Installation, admin_url: str) -> None:
        database = make_url(installation.addresses.app).database
        self._address = make_url(admin_url).set(database=database).render_as_string(hide_password=False)
        self.columns: dict[str, dict[str, str]] = {}
        for table, column, kind in installation.rows("""
            SELECT c.relname, a.attname, format_type(a.atttypid, NULL)
            FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
              AND a.attgenerated = ''
              AND EXISTS (SELECT FROM pg_attribute t WHERE t.attrelid = c.oid AND t.attname = 'tenant_id')
            ORDER BY c.relname, a.attnum
        """):
            self.columns.setdefault(table, {})[column] = kind

    def make(self, tenant: UUID) -> dict[str, Row]:
        """One row of the tenant in every table."""
        made = {table: self.invent(table) | {"tenant_id": tenant} for table in self.columns}
        with closing(psycopg2.connect(self._address)) as admin, admin, admin.cursor() as cursor:
            cursor.execute("SET LOCAL session_replication_role = replica")
            for table, row in made.items():
                cursor.execute(self.insert(table, row), list(row.values()))
        return made

    def invent(self, table: str) -> Row:
        """A row's values but for its tenant, unlike any other's."""
        return {
            column: _FITTING.get((table, column), _value(kind))
            for column, kind in self.columns[table].items()
            if column != "tenant_id" and kind != "xid8"
        }

    @staticmethod
    def insert(table: str, row: Row) -> sql.Composed:
        """The statement that inserts the row."""
        return sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join([sql.Placeholder()] * len(row)),
        )


def _value(kind: str) -> Any:
    match kind:
        case "uuid":
            return uuid4()
        case "text":
            return f"x{uuid4().hex}"
        case "bytea":
            return uuid4().bytes
        case "boolean":
            return False
        case "jsonb":
            return extras.Json({})
        case "text[]":
            return ["x"]
        case "uuid[]":
            return [uuid4()]
        case "timestamp with time zone":
            return datetime.now(UTC)
        case "date":
            return datetime.now(UTC).date()
        case _:
            return 1

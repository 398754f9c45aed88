"""Everything a tenant has in the database, as files: one JSON object a line, one file for each table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
from sqlalchemy import Text, cast, column, func, select, text
from sqlalchemy import table as table_clause
from sqlalchemy.orm import Session

_COLUMNS = text("""
SELECT c.relname, array_agg(a.attname::text ORDER BY a.attnum)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND (c.relname IN ('tenants', 'users') OR EXISTS (
    SELECT FROM pg_attribute t WHERE t.attrelid = c.oid AND t.attname = 'tenant_id'))
  AND has_column_privilege(c.oid, a.attnum, 'SELECT')
GROUP BY c.relname ORDER BY c.relname
""")
"""The tables that hold tenants' rows, with the columns that the login may read."""
SECRET = ("_hash", "sealed")
"""How the columns end that hold or prove a secret: no use to who has the tenant's data, and some to a thief."""


def tables(session: Session) -> dict[str, list[str]]:
    """The tables that hold tenants' rows, and of each the columns that are written."""
    return {
        table: [name for name in columns if not name.endswith(SECRET)] for table, columns in session.execute(_COLUMNS)
    }


def write(session: Session, folder: Path) -> Iterator[tuple[str, int]]:
    """Write every table's rows of the session's tenant; the name of each table written, and how many rows.

    Args:
        session: of which everything is seen at one moment where it is isolated so.
        folder: where the files go, `<table>.jsonl` each; one that is there already is replaced.
    """
    for table, columns in tables(session).items():
        rows_of = select(table_clause(table, *map(column, columns))).subquery()
        statement = select(cast(func.to_jsonb(rows_of.table_valued()), Text))
        rows = 0
        with (folder / f"{table}.jsonl").open("wb") as file:
            for (row,) in session.execute(statement.execution_options(yield_per=1000)):
                file.write(orjson.dumps(orjson.Fragment(row), option=orjson.OPT_APPEND_NEWLINE))
                rows += 1
        yield table, rows

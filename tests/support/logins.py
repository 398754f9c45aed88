"""The database's logins as a test uses them: plain statements, and transactions inside one tenant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg2
from psycopg2 import extensions, sql

Statement = str | sql.Composed


class Login:
    """One autocommit connection of one login.

    Args:
        address: a `postgresql://` address.
    """

    def __init__(self, address: str) -> None:
        self.connection: extensions.connection = psycopg2.connect(address)
        self.connection.autocommit = True

    def rows(self, statement: Statement, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of one statement, in a transaction of its own unless one is open."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, statement: Statement, *values: Any) -> Any:
        """The one value of one statement; None for no row."""
        rows = self.rows(statement, *values)
        return rows[0][0] if rows else None

    def error(self, statement: Statement, *values: Any) -> str | None:
        """The SQLSTATE that a statement ends with; None if it succeeds."""
        try:
            self.rows(statement, *values)
        except psycopg2.Error as error:
            return error.pgcode
        return None

    @contextmanager
    def inside(self, tenant: UUID | None, *, commit: bool = False) -> Iterator[Login]:
        """A transaction inside a tenant, or inside none; rolled back unless it is to be kept."""
        self.rows("BEGIN")
        try:
            if tenant is not None:
                self.rows("SELECT set_config('app.tenant_id', %s, true)", str(tenant))
            yield self
        except BaseException:
            self.rows("ROLLBACK")
            raise
        self.rows("COMMIT" if commit else "ROLLBACK")

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

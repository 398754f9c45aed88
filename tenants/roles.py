"""The database and its three logins: the owner migrates, the app serves tenants, the system looks across them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg2
from psycopg2 import errors, extensions, sql
from sqlalchemy import Connection, make_url, text

from tenants import db
from tenants.errors import Misconfigured

OWNER = "tenantry_owner"
APP = "tenantry_app"
SYSTEM = "tenantry_system"

_LIMITS: dict[str, dict[str, str]] = {
    OWNER: {},
    APP: {"statement_timeout": "330s", "lock_timeout": "10s", "idle_in_transaction_session_timeout": "300s"},
    SYSTEM: {"statement_timeout": "10s", "lock_timeout": "2s", "idle_in_transaction_session_timeout": "1s"},
}
_POWERS = {
    "rolsuper": "NOSUPERUSER",
    "rolbypassrls": "NOBYPASSRLS",
    "rolcreaterole": "NOCREATEROLE",
    "rolcreatedb": "NOCREATEDB",
    "rolreplication": "NOREPLICATION",
}
_LOCK = 0x74656E616E747279
"""Of this module, among the advisory locks: roles belong to the whole server, and two changes at once would collide."""


@dataclass(frozen=True, slots=True)
class Passwords:
    """Of the three logins."""

    owner: str = field(repr=False)
    app: str = field(repr=False)
    system: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Addresses:
    """`postgresql://` addresses of one database, by login."""

    app: str = field(repr=False)
    system: str = field(repr=False)
    owner: str = field(repr=False)


def create(admin_url: str, passwords: Passwords, *, database: str = "tenantry") -> Addresses:
    """Make the database, its logins and what they may do, or bring those there are to what they should be.

    Args:
        admin_url: a login that may create roles and databases; a superuser where the extension `vector` is wanted.
        passwords: the logins' passwords, set anew each time.
        database: name of the database.

    Raises:
        Misconfigured: the server cannot be reached or refuses.
    """
    try:
        with _connect(admin_url) as admin:
            _run(admin, "SELECT pg_advisory_lock(%s)", _LOCK)
            for role, password in ((OWNER, passwords.owner), (APP, passwords.app), (SYSTEM, passwords.system)):
                _make_login(admin, role, password)
            # A function of the owner ends backends of the app, and only a member of a role may do that.
            _run(admin, _with("GRANT {} TO {}", APP, OWNER))
            _make_database(admin, database)
            with _connect(admin_url, database) as inside:
                _furnish(inside)
    except psycopg2.Error as error:
        raise Misconfigured(f"The database could not be set up: {str(error).strip().splitlines()[0]}") from None
    return Addresses(
        app=address(admin_url, APP, passwords.app, database),
        system=address(admin_url, SYSTEM, passwords.system, database),
        owner=address(admin_url, OWNER, passwords.owner, database),
    )


def address(admin_url: str, login: str, password: str, database: str) -> str:
    """The address of a database on the administrator's server for another login."""
    url = make_url(admin_url).set(drivername="postgresql", username=login, password=password, database=database)
    return url.render_as_string(hide_password=False)


def check(url: str) -> None:
    """Connect once, and make sure that row-level security binds the login.

    Raises:
        Misconfigured: it does not.
        sqlalchemy.exc.DBAPIError: the database can't be used.
    """
    engine = db.sync_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:
            refuse_bypass(connection)
    finally:
        engine.dispose()


def refuse_bypass(connection: Connection) -> None:
    """Make sure that row-level security binds this login, so that a wrong address can't open all tenants to all.

    Raises:
        Misconfigured: the login, or a role it is a member of, is a superuser, bypasses row-level security, or owns
            tables or the database.
    """
    reason = connection.scalar(_BYPASS)
    if reason is not None:
        login = connection.scalar(text("SELECT current_user"))
        raise Misconfigured(f"The database login {login} {reason}: use {APP} (tenantry database init makes it).")


_BYPASS = text("""
    SELECT CASE
        WHEN bool_or(rolsuper) THEN 'is a superuser or a member of one'
        WHEN bool_or(rolbypassrls) THEN 'bypasses row-level security'
        WHEN bool_or(rolname = 'tenantry_owner') THEN 'can act as the owner'
        WHEN bool_or(oid IN (SELECT datdba FROM pg_database WHERE datname = current_database()))
            THEN 'owns the database'
        WHEN bool_or(oid IN (SELECT relowner FROM pg_class WHERE relkind IN ('r', 'p'))) THEN 'owns tables'
    END
    FROM pg_roles
    WHERE pg_has_role(current_user, oid, 'MEMBER')
""")


@contextmanager
def _connect(admin_url: str, database: str | None = None) -> Iterator[extensions.connection]:
    url = make_url(admin_url).set(drivername="postgresql")
    if database is not None:
        url = url.set(database=database)
    with closing(psycopg2.connect(url.render_as_string(hide_password=False), connect_timeout=10)) as connection:
        connection.autocommit = True
        yield connection


def _make_login(admin: extensions.connection, role: str, password: str) -> None:
    [(exists,)] = _run(admin, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %s)", role)
    if not exists:
        _run(admin, _with("CREATE ROLE {} LOGIN", role))
    for power, without in _POWERS.items():
        [(has_it,)] = _run(admin, _with("SELECT {} FROM pg_roles WHERE rolname = %s", power), role)
        if has_it:
            _run(admin, _with(f"ALTER ROLE {{}} {without}", role))
    # Hashed here, so that no log of the server ever shows a password.
    _run(
        admin,
        _with("ALTER ROLE {} LOGIN PASSWORD %s", role),
        extensions.encrypt_password(password, role, admin, "scram-sha-256"),
    )
    for limit, value in _LIMITS[role].items():
        _run(admin, _with("ALTER ROLE {} SET {} = %s", role, limit), value)


def _make_database(admin: extensions.connection, database: str) -> None:
    [(exists,)] = _run(admin, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = %s)", database)
    [(superuser,)] = _run(admin, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    if not superuser:
        _run(admin, _with("GRANT {} TO CURRENT_USER", OWNER))
    if not exists:
        _run(admin, _with("CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING 'UTF8'", database, OWNER))
    _run(admin, _with("ALTER DATABASE {} OWNER TO {}", database, OWNER))
    _run(admin, _with("REVOKE ALL ON DATABASE {} FROM PUBLIC", database))
    _run(admin, _with("GRANT CONNECT ON DATABASE {} TO {}, {}", database, APP, SYSTEM))


def _furnish(inside: extensions.connection) -> None:
    _run(inside, _with("ALTER SCHEMA public OWNER TO {}", OWNER))
    _run(inside, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
    _run(inside, _with("GRANT USAGE ON SCHEMA public TO {}, {}", APP, SYSTEM))
    if _run(inside, "SELECT FROM pg_available_extensions WHERE name = 'vector'"):
        with suppress(errors.InsufficientPrivilege):
            _run(inside, "CREATE EXTENSION IF NOT EXISTS vector")


def _with(statement: str, *names: str) -> sql.Composed:
    return sql.SQL(statement).format(*map(sql.Identifier, names))


def _run(connection: extensions.connection, statement: str | sql.Composed, *values: str | int) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall() if cursor.description is not None else []

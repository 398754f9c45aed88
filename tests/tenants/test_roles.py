"""The three logins: each has the powers it needs, and none that row-level security doesn't bind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from psycopg2 import errors

from api.embedded import Servers
from tenants import roles
from tenants.errors import Misconfigured
from tenants.roles import Addresses, Passwords

PASSWORDS = Passwords(owner="owner-for-tests", app="app-for-tests", system="system-for-tests")
DATABASE = "roles_alone"


@pytest.fixture(scope="module")
def addresses(servers: Servers) -> Addresses:
    """A database with its logins, and nothing in it."""
    return roles.create(servers.admin_url, PASSWORDS, database=DATABASE)


@pytest.fixture
def ask(servers: Servers) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
    """Asks as the administrator."""
    with closing(psycopg2.connect(servers.admin_url)) as admin, admin.cursor() as cursor:
        admin.autocommit = True

        def run(statement: str) -> list[tuple[Any, ...]]:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

        yield run


def _run(address: str, statement: str) -> object:
    with closing(psycopg2.connect(address)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        answer = cursor.fetchall()[0][0] if cursor.description else None
        connection.commit()
        return answer


def test_no_login_has_a_power_over_the_server(addresses: Addresses, ask: Callable[[str], list[Any]]) -> None:
    found = ask(
        "SELECT rolname, rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication, rolcanlogin"
        " FROM pg_roles WHERE rolname LIKE 'tenantry\\_%' ORDER BY 1"
    )
    assert found == [(roles.APP, False, True), (roles.OWNER, False, True), (roles.SYSTEM, False, True)]


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE mine (a int)", "CREATE TEMP TABLE mine (a int)", "CREATE SCHEMA mine"]
)
def test_only_the_owner_makes_anything(addresses: Addresses, statement: str) -> None:
    for address in (addresses.app, addresses.system):
        with pytest.raises(errors.InsufficientPrivilege):
            _run(address, statement)
    assert _run(addresses.owner, "SELECT count(*) FROM pg_class WHERE relname = 'mine'") == 0
    _run(addresses.owner, "BEGIN; CREATE TABLE mine (a int); ROLLBACK")


def test_the_logins_are_held_to_their_times(addresses: Addresses) -> None:
    assert _run(addresses.app, "SHOW statement_timeout") == "330s"
    assert _run(addresses.app, "SHOW lock_timeout") == "10s"
    assert _run(addresses.system, "SHOW statement_timeout") == "10s"
    assert _run(addresses.system, "SHOW idle_in_transaction_session_timeout") == "1s"


def test_the_owner_may_end_a_backend_of_the_app_and_the_app_none_of_the_owners(addresses: Addresses) -> None:
    with closing(psycopg2.connect(addresses.app)) as victim, closing(psycopg2.connect(addresses.owner)) as owner:
        with pytest.raises(errors.InsufficientPrivilege):
            _run(addresses.app, f"SELECT pg_terminate_backend({owner.info.backend_pid})")
        assert _run(addresses.owner, f"SELECT pg_terminate_backend({victim.info.backend_pid}, 5000)") is True


def test_a_repeat_takes_away_what_a_login_should_not_have_and_sets_its_password(
    servers: Servers, addresses: Addresses, ask: Callable[[str], list[Any]]
) -> None:
    ask("ALTER ROLE tenantry_app SUPERUSER BYPASSRLS CREATEDB")
    ask("ALTER ROLE tenantry_app PASSWORD 'another'")
    assert roles.create(servers.admin_url, PASSWORDS, database=DATABASE) == addresses
    assert ask("SELECT rolsuper OR rolbypassrls OR rolcreatedb FROM pg_roles WHERE rolname = 'tenantry_app'") == [
        (False,)
    ]
    assert _run(addresses.app, "SELECT current_user") == roles.APP


def test_several_at_once_do_not_collide(servers: Servers) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: roles.create(servers.admin_url, PASSWORDS, database="roles_at_once"), range(4)))
    assert len(set(made)) == 1
    assert _run(made[0].owner, "SELECT current_database()") == "roles_at_once"


def test_passwords_reach_the_server_hashed(servers: Servers, ask: Callable[[str], list[Any]]) -> None:
    assert ask("SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = 'tenantry_app'") == [(True,)]
    assert "for-tests" not in repr(PASSWORDS)


def test_an_address_of_nobody_is_one_sentence(servers: Servers) -> None:
    with pytest.raises(Misconfigured, match=r"The database could not be set up: .*password authentication failed"):
        roles.create(roles.address(servers.admin_url, "nobody", "x", "postgres"), PASSWORDS)


@pytest.mark.parametrize(
    ("grant", "take_back", "reason"),
    [
        ("ALTER ROLE tenantry_app SUPERUSER", "ALTER ROLE tenantry_app NOSUPERUSER", "is a superuser"),
        ("ALTER ROLE tenantry_app BYPASSRLS", "ALTER ROLE tenantry_app NOBYPASSRLS", "bypasses row-level security"),
        (
            "CREATE ROLE strong SUPERUSER; GRANT strong TO tenantry_app",
            "DROP ROLE strong",
            "is a superuser or a member of one",
        ),
    ],
)
def test_a_login_that_row_level_security_does_not_bind_is_refused(
    addresses: Addresses, ask: Callable[[str], list[Any]], grant: str, take_back: str, reason: str
) -> None:
    ask(grant)
    try:
        with pytest.raises(Misconfigured, match=f"{roles.APP} {reason}"):
            roles.check(addresses.app)
    finally:
        ask(take_back)
    roles.check(addresses.app)


def test_an_owner_of_tables_is_refused(servers: Servers, addresses: Addresses) -> None:
    with pytest.raises(Misconfigured, match="can act as the owner"):
        roles.check(addresses.owner)
    inside = servers.admin_url.removesuffix("postgres") + DATABASE
    _run(inside, "CREATE TABLE stray (a int); ALTER TABLE stray OWNER TO tenantry_system")
    try:
        with pytest.raises(Misconfigured, match="tenantry_system owns tables"):
            roles.check(addresses.system)
    finally:
        _run(inside, "DROP TABLE stray")
    roles.check(addresses.system)

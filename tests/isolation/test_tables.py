"""SQL as the app login: no tenant, no rows; one tenant, its own rows and no others, in every table there is."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import UUID, uuid4

import psycopg2
import pytest
from psycopg2 import sql

from api.embedded import Servers
from tenants.context import Principal
from tests.support.installations import Installation
from tests.support.logins import Login
from tests.support.rows import Row, Rows

DENIED = "42501"


@dataclass(frozen=True)
class Neighbours:
    """Two tenants, a row of each in every table, and the app login."""

    rows: Rows
    ours: UUID
    theirs: UUID
    our_rows: dict[str, Row]
    their_rows: dict[str, Row]
    app: Login


@pytest.fixture(scope="module")
def neighbours(installation: Installation, servers: Servers) -> Iterator[Neighbours]:
    rows = Rows(installation, servers.admin_url)
    ours, theirs = installation.tenant("ours").tenant, installation.tenant("theirs").tenant
    app = Login(installation.addresses.app)
    yield Neighbours(rows, ours, theirs, rows.make(ours), rows.make(theirs), app)
    app.close()


def _count(app: Login, table: str, tenant: UUID) -> int:
    return int(app.value(f"SELECT count(*) FROM {table} WHERE tenant_id = %s", tenant))


def _tables(neighbours: Neighbours) -> list[str]:
    return list(neighbours.rows.columns)


def test_there_is_a_row_of_both_in_every_table(neighbours: Neighbours, installation: Installation) -> None:
    for table in _tables(neighbours):
        for tenant in (neighbours.ours, neighbours.theirs):
            assert installation.rows(f"SELECT count(*) > 0 FROM {table} WHERE tenant_id = %s", str(tenant)) == [(True,)]


def test_without_a_tenant_every_table_is_empty(neighbours: Neighbours) -> None:
    for table in (*_tables(neighbours), "tenants"):
        assert neighbours.app.rows(f"SELECT * FROM {table}") == [], table
    assert neighbours.app.rows("SELECT id FROM users") == []


def test_after_a_transaction_of_a_tenant_the_connection_stands_in_none(neighbours: Neighbours) -> None:
    with neighbours.app.inside(neighbours.ours, commit=True) as app:
        assert _count(app, "runs", neighbours.ours) > 0
    assert neighbours.app.value("SELECT current_setting('app.tenant_id', true)") == ""
    for table in _tables(neighbours):
        assert neighbours.app.rows(f"SELECT * FROM {table}") == [], table


def test_without_a_tenant_every_insert_is_refused(neighbours: Neighbours) -> None:
    for table in _tables(neighbours):
        row = neighbours.rows.invent(table)
        for named in ({}, {"tenant_id": neighbours.ours}):
            full = row | named
            assert neighbours.app.error(neighbours.rows.insert(table, full), *full.values()) == DENIED, table
        with neighbours.app.inside(neighbours.ours) as app:
            assert _count(app, table, neighbours.ours) == len(app.rows(f"SELECT * FROM {table}")), table


def test_inside_a_tenant_only_its_rows_are_there(neighbours: Neighbours) -> None:
    with neighbours.app.inside(neighbours.ours) as app:
        for table in _tables(neighbours):
            tenants = {tenant for (tenant,) in app.rows(f"SELECT tenant_id FROM {table}")}
            assert tenants == {neighbours.ours}, table
            assert _count(app, table, neighbours.theirs) == 0, table


def test_anothers_row_is_not_found_by_its_whole_key(neighbours: Neighbours) -> None:
    with neighbours.app.inside(neighbours.ours) as app:
        for table, row in neighbours.their_rows.items():
            known = {column: value for column, value in row.items() if isinstance(value, UUID | str)}
            where = sql.SQL(" AND ").join(
                sql.SQL("{} = {}").format(sql.Identifier(column), sql.Placeholder()) for column in known
            )
            found = app.rows(sql.SQL("SELECT * FROM {} WHERE ").format(sql.Identifier(table)) + where, *known.values())
            assert found == [], table
        assert app.rows("SELECT * FROM tenants WHERE id = %s", neighbours.theirs) == []


@pytest.mark.parametrize("verb", ["UPDATE {table} SET tenant_id = tenant_id", "DELETE FROM {table}"])
def test_anothers_rows_can_be_neither_changed_nor_deleted(neighbours: Neighbours, verb: str) -> None:
    for table in _tables(neighbours):
        with neighbours.app.inside(neighbours.ours) as app, app.connection.cursor() as cursor:
            try:
                cursor.execute(f"{verb.format(table=table)} WHERE tenant_id = %s", (neighbours.theirs,))
            except psycopg2.errors.InsufficientPrivilege:
                continue
            assert cursor.rowcount == 0, table
    with neighbours.app.inside(neighbours.theirs) as app:
        for table in _tables(neighbours):
            assert _count(app, table, neighbours.theirs) > 0, table


def test_nothing_can_be_put_into_another_tenant(neighbours: Neighbours, installation: Installation) -> None:
    def theirs(table: str) -> int:
        [(count,)] = installation.rows(f"SELECT count(*) FROM {table} WHERE tenant_id = %s", str(neighbours.theirs))
        return int(count)

    for table in _tables(neighbours):
        before = theirs(table)
        row = neighbours.rows.invent(table) | {"tenant_id": neighbours.theirs}
        with pytest.raises(psycopg2.errors.InsufficientPrivilege), neighbours.app.inside(neighbours.ours) as app:
            app.rows(neighbours.rows.insert(table, row), *row.values())
        with pytest.raises(psycopg2.errors.InsufficientPrivilege), neighbours.app.inside(neighbours.ours) as app:
            app.rows(f"UPDATE {table} SET tenant_id = %s", neighbours.theirs)
        assert theirs(table) == before, table


def _references(installation: Installation) -> list[tuple[str, str, str, list[str], list[str]]]:
    return [
        (name, child, parent, columns, targets)
        for name, child, parent, columns, targets in installation.rows("""
            SELECT k.conname, k.conrelid::regclass::text, k.confrelid::regclass::text,
                   array(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY u(number, place)
                         JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number ORDER BY u.place),
                   array(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY u(number, place)
                         JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.number ORDER BY u.place)
            FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
            WHERE k.contype = 'f' AND c.relnamespace = 'public'::regnamespace AND NOT c.relispartition
              AND k.conparentid = 0 AND array_length(k.conkey, 1) > 1
        """)
    ]


def test_a_reference_to_anothers_row_is_refused_as_one_to_no_row(
    neighbours: Neighbours, installation: Installation
) -> None:
    references = _references(installation)
    assert len(references) >= 8
    for name, child, parent, columns, targets in references:
        pairs = [(column, target) for column, target in zip(columns, targets, strict=True) if column != "tenant_id"]
        theirs = {column: neighbours.their_rows[parent][target] for column, target in pairs}
        invented = neighbours.rows.invent(parent)
        nobodys = {column: invented[target] for column, target in pairs}
        outcomes = []
        for values in (theirs, nobodys):
            with (
                pytest.raises(psycopg2.errors.ForeignKeyViolation) as refused,
                neighbours.app.inside(neighbours.ours) as app,
            ):
                _point(app, child, values)
            detail = str(refused.value.diag.message_detail)
            for value in (*values.values(), neighbours.ours):
                detail = detail.replace(str(value), "…")
            outcomes.append((refused.value.diag.message_primary, detail.partition("=")[2].partition(")")[2]))
        assert outcomes[0] == outcomes[1], name


def _point(app: Login, child: str, values: Row) -> None:
    """Make our row of the table refer to these values."""
    assignments = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(column), sql.Placeholder()) for column in values
    )
    app.rows(sql.SQL("UPDATE {} SET ").format(sql.Identifier(child)) + assignments, *values.values())


def test_a_person_is_seen_by_the_tenants_it_is_a_member_of_only(
    neighbours: Neighbours, installation: Installation, new_tenant: Callable[..., Principal]
) -> None:
    tenant, person = new_tenant().tenant, uuid4()
    installation.rows("INSERT INTO users (id, email) VALUES (%s, 'ann@example.org')", str(person))
    installation.rows(
        "INSERT INTO memberships (tenant_id, user_id, role) VALUES (%s, %s, 'OWNER')", str(tenant), str(person)
    )
    with neighbours.app.inside(tenant) as app:
        assert app.rows("SELECT email FROM users") == [("ann@example.org",)]
    with neighbours.app.inside(neighbours.ours) as app:
        assert app.rows("SELECT email FROM users WHERE id = %s", person) == []


def test_bulk_loading_past_the_wall_is_not_possible(neighbours: Neighbours) -> None:
    with (
        pytest.raises(psycopg2.errors.FeatureNotSupported),
        neighbours.app.inside(neighbours.ours) as app,
        app.connection.cursor() as cursor,
    ):
        cursor.copy_expert("COPY diagnostics_marks FROM STDIN", io.StringIO())
    assert neighbours.app.error("SET row_security = off; SELECT * FROM runs") == DENIED
    neighbours.app.rows("RESET row_security")
    assert neighbours.app.error("TRUNCATE runs") == DENIED


def test_partitions_cannot_be_reached_past_their_table(neighbours: Neighbours, installation: Installation) -> None:
    partitions = installation.rows("SELECT oid::regclass::text FROM pg_class WHERE relispartition AND relkind = 'r'")
    assert len(partitions) > 20
    for (partition,) in partitions:
        assert neighbours.app.error(f"SELECT * FROM {partition}") == DENIED, partition

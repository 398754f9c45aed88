"""An attempt's own statements beside the erasure of its tenant: whatever comes first, no row is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import psycopg2
import pytest
from psycopg2 import extensions
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from tenants import db, ids, lifecycle, system
from tenants.context import Principal
from tests.support.hands import Hands
from tests.support.installations import Installation

ERASING = "UPDATE tenants SET suspended_at = now(), erasing_since = now() WHERE id = %s"
LATER = "interval '1 h'"
STATEMENTS = {
    "claim": f"SELECT * FROM claim_run(%(t)s, %(r)s, %(f)s, 'diagnostics.echo', 'w', {LATER}, {LATER}, %(token)s)",
    "settle": "SELECT * FROM settle_run(%(t)s, %(r)s, %(f)s, 'SUCCEEDED', '1', NULL, NULL, 0, false, NULL, '1 s')",
    "crash": "SELECT * FROM report_crash(%(t)s, %(r)s, %(f)s, 'lost', 3, '1 s')",
    "begin effect": "SELECT * FROM begin_effect(%(t)s, %(r)s, %(f)s, 'new', %(token)s)",
    "finish effect": "SELECT finish_effect(%(t)s, %(r)s, %(f)s, 'begun', '1')",
    "forget effect": "SELECT forget_effect(%(t)s, %(r)s, %(f)s, 'begun')",
    "extend": f"SELECT extend_run(%(t)s, %(r)s, %(f)s, {LATER})",
    "progress": "SELECT save_progress(%(t)s, %(r)s, %(f)s, 1, 2, 'half')",
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt and one of its statements, in a transaction of its own."""

    connection: extensions.connection
    statement: str
    values: dict[str, object]

    def act(self) -> None:
        """Run the statement and leave its transaction open."""
        with self.connection.cursor() as cursor:
            cursor.execute(self.statement, self.values)

    def try_to_act(self) -> None:
        """Run the statement; where it is not refused, commit it."""
        try:
            self.act()
        except psycopg2.Error as refused:
            if refused.pgcode != "TN010":
                raise
            self.connection.rollback()
        else:
            self.connection.commit()


@pytest.fixture(params=STATEMENTS)
def attempt(request: pytest.FixtureRequest, hands: Hands, tenant: Principal) -> Iterator[Attempt]:
    """Each of an attempt's statements."""
    run = hands.installation.trigger(tenant, "diagnostics.echo")
    fence = hands.release(tenant, run)[run]
    if request.param != "claim":
        assert hands.claim(tenant, run, fence) is not None
    with closing(psycopg2.connect(hands.installation.addresses.app)) as connection:
        values = {"t": str(tenant.tenant), "r": str(run), "f": fence, "token": str(ids.new())}
        if "'begun'" in STATEMENTS[request.param]:
            Attempt(connection, STATEMENTS["begin effect"].replace("'new'", "'begun'"), values).try_to_act()
        yield Attempt(connection, STATEMENTS[request.param], values)


@pytest.fixture
def operator(installation: Installation) -> Iterator[Connection]:
    """A connection of who erases, whose statements hardly wait for a lock."""
    with system.connect(installation.settings) as connection:
        with connection.begin():
            connection.exec_driver_sql("SET lock_timeout = '100ms'")
        yield connection


def test_an_erasure_waits_for_what_an_attempt_has_begun_and_takes_it_with_it(
    hands: Hands, tenant: Principal, attempt: Attempt, operator: Connection
) -> None:
    attempt.act()
    hands.owner.call(ERASING, tenant.tenant)
    [(free,)] = hands.owner.call("SELECT pg_try_advisory_xact_lock(tenant_lock(%s))", tenant.tenant)
    if free:  # No lease would stand in the way for long: then a row that the statement holds must.
        with pytest.raises(OperationalError) as waited:
            list(lifecycle.erase_rows(operator, tenant.tenant))
        assert db.sqlstate(waited.value) == "55P03"
    attempt.connection.commit()
    hands.owner.call("UPDATE run_leases SET expires_at = now() WHERE tenant_id = %s", tenant.tenant)
    lifecycle.begin_erasure(operator, tenant.tenant, "tests")
    list(lifecycle.erase_rows(operator, tenant.tenant))
    lifecycle.end(operator, tenant.tenant)
    assert lifecycle.rows_left(operator, tenant.tenant) == {}


def test_what_an_attempt_begins_when_the_rows_are_gone_leaves_none(
    hands: Hands, tenant: Principal, attempt: Attempt, operator: Connection
) -> None:
    hands.owner.call(ERASING, tenant.tenant)
    list(lifecycle.erase_rows(operator, tenant.tenant))
    attempt.try_to_act()
    assert lifecycle.rows_left(operator, tenant.tenant) == {"tenants": 1}


def test_progress_is_not_noted_of_a_tenant_that_is_being_erased(hands: Hands, tenant: Principal) -> None:
    run, fence = hands.running(tenant)
    values = (tenant.tenant, run, fence)
    hands.app.call("SELECT save_progress(%s, %s, %s, 1, 2, 'half')", *values)
    hands.owner.call(ERASING, tenant.tenant)
    hands.app.call("SELECT save_progress(%s, %s, %s, 2, 2, 'whole')", *values)
    assert hands.owner.call("SELECT message FROM run_progress WHERE run_id = %s", run) == [("half",)]

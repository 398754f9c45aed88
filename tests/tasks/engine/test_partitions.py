"""Weeks of runs: made ahead of time, also where rows were there first, and dropped when nobody needs them any more."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import timedelta
from uuid import UUID

import psycopg2
import pytest
from psycopg2 import errors

from tenants import ids
from tenants.context import Principal
from tests.support.hands import Hands
from tests.support.installations import Installation

COLUMNS = "task, queue, args, priority, rank, state, max_attempts, actor_kind, actor, available_at"


def test_rows_that_wait_in_the_default_partition_move_in_with_their_week(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    """As where a clock was ahead, or no dispatcher ran for long."""
    run = installation.trigger(tenant, "diagnostics.echo", delay_seconds=3600)
    [(early,)] = installation.rows(
        "SELECT (substr(first_id(now() + interval '60 days')::text, 1, 8) || substr(%s, 9))::uuid", str(run)
    )
    installation.rows(
        f"INSERT INTO runs (tenant_id, id, {COLUMNS}) SELECT tenant_id, %s, {COLUMNS} FROM runs WHERE id = %s",
        str(early), str(run),
    )  # fmt: skip
    installation.rows(
        "INSERT INTO run_events (tenant_id, run_id, sequence, state, attempt) VALUES (%s, %s, 1, 'SCHEDULED', 0)",
        str(tenant.tenant), str(early),
    )  # fmt: skip
    before = installation.rows("SELECT * FROM run_events WHERE run_id = %s", str(early))
    assert _lies_in(installation, "runs", early) == "runs_default"

    [(made,)] = hands.system.call("SELECT ensure_partitions(70)")

    assert made > 0
    for table in ("runs", "run_events"):
        assert _lies_in(installation, table, early).startswith(f"{table}_p2")
        for login in ("tenantry_app", "tenantry_system"):
            direct = "SELECT has_table_privilege(%s, %s, 'SELECT, INSERT, UPDATE, DELETE')"
            assert installation.rows(direct, login, _lies_in(installation, table, early)) == [(False,)]
    assert installation.rows("SELECT * FROM run_events WHERE run_id = %s", str(early)) == before
    assert installation.run(tenant, UUID(str(early))).state == "SCHEDULED"
    assert hands.system.call("SELECT ensure_partitions(70)") == [(0,)]


def test_a_week_is_made_while_transactions_that_have_triggered_runs_are_open(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    run = installation.trigger(tenant, "diagnostics.echo")
    with closing(psycopg2.connect(installation.addresses.owner)) as task, task.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO runs (tenant_id, id, {COLUMNS}) SELECT tenant_id, %s, {COLUMNS} FROM runs WHERE id = %s",
            (str(ids.new()), str(run)),
        )
        assert hands.system.call("SELECT ensure_partitions(80)") > [(0,)]
    indexes = (
        "SELECT relname, (SELECT count(*) FROM pg_index WHERE indrelid = c.oid) FROM pg_class c WHERE relname ~ %s"
    )
    for table in ("runs", "run_events", "run_steps", "run_progress"):
        found = installation.rows(indexes, f"^{table}(_p[0-9]+|_default)?$")
        assert len(found) > 10
        assert len({count for _, count in found}) == 1, found


def test_a_week_is_made_later_where_somebody_holds_what_waits_for_it(installation: Installation, hands: Hands) -> None:
    with closing(psycopg2.connect(installation.addresses.owner)) as reader, reader.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM runs")
        _is_put_off_at_once(hands, "SELECT ensure_partitions(90)")
    assert hands.system.call("SELECT ensure_partitions(90, 1)") == [(1,)]
    assert hands.system.call("SELECT ensure_partitions(90)") > [(0,)]


def test_a_week_is_dropped_when_all_its_runs_have_ended_as_long_ago_as_they_are_kept(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    """A run may be delayed for longer than runs are kept: it is kept as long as any other, from its end on."""
    names = _make_week(installation, timedelta(days=45))
    given = installation.trigger(tenant, "diagnostics.echo", delay_seconds=3600)
    [(run,)] = installation.rows("SELECT first_id(now() - interval '45 days')")
    installation.rows(
        f"INSERT INTO runs (tenant_id, id, {COLUMNS}) SELECT tenant_id, %s, {COLUMNS} FROM runs WHERE id = %s",
        str(run), str(given),
    )  # fmt: skip
    installation.rows(
        "INSERT INTO run_events (tenant_id, run_id, sequence, state, attempt) VALUES (%s, %s, 1, 'SCHEDULED', 0)",
        str(tenant.tenant), str(run),
    )  # fmt: skip
    assert (_lies_in(installation, "runs", run), _lies_in(installation, "run_events", run)) == names[:2]
    assert _drop(hands) == 0
    ended = "UPDATE runs SET state = 'SUCCEEDED', finished_at = now() - %s WHERE id = %s"
    installation.rows(ended, timedelta(days=29), str(run))
    assert _drop(hands) == 0
    assert installation.history(run) == [(1, "SCHEDULED", 0)]
    installation.rows(ended, timedelta(days=31), str(run))
    assert _drop(hands) == 4
    assert installation.rows("SELECT 1 FROM pg_class WHERE relname = ANY (%s)", list(names)) == []
    assert installation.history(run) == []


def test_a_week_is_dropped_later_where_a_run_is_at_work_on_runs(installation: Installation, hands: Hands) -> None:
    names = _make_week(installation, timedelta(days=60))
    with closing(psycopg2.connect(installation.addresses.owner)) as task, task.cursor() as cursor:
        cursor.execute("SELECT FROM runs WHERE id = first_id(now())")
        _is_put_off_at_once(hands, "SELECT drop_ended_partitions(now() - interval '30 days')")
    assert _drop(hands) == len(names)


def test_weeks_begin_on_mondays_whatever_the_clocks_of_the_session_do(installation: Installation) -> None:
    with closing(psycopg2.connect(installation.addresses.system)) as far, far, far.cursor() as cursor:
        cursor.execute("SET timezone = 'America/New_York'")
        cursor.execute("SELECT ensure_partitions(240)")
    weeks = installation.rows(
        "SELECT to_date(right(relname, 8), 'YYYYMMDD') FROM pg_class WHERE relname ~ '^runs_p[0-9]+$'"
    )
    assert len(weeks) >= 35
    assert {week.isoweekday() for (week,) in weeks} == {1}


def _is_put_off_at_once(hands: Hands, statement: str) -> None:
    """For who waits for a lock lets wait behind it who is quicker: it would be for 2 s, as this login may."""
    started = time.monotonic()
    with pytest.raises(errors.LockNotAvailable):
        hands.system.call(statement)
    assert time.monotonic() - started < 1


def _drop(hands: Hands) -> int:
    """Drop one partition after the other of what is kept for 30 days; how many there were."""
    count = 0
    while hands.system.call("SELECT drop_ended_partitions(now() - interval '30 days')") == [(1,)]:
        count += 1
    return count


def _make_week(installation: Installation, age: timedelta) -> tuple[str, ...]:
    """The partitions of a week long ago, as they were made in time."""
    tables = ("runs", "run_events", "run_steps", "run_progress")
    [(name, first, following)] = installation.rows(
        "SELECT to_char(week, '\"_p\"YYYYMMDD'), first_id(week AT TIME ZONE 'UTC')::text,"
        " first_id((week + interval '7 days') AT TIME ZONE 'UTC')::text"
        " FROM date_trunc('week', (now() - %s) AT TIME ZONE 'UTC') AS week",
        age,
    )
    for table in tables:
        installation.rows(
            f"CREATE TABLE {table}{name} PARTITION OF {table} FOR VALUES FROM (%s) TO (%s)", first, following
        )
    return tuple(table + name for table in tables)


def _lies_in(installation: Installation, table: str, run: UUID) -> str:
    column = "id" if table == "runs" else "run_id"
    [(name,)] = installation.rows(f"SELECT tableoid::regclass::text FROM {table} WHERE {column} = %s", str(run))
    return str(name)

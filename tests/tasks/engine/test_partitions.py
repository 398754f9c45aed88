"""Weeks of runs: made ahead of time, also where rows were there first."""

from __future__ import annotations

from uuid import UUID

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


def _lies_in(installation: Installation, table: str, run: UUID) -> str:
    column = "id" if table == "runs" else "run_id"
    [(name,)] = installation.rows(f"SELECT tableoid::regclass::text FROM {table} WHERE {column} = %s", str(run))
    return str(name)

"""Housekeeping takes long, for much is over or somebody holds what it needs: the runs of all tenants go on."""

from __future__ import annotations

import signal
from contextlib import closing

import psycopg2

from tenants.context import Principal
from tests.faults.invariants import assert_invariants
from tests.support.installations import Installation, eventually

_WAITS = "SELECT 1 FROM pg_locks WHERE relation = 'idempotency_keys'::regclass AND NOT granted"


def test_housekeeping_that_takes_long_holds_up_no_run_and_no_end(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    installation.rows(
        "INSERT INTO idempotency_keys (tenant_id, key, run_id, digest, expires_at)"
        " VALUES (%s, 'order', gen_random_uuid(), 'd', now() - interval '1 h')",
        str(tenant.tenant),
    )
    patient = f"{installation.addresses.system}?options=-c%20lock_timeout%3D60s"
    installation.start_worker()
    with closing(psycopg2.connect(installation.addresses.owner)) as holder, holder.cursor() as cursor:
        cursor.execute("LOCK TABLE idempotency_keys IN SHARE MODE")
        installation.start_dispatcher("d1", DATABASE_SYSTEM_URL=patient)
        eventually(lambda: installation.rows(_WAITS))
        run = installation.trigger(other_tenant, "diagnostics.echo")
        assert installation.ended(other_tenant, run).state == "SUCCEEDED"
        assert installation.rows(_WAITS)
        installation.kill("d1", signal.SIGTERM, group=False)
        assert installation.processes["d1"].wait(20) == 0
        assert not installation.rows("SELECT 1 FROM dispatcher_leader WHERE expires_at > clock_timestamp()")
        installation.start_dispatcher("d2")
        run = installation.trigger(other_tenant, "diagnostics.echo")
        assert installation.ended(other_tenant, run).state == "SUCCEEDED"
    eventually(lambda: not installation.rows("SELECT 1 FROM idempotency_keys"))
    assert_invariants(installation)

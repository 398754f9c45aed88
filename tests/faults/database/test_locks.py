"""The database answers some and not others: a lock is held, a backend stands still, no connection is left, the disk is
full. Rows 30–32.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from uuid import UUID

import psycopg2

from tasks.engine.runs import TriggerRequest
from tenants import ids
from tenants.context import Principal
from tests.faults.callers import Patient
from tests.faults.invariants import assert_invariants
from tests.faults.servers import Server
from tests.support import apis
from tests.support.installations import Installation, eventually
from tests.support.proxy import Proxy

WRITE = TriggerRequest("diagnostics.write", {"key": "k", "value": "v"})
CANCEL = "mutation($id: ID!) { cancelRun(id: $id) { success } }"


@contextmanager
def _locked(installation: Installation, run: UUID) -> Iterator[None]:
    """Hold the run's row, as a session does that has forgotten to end its transaction."""
    with closing(psycopg2.connect(installation.addresses.owner)) as holder, holder.cursor() as cursor:
        cursor.execute("SELECT 1 FROM runs WHERE id = %s FOR UPDATE", (str(run),))
        yield


def _others_proceed(installation: Installation, tenant: Principal) -> None:
    for _ in range(3):
        ended = installation.ended(tenant, installation.trigger(tenant, WRITE.task_name, dict(WRITE.args)))
        assert (ended.state, ended.attempt) == ("SUCCEEDED", 1)


def test_row_30_a_claim_that_meets_a_held_lock_gives_up_and_others_proceed(
    installation: Installation, tenant: Principal, server: Server, database_proxy: Proxy
) -> None:
    """By the login's own lock_timeout, shortened here. The run is claimed once the lock is gone."""
    name = installation.rows("SELECT current_database()")[0][0]
    with closing(psycopg2.connect(server.address)) as admin, admin, admin.cursor() as cursor:
        cursor.execute(f"ALTER ROLE tenantry_app IN DATABASE {name} SET lock_timeout = '500ms'")
    trap = database_proxy.trap(b"claim_run")
    installation.start_dispatcher()
    installation.start_worker("w1", DATABASE_URL=database_proxy.through(installation.addresses.app))
    run = installation.trigger(tenant, WRITE.task_name, dict(WRITE.args))
    trap.wait()
    with _locked(installation, run):
        trap.release()
        eventually(lambda: "LockNotAvailable" in installation.log("w1"))
        _others_proceed(installation, tenant)
        assert installation.states(run) == ["QUEUED", "RELEASED"]
    assert installation.ended(tenant, run).attempt == 1
    assert installation.processes["w1"].poll() is None
    assert_invariants(installation)


def test_row_30_a_mutation_that_meets_a_held_lock_is_answered_in_time_and_others_proceed(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    """The dispatcher passes the run over and keeps on: it would else lead for as long, and do nothing for others."""
    installation.environment["TENANTRY_ENGINE__LEADERSHIP_SECONDS"] = "60"
    with apis.running(installation, TENANTRY_DATABASE__STATEMENT_SECONDS="0.5") as api:
        run = installation.trigger(tenant, WRITE.task_name, dict(WRITE.args))
        caller = api.caller(tenant)
        with _locked(installation, run):
            answer = caller.post(CANCEL, {"id": ids.show("run", run)})
            assert answer.status_code == 503
            assert answer.json()["errors"][0]["extensions"]["code"] == "UNAVAILABLE"
            installation.start_dispatcher()
            installation.start_worker()
            for principal in (other_tenant, tenant):
                _others_proceed(installation, principal)
            assert installation.states(run) == ["QUEUED"]
        assert installation.ended(tenant, run).attempt == 1
        assert_invariants(installation)


def test_row_30_a_backend_that_stands_still_inside_a_transaction_holds_up_its_own_run_only(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    """It has locked its lease and is about to commit a step: nobody can end it, and nobody waits for it."""
    trap = database_proxy.trap(b"'step-2'", b"hold_lease", b"COMMIT")
    installation.start_dispatcher()
    installation.start_worker("w1", DATABASE_URL=database_proxy.through(installation.addresses.app))
    run = installation.trigger(tenant, "diagnostics.steps", {"key": "k", "count": 5})
    trap.wait()
    ((backend,),) = installation.rows(
        "SELECT pid FROM pg_stat_activity WHERE application_name ~ %s AND datname = current_database()", f"^{run}/"
    )
    os.kill(backend, signal.SIGSTOP)
    try:
        trap.release()
        _others_proceed(installation, tenant)
        eventually(
            lambda: installation.rows("SELECT 1 FROM run_leases WHERE expires_at < clock_timestamp() - interval '1 s'")
        )
        _others_proceed(installation, tenant)
    finally:
        os.kill(backend, signal.SIGCONT)
    assert installation.ended(tenant, run).state == "SUCCEEDED"
    assert_invariants(installation)


@contextmanager
def _exhausted(server: Server) -> Iterator[None]:
    """Take every connection that the server has left."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(closing(psycopg2.connect(server.address)))
            except psycopg2.OperationalError:
                break
        yield


def test_row_31_without_a_connection_left_callers_are_told_to_come_back_and_all_recovers(
    installation: Installation, tenant: Principal, server: Server
) -> None:
    installation.start_dispatcher()
    installation.start_worker()
    with apis.running(installation) as api:
        caller = Patient(installation, tenant, [api])
        runs = [caller.trigger(WRITE.task_name, WRITE.args)]
        assert not caller.refusals
        with ThreadPoolExecutor(1) as pool:
            with _no_connection_left(server):
                asked = pool.submit(caller.trigger, WRITE.task_name, WRITE.args)
                eventually(lambda: "UNAVAILABLE" in caller.refusals)
            runs.append(asked.result(60))
        for run in runs:
            assert installation.ended(tenant, run).state == "SUCCEEDED"
        assert "Traceback" not in installation.log(api.name)
    assert installation.processes["w1"].poll() is None
    assert installation.processes["d1"].poll() is None
    assert_invariants(installation)


@contextmanager
def _no_connection_left(server: Server) -> Iterator[None]:
    """End every connection of the installation's, and take those that are free then before it can."""
    with closing(psycopg2.connect(server.address)) as admin, _exhausted(server), ExitStack() as more:
        admin.autocommit = True
        with admin.cursor() as cursor:
            for _ in range(10):
                cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'tenantry%'")
                more.enter_context(_exhausted(server))
        yield


def test_row_31_pools_are_bounded_however_many_ask_at_once(
    installation: Installation, tenant: Principal, other_tenant: Principal, database_proxy: Proxy
) -> None:
    installation.start_dispatcher()
    installation.start_worker()
    bounded = {
        "DATABASE_URL": database_proxy.through(installation.addresses.app),
        "TENANTRY_DATABASE__POOL_SIZE": "4",
    }
    with apis.running(installation, **bounded) as api, ThreadPoolExecutor(40) as pool:
        callers = [Patient(installation, principal, [api]) for principal in (tenant, other_tenant)] * 20
        asked = [pool.submit(caller.trigger, WRITE.task_name, WRITE.args) for caller in callers * 3]
        most = 0
        while not all(one.done() for one in asked):
            most = max(most, database_proxy.connections)
            threading.Event().wait(0.01)
        for one in asked:
            one.result()
        assert 1 <= most <= 4
    assert_invariants(installation)


def test_row_32_a_full_disk_under_the_log_of_the_database_leaves_whole_runs_or_none(
    installation: Installation, tenant: Principal, server: Server
) -> None:
    """The server may write no more, as on a full disk: it crashes, and starts again once there is room."""
    installation.start_dispatcher()
    installation.start_worker()
    with apis.running(installation) as api:
        caller = Patient(installation, tenant, [api])
        runs = [caller.trigger(WRITE.task_name, {**WRITE.args, "hold_seconds": 0.2}) for _ in range(5)]
        server.fill()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(caller.trigger, WRITE.task_name, WRITE.args)
            eventually(lambda: "UNAVAILABLE" in caller.refusals)
            server.kill(signal.SIGQUIT)
            server.start()
            runs.append(asked.result(60))
        for run in runs:
            assert installation.ended(tenant, run).state == "SUCCEEDED"
        assert len(installation.rows("SELECT 1 FROM runs")) == len(runs)
    assert installation.processes["w1"].poll() is None
    assert_invariants(installation)

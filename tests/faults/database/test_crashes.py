"""PostgreSQL crashes, is away, or is slow. Rows 28, 29, 56."""

from __future__ import annotations

import signal
import threading
import time

import psycopg2
import pytest
import sqlalchemy.exc

from tasks.engine.runs import TriggerRequest
from tenants.context import Principal
from tenants.roles import Addresses
from tests.faults.conftest import LEASE_SECONDS
from tests.faults.invariants import assert_invariants
from tests.faults.servers import Server
from tests.support.installations import Installation, eventually
from tests.support.proxy import Proxy

WRITE = TriggerRequest("diagnostics.write", {"key": "k", "value": "v", "hold_seconds": 0.2})
STEPS = TriggerRequest("diagnostics.steps", {"key": "k", "count": 5, "seconds": 0.5})
POINTS = (
    (b"claim_run",),
    (b"renew_leases",),
    (b"'step-2'", b"hold_lease"),
    (b"settle_run",),
    (b"settle_run", b"COMMIT"),
)
RECOVERED_SECONDS = 30.0
"""Twice what the matrix states."""


def _succeeded(installation: Installation) -> int:
    ((count,),) = installation.rows("SELECT count(*) FROM runs WHERE state = 'SUCCEEDED'")
    return int(count)


def _crash(server: Server) -> None:
    server.kill(signal.SIGQUIT)
    server.start()


@pytest.mark.parametrize("answer", [False, True], ids=["before", "after"])
def test_row_28_crashes_of_the_database_under_a_worker(
    installation: Installation, tenant: Principal, server: Server, database_proxy: Proxy, answer: bool
) -> None:
    """One worker lives through them all: at the claim, a renewal, a step, the settlement, and the commit."""
    installation.start_dispatcher()
    installation.start_worker("w1", DATABASE_URL=database_proxy.through(installation.addresses.app))
    for texts in POINTS:
        trap = database_proxy.trap(*texts, answer=answer)
        runs = installation.trigger_many(tenant, [WRITE, STEPS, WRITE, STEPS])
        trap.wait()
        _crash(server)
        recovered = time.monotonic()
        trap.release()
        later = installation.trigger(tenant, WRITE.task_name, dict(WRITE.args))
        assert installation.ended(tenant, later).state == "SUCCEEDED", texts
        assert time.monotonic() - recovered < RECOVERED_SECONDS, texts
        for run in runs:
            assert installation.ended(tenant, run).state == "SUCCEEDED", texts
    assert installation.processes["w1"].poll() is None
    assert_invariants(installation)


@pytest.mark.parametrize("text", [b"requeue_unclaimed_runs", b"release_runs", b"take_lead"])
def test_row_28_a_crash_of_the_database_under_a_dispatcher(
    installation: Installation, tenant: Principal, server: Server, database_proxy: Proxy, text: bytes
) -> None:
    installation.start_worker()
    trap = database_proxy.trap(text, answer=True)
    installation.start_dispatcher("d1", DATABASE_SYSTEM_URL=database_proxy.through(installation.addresses.system))
    runs = installation.trigger_many(tenant, [WRITE] * 4)
    trap.wait()
    _crash(server)
    recovered = time.monotonic()
    trap.release()
    for run in runs:
        assert installation.ended(tenant, run).state == "SUCCEEDED"
    assert time.monotonic() - recovered < RECOVERED_SECONDS
    assert_invariants(installation)


def test_row_28_a_crash_of_the_database_under_a_caller_leaves_a_run_or_none(
    installation: Installation, tenant: Principal, server: Server, database_proxy: Proxy
) -> None:
    installation.start_dispatcher()
    installation.start_worker()
    installation.lead()
    direct = installation.addresses
    installation.addresses = Addresses(database_proxy.through(direct.app), direct.system, direct.owner)
    trap = database_proxy.trap(b"trigger_runs")
    refused: list[BaseException] = []

    def call() -> None:
        try:
            installation.trigger(tenant, WRITE.task_name, {**WRITE.args}, idempotency_key="once")
        except (sqlalchemy.exc.OperationalError, psycopg2.OperationalError) as error:
            refused.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    trap.wait()
    _crash(server)
    trap.release()
    caller.join(10)
    assert refused
    assert not installation.rows("SELECT 1 FROM runs")
    run = installation.trigger(tenant, WRITE.task_name, {**WRITE.args}, idempotency_key="once")
    assert installation.ended(tenant, run).attempt == 1
    assert_invariants(installation)


def test_row_29_while_the_database_is_away_nothing_is_done_twice(
    installation: Installation, tenant: Principal, server: Server
) -> None:
    installation.start_dispatcher()
    installation.start_worker()
    runs = installation.trigger_many(tenant, [WRITE, STEPS] * 5)
    eventually(lambda: _succeeded(installation))
    server.kill(signal.SIGQUIT)
    eventually(lambda: "lease_keeper_waits" in installation.log("w1"))
    threading.Event().wait(2 * LEASE_SECONDS)  # The fault itself: every lease is over.
    server.start()
    recovered = time.monotonic()
    before = _succeeded(installation)
    eventually(lambda: _succeeded(installation) > before, RECOVERED_SECONDS)
    assert time.monotonic() - recovered < RECOVERED_SECONDS
    for run in runs:
        assert installation.ended(tenant, run).state == "SUCCEEDED"
    assert installation.processes["w1"].poll() is None
    assert_invariants(installation)


def test_row_56_under_a_slow_database_time_limits_hold_and_no_lease_is_lost(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    """Two seconds for each statement: a round of the keeper's takes several, a lease is ten."""
    installation.environment.update(
        TENANTRY_ENGINE__LEASE_SECONDS="10", TENANTRY_ENGINE__RENEW_SECONDS="2", TENANTRY_ENGINE__UNCLAIMED_SECONDS="10"
    )
    installation.start_dispatcher()
    installation.start_worker("w1", DATABASE_URL=database_proxy.through(installation.addresses.app))
    asleep = installation.trigger(tenant, "diagnostics.sleep", {"seconds": 14})
    eventually(lambda: "RUNNING" in installation.states(asleep))
    database_proxy.slow(2.0, beginning=b"Q")
    limited = installation.trigger(tenant, "diagnostics.limited", {"seconds": 60})
    eventually(lambda: "RUNNING" in installation.states(limited))
    claimed = time.monotonic()
    eventually(lambda: "SCHEDULED" in installation.states(limited))
    assert time.monotonic() - claimed < 10  # Its soft limit is 1 s, its hard one 2 s; what is slow is the settlement.
    ended = installation.ended(tenant, asleep, 40)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 1, 0)
    database_proxy.slow(0)
    assert installation.ended(tenant, limited, 40).crashes == 0
    assert_invariants(installation)


def test_row_56_a_worker_that_the_database_no_longer_answers_fences_itself_after_one_lease(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    installation.start_dispatcher()
    installation.start_worker("w1", DATABASE_URL=database_proxy.through(installation.addresses.app))
    run = installation.trigger(tenant, "diagnostics.sleep", {"seconds": 60})
    eventually(lambda: "RUNNING" in installation.states(run))
    database_proxy.freeze()
    frozen = time.monotonic()
    eventually(lambda: "attempt_killed" in installation.log("w1"))
    assert LEASE_SECONDS / 2 < time.monotonic() - frozen < 2 * LEASE_SECONDS
    eventually(lambda: "SCHEDULED" in installation.states(run))
    database_proxy.thaw()
    installation.kill("w1")
    installation.rows("UPDATE runs SET args = '{\"seconds\": 0}'")
    installation.start_worker("w2")
    assert installation.ended(tenant, run).state == "SUCCEEDED"
    assert_invariants(installation)

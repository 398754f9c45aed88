"""A line to PostgreSQL is half open: what is sent is taken, no answer comes, and new connections work. Row 30."""

from __future__ import annotations

from tasks.engine import runs
from tenants.context import Principal
from tests.faults.invariants import assert_invariants
from tests.support.installations import Installation
from tests.support.proxy import Proxy

WRITE = {"key": "k", "value": "v"}


def test_a_dispatcher_comes_back(installation: Installation, tenant: Principal, database_proxy: Proxy) -> None:
    address = database_proxy.through(installation.addresses.system)
    installation.start_dispatcher(DATABASE_SYSTEM_URL=address, TENANTRY_ENGINE__ANSWER_SECONDS="1")
    installation.start_worker()
    installation.ended(tenant, installation.trigger(tenant, "diagnostics.write", WRITE))
    database_proxy.swallow()
    installation.ended(tenant, installation.trigger(tenant, "diagnostics.write", WRITE), 40)
    assert_invariants(installation)


def test_a_worker_comes_back(installation: Installation, tenant: Principal, database_proxy: Proxy) -> None:
    """The keeper's lines, and those of its only child: the one it claims over, and the one of its sessions."""
    installation.start_dispatcher()
    installation.start_worker(concurrency=1, DATABASE_URL=database_proxy.through(installation.addresses.app))
    installation.ended(tenant, installation.trigger(tenant, "diagnostics.write", WRITE))
    database_proxy.swallow()
    ended = installation.ended(tenant, installation.trigger(tenant, "diagnostics.write", WRITE), 40)
    assert (ended.state, ended.crashes) == ("SUCCEEDED", 0)
    assert_invariants(installation)


def test_a_claim_whose_answer_never_comes_does_not_hold_its_process(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    trap = database_proxy.trap(b"claim_run", answer=True)
    installation.start_dispatcher()
    installation.start_worker(concurrency=1, DATABASE_URL=database_proxy.through(installation.addresses.app))
    run = installation.trigger(tenant, "diagnostics.write", WRITE)
    trap.wait()
    ended = installation.ended(tenant, run, 40)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 1, 0), "it was asked again with its token"
    assert_invariants(installation)


def test_no_lease_is_lost_with_the_keepers_line(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    installation.environment["TENANTRY_ENGINE__LEASE_SECONDS"] = "4"
    trap = database_proxy.trap(b"renew_leases", answer=True)
    installation.start_dispatcher()
    installation.start_worker(DATABASE_URL=database_proxy.through(installation.addresses.app))
    run = installation.trigger(tenant, "diagnostics.sleep", {"seconds": 6})
    trap.wait()
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 1, 0)
    assert_invariants(installation)


def test_a_process_whose_session_is_never_answered_can_be_ended(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    """No signal's handler runs in it: it is killed."""
    trap = database_proxy.trap(b"INSERT INTO diagnostics_marks", answer=True)
    installation.start_dispatcher()
    installation.start_worker(concurrency=1, DATABASE_URL=database_proxy.through(installation.addresses.app))
    run = installation.trigger(tenant, "diagnostics.write", WRITE)
    trap.wait()
    installation.write(tenant, runs.cancel, run)
    assert installation.ended(tenant, run, 40).state == "CANCELLED"
    ended = installation.ended(tenant, installation.trigger(tenant, "diagnostics.write", WRITE), 40)
    assert (ended.state, ended.attempt) == ("SUCCEEDED", 1)
    assert_invariants(installation)


def test_a_process_whose_settlement_is_never_answered_is_ended_with_its_lease(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    trap = database_proxy.trap(b"settle_run", answer=True)
    installation.start_dispatcher()
    installation.start_worker(concurrency=1, DATABASE_URL=database_proxy.through(installation.addresses.app))
    run = installation.trigger(tenant, "diagnostics.write", WRITE)
    trap.wait()
    ended = installation.ended(tenant, run, 40)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 2, 1)
    assert_invariants(installation)

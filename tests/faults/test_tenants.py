"""A tenant is suspended or erased while its runs wait, run, and are triggered. Row 47."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Concatenate, ParamSpec, TypeVar
from uuid import UUID

import pytest
import redis
from sqlalchemy import Connection

from tasks.engine.runs import TriggerRequest
from tenants import ids, lifecycle, names, system
from tenants.context import Principal
from tenants.errors import TenantSuspended
from tests.faults.invariants import assert_invariants
from tests.support import commands
from tests.support.installations import Installation, eventually

WRITE = TriggerRequest("diagnostics.write", {"key": "k", "value": "v"})
HELD = TriggerRequest("diagnostics.write", {"key": "k", "value": "v", "hold_seconds": 8})
DEAF = TriggerRequest("diagnostics.limited", {"seconds": 60, "native": True, "extend_seconds": 60})
ERASE = ("tenant", "erase", "t1", "--confirm", "t1")
P = ParamSpec("P")
T = TypeVar("T")
LEASES = "SELECT 1 FROM run_leases WHERE tenant_id = %s"


def test_row_47_what_runs_of_a_suspended_tenant_is_stopped_and_nothing_starts_until_its_return(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    installation.start_dispatcher()
    installation.start_worker(concurrency=2)
    running = installation.trigger_many(tenant, [HELD] * 2)
    eventually(lambda: len(installation.rows(LEASES, str(tenant.tenant))) == 2)
    waiting = installation.trigger_many(tenant, [WRITE] * 3)
    _ask(installation, lifecycle.suspend, tenant.tenant, "an operator", "unpaid")
    with pytest.raises(TenantSuspended):
        installation.trigger_many(tenant, [WRITE])
    eventually(lambda: not installation.rows(LEASES, str(tenant.tenant)))
    for run in running:
        eventually(lambda run=run: installation.states(run)[-1] == "QUEUED")  # type: ignore[misc]
        assert installation.states(run)[2:4] == ["RUNNING", "SCHEDULED"]
    for run in installation.trigger_many(other_tenant, [WRITE] * 4):
        assert installation.ended(other_tenant, run).state == "SUCCEEDED"
    assert {tuple(installation.states(run)) for run in waiting} == {("QUEUED",)}
    assert not installation.rows(LEASES, str(tenant.tenant))
    _ask(installation, lifecycle.resume, tenant.tenant, "an operator")
    for run in (*running, *waiting):
        ended = installation.ended(tenant, run)
        assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 1, 0)
    told = installation.rows(
        "SELECT actor_kind, actor, action FROM audit_entries WHERE tenant_id = %s ORDER BY id", str(tenant.tenant)
    )
    assert told[1:] == [("OPERATOR", "an operator", "tenant.suspend"), ("OPERATOR", "an operator", "tenant.resume")]
    assert_invariants(installation)


def test_row_47_what_hears_no_signal_is_killed_when_its_tenant_is_suspended(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    installation.start_dispatcher()
    installation.start_worker(concurrency=1)
    [deaf] = installation.trigger_many(tenant, [DEAF])
    eventually(lambda: installation.rows(LEASES, str(tenant.tenant)))
    _ask(installation, lifecycle.suspend, tenant.tenant, "an operator")
    [run] = installation.trigger_many(other_tenant, [WRITE])
    assert installation.ended(other_tenant, run).state == "SUCCEEDED"
    [(crashes, attempt)] = installation.rows("SELECT crashes, attempt FROM runs WHERE id = %s", str(deaf))
    assert (crashes, attempt) == (0, 0), "it is no crash and no attempt"
    _erase(installation)
    _forget(installation, tenant)
    assert_invariants(installation)


def test_row_47_nothing_of_an_erased_tenant_is_left_or_comes_back(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=2)
    for principal in (tenant, other_tenant):
        for run in installation.trigger_many(principal, [WRITE] * 10):
            installation.ended(principal, run)
        stored = installation.folder / "objects" / names.object_path(principal.tenant, "uploads", "a.csv")
        stored.parent.mkdir(parents=True)
        stored.write_text("a,b\n")
    [frozen] = installation.trigger_many(tenant, [HELD])
    eventually(lambda: installation.rows(LEASES, str(tenant.tenant)))
    installation.kill("w1", signal.SIGSTOP)  # In the middle of a transaction inside the tenant.
    installation.start_worker("w2", concurrency=2)
    with _triggering(installation, tenant):
        killed = commands.start(installation, *ERASE)
        eventually(lambda: installation.rows("SELECT 1 FROM tenants WHERE erasing_since IS NOT NULL"))
        killed.kill()
        killed.communicate()
        _erase(installation)
        installation.kill("w1", signal.SIGCONT)
    gone = _forget(installation, tenant)
    for run in installation.trigger_many(other_tenant, [WRITE] * 10):
        assert installation.ended(other_tenant, run).state == "SUCCEEDED"
    eventually(lambda: "attempt_fenced" in installation.log("w1") or "attempt_killed" in installation.log("w1"))
    assert _ask(installation, lifecycle.rows_left, tenant.tenant) == {}
    with closing(redis.Redis.from_url(installation.redis_url, decode_responses=True)) as client:
        keys = set(client.scan_iter(count=1000))
    # The worker may have been about to tell of its run when it was frozen: ids, which docs/decisions/0018 speaks of.
    assert {key for key in keys if str(tenant.tenant) in key} <= {names.stream(tenant.tenant)}
    assert not keys & {names.result(ids.show("run", run)) for run in gone}
    assert [path.name for path in (installation.folder / "objects").iterdir()] == [str(other_tenant.tenant)]
    assert frozen in gone
    assert_invariants(installation)


def _ask(
    installation: Installation, service: Callable[Concatenate[Connection, P], T], *given: P.args, **named: P.kwargs
) -> T:
    with system.connect(installation.settings) as connection:
        return service(connection, *given, **named)


def _forget(installation: Installation, tenant: Principal) -> set[UUID]:
    """Ask no more of an erased tenant's runs; which they were."""
    gone = {run for run, owner in installation.accepted.items() if owner == tenant.tenant}
    for known in (installation.accepted, installation.told):
        for run in gone & known.keys():
            del known[run]
    return gone


def _erase(installation: Installation) -> None:
    erased = commands.run(installation, *ERASE)
    assert erased.returncode == 0, erased.stderr


@contextmanager
def _triggering(installation: Installation, tenant: Principal) -> Iterator[None]:
    """Runs are triggered without end, by several at once, whether they are accepted or not."""
    done = threading.Event()

    def trigger() -> int:
        refused = 0
        while not done.is_set():
            try:
                installation.trigger_many(tenant, [WRITE])
            except TenantSuspended:
                refused += 1
        return refused

    with ThreadPoolExecutor(3) as threads:
        triggering = [threads.submit(trigger) for _ in range(3)]
        try:
            yield
        finally:
            done.set()
        assert sum(thread.result() for thread in triggering) > 0

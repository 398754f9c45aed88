"""A dispatcher dies or freezes while it leads. Rows 3, 4, 55."""

from __future__ import annotations

import signal
import time

import redis

from tasks.engine import runs
from tasks.engine.runs import TriggerRequest
from tenants.context import Principal
from tests.faults.invariants import assert_invariants
from tests.support.installations import Installation, eventually
from tests.support.proxy import Proxy

QUEUE = "diagnostics"
WRITE = TriggerRequest("diagnostics.write", {"key": "k", "value": "v"})


def _leads(installation: Installation, name: str) -> bool:
    """Whether that process leads now."""
    rows = installation.rows("SELECT holder FROM dispatcher_leader WHERE expires_at > clock_timestamp()")
    return bool(rows) and f":{installation.processes[name].pid}:" in rows[0][0]


def test_row_3_what_was_released_and_never_sent_is_sent_by_the_next_leader(
    installation: Installation, tenant: Principal, redis_proxy: Proxy
) -> None:
    trap = redis_proxy.trap(b"LPUSH")
    installation.start_worker()
    installation.start_dispatcher("d1", REDIS_URL=redis_proxy.through(installation.redis_url))
    run = installation.trigger(tenant, WRITE.task_name, dict(WRITE.args))
    trap.wait()
    assert installation.states(run) == ["QUEUED", "RELEASED"]
    installation.kill("d1")
    killed = time.monotonic()
    installation.start_dispatcher("d2")
    ended = installation.ended(tenant, run)
    assert time.monotonic() - killed < 40
    assert (ended.state, ended.attempt) == ("SUCCEEDED", 1)
    before = installation.history(run)
    trap.release()  # The dead leader's message arrives after all.
    eventually(lambda: "message_stale" in installation.log("w1"))
    assert installation.history(run) == before
    assert_invariants(installation)


def test_row_4_what_was_sent_twice_is_claimed_once(
    installation: Installation, tenant: Principal, redis_proxy: Proxy
) -> None:
    installation.environment["TENANTRY_ENGINE__LEASE_SECONDS"] = "30"  # The stopped worker counts as alive.
    trap = redis_proxy.trap(b"LPUSH", answer=True)
    installation.start_worker()
    installation.kill("w1", signal.SIGSTOP)
    installation.start_dispatcher("d1", REDIS_URL=redis_proxy.through(installation.redis_url))
    run = installation.trigger(tenant, WRITE.task_name, dict(WRITE.args))
    trap.wait()
    installation.kill("d1")
    installation.start_dispatcher("d2")
    eventually(lambda: installation.states(run).count("RELEASED") == 2)
    with redis.Redis.from_url(installation.redis_url) as client:
        eventually(lambda: client.llen(QUEUE))
    installation.kill("w1", signal.SIGCONT)
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt) == ("SUCCEEDED", 1)
    eventually(lambda: "message_stale" in installation.log("w1"))
    assert installation.states(run).count("RUNNING") == 1
    assert_invariants(installation)


def test_row_55_a_leader_that_was_frozen_wakes_and_releases_nothing(
    installation: Installation, tenant: Principal
) -> None:
    installation.start_worker()
    installation.start_dispatcher("d1")
    eventually(lambda: _leads(installation, "d1"))
    runs = installation.trigger_many(tenant, [WRITE] * 60)
    eventually(lambda: installation.rows("SELECT 1 FROM runs WHERE state = 'SUCCEEDED'"))
    installation.start_dispatcher("d2")
    installation.kill("d1", signal.SIGSTOP)
    frozen = time.monotonic()
    eventually(lambda: _leads(installation, "d2"))
    assert time.monotonic() - frozen < 40
    installation.kill("d1", signal.SIGCONT)
    eventually(lambda: "not_leading" in installation.log("d1"))
    for run in runs:
        installation.ended(tenant, run)
    assert _leads(installation, "d2")
    assert installation.rows("SELECT epoch FROM dispatcher_leader") == [(2,)]
    assert_invariants(installation)


def test_row_55_a_release_that_arrives_after_its_epoch_changes_nothing(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    trap = database_proxy.trap(b"release_runs")
    installation.start_worker()
    installation.start_dispatcher("d1", DATABASE_SYSTEM_URL=database_proxy.through(installation.addresses.system))
    runs = installation.trigger_many(tenant, [WRITE] * 5)
    trap.wait()
    installation.start_dispatcher("d2")
    for run in runs:
        assert installation.ended(tenant, run).attempt == 1
    waiting = installation.trigger(tenant, WRITE.task_name, dict(WRITE.args), delay_seconds=3600)
    before = [installation.history(run) for run in runs]
    trap.release()
    eventually(lambda: "not_leading" in installation.log("d1"))
    assert [installation.history(run) for run in runs] == before
    assert _leads(installation, "d2")
    installation.rows("UPDATE runs SET available_at = clock_timestamp() WHERE id = %s", str(waiting))
    assert_invariants(installation)


def test_a_dispatcher_frozen_inside_a_release_blocks_nobody(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    """The answer never arrives: what it released is released again, what it left is released by the next leader."""
    trap = database_proxy.trap(b"release_runs", answer=True)
    installation.start_worker()
    installation.start_dispatcher("d1", DATABASE_SYSTEM_URL=database_proxy.through(installation.addresses.system))
    runs = installation.trigger_many(tenant, [WRITE] * 5)
    trap.wait()
    installation.kill("d1")
    installation.start_dispatcher("d2")
    for run in runs:
        assert installation.ended(tenant, run).attempt == 1
    assert_invariants(installation)


def test_a_dispatcher_that_is_told_to_stop_in_the_middle_of_a_round_gives_up_its_lead_and_ends(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    installation.start_worker()
    trap = database_proxy.trap(b"requeue_unclaimed_runs", answer=True)
    installation.start_dispatcher("d1", DATABASE_SYSTEM_URL=database_proxy.through(installation.addresses.system))
    trap.wait()
    installation.kill("d1", signal.SIGTERM, group=False)
    trap.release()
    assert installation.processes["d1"].wait(20) == 0
    assert not installation.rows("SELECT 1 FROM dispatcher_leader WHERE expires_at > clock_timestamp()")
    run = installation.trigger(tenant, WRITE.task_name, dict(WRITE.args))
    installation.start_dispatcher("d2")
    assert installation.ended(tenant, run).attempt == 1
    assert_invariants(installation)


def test_a_run_of_a_task_that_nobody_knows_holds_up_nobody(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    unknown = installation.trigger(tenant, "diagnostics.echo")
    installation.rows("UPDATE runs SET task = 'diagnostics.of_another_version' WHERE id = %s", str(unknown))
    installation.start_dispatcher()
    installation.start_worker("w1")
    for principal in (other_tenant, tenant):
        assert installation.ended(principal, installation.trigger(principal, "diagnostics.echo")).state == "SUCCEEDED"
    assert installation.processes["d1"].poll() is None
    assert installation.processes["w1"].poll() is None
    assert installation.states(unknown) == ["QUEUED"]
    installation.write(tenant, runs.cancel, unknown)
    assert_invariants(installation)

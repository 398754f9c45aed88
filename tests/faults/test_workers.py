"""A worker dies or stops, at every point of a run's life. Rows 5–12, 14, 15, 41, 51–53."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from uuid import UUID

import pytest
import redis

from tasks.engine.runs import TriggerRequest
from tasks.engine.states import RunState
from tenants.context import Principal
from tests.faults.conftest import LEASE_SECONDS
from tests.faults.invariants import assert_invariants
from tests.support import streams
from tests.support.endings import await_end
from tests.support.installations import Installation, eventually
from tests.support.proxy import Proxy


def _running(installation: Installation, run: UUID) -> None:
    eventually(lambda: installation.rows("SELECT 1 FROM runs WHERE id = %s AND state = 'RUNNING'", str(run)))


def test_row_5_a_message_lost_with_its_worker_before_the_claim_is_sent_again(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    trap = database_proxy.trap(b"claim_run")
    installation.start_dispatcher()
    installation.start_worker("w1", DATABASE_URL=database_proxy.through(installation.addresses.app))
    run = installation.trigger(tenant, "diagnostics.write", {"key": "k", "value": "v"})
    trap.wait()
    installation.kill("w1")
    lost = time.monotonic()
    installation.start_worker("w2")
    ended = installation.ended(tenant, run)
    assert time.monotonic() - lost < 40
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 1, 0)
    assert installation.states(run)[:4] == ["QUEUED", "RELEASED", "QUEUED", "RELEASED"]
    assert_invariants(installation)


def test_a_claim_whose_answer_was_lost_with_its_worker_is_rescued(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    trap = database_proxy.trap(b"claim_run", answer=True)
    installation.start_dispatcher()
    installation.start_worker("w1", DATABASE_URL=database_proxy.through(installation.addresses.app))
    run = installation.trigger(tenant, "diagnostics.write", {"key": "k", "value": "v"})
    trap.wait()
    installation.kill("w1")
    installation.start_worker("w2")
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 2, 1)
    assert_invariants(installation)


def test_a_claim_whose_answer_was_lost_on_the_way_is_asked_for_again(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    trap = database_proxy.trap(b"claim_run", answer=True)
    installation.start_dispatcher()
    installation.start_worker("w1", DATABASE_URL=database_proxy.through(installation.addresses.app))
    run = installation.trigger(tenant, "diagnostics.write", {"key": "k", "value": "v"})
    trap.wait()
    database_proxy.cut()
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 1, 0)
    assert_invariants(installation)


def test_row_6_a_run_whose_worker_was_killed_is_done_by_another(installation: Installation, tenant: Principal) -> None:
    installation.start_dispatcher()
    installation.start_worker("w1")
    run = installation.trigger(tenant, "diagnostics.write", {"key": "k", "value": "v", "hold_seconds": 1})
    _running(installation, run)
    installation.kill("w1")
    killed = time.monotonic()
    installation.start_worker("w2")
    eventually(lambda: installation.states(run).count("RUNNING") == 2)
    assert time.monotonic() - killed < 40
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 2, 1)
    assert_invariants(installation)


def test_row_7_children_end_with_their_worker(installation: Installation, tenant: Principal) -> None:
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=2)
    run = installation.trigger(tenant, "diagnostics.write", {"key": "k", "value": "v", "hold_seconds": 1})
    _running(installation, run)
    orphans = installation.children("w1")
    assert len(orphans) == 2
    installation.kill("w1", group=False)
    assert all(await_end(pid, 20) for pid in orphans)
    installation.start_worker("w2")
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 2, 1)
    assert_invariants(installation)


def test_row_8_the_death_of_a_child_is_seen_at_once(installation: Installation, tenant: Principal) -> None:
    installation.environment["TENANTRY_ENGINE__LEASE_SECONDS"] = "60"
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=1)
    run = installation.trigger(tenant, "diagnostics.write", {"key": "k", "value": "v", "hold_seconds": 3})
    # Who dies between its claim and its first word of it is known by its lease alone.
    eventually(lambda: installation.rows("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE %s", f"{run}/%"))
    (child,) = installation.children("w1")
    os.kill(child, signal.SIGKILL)
    killed = time.monotonic()
    eventually(lambda: "SCHEDULED" in installation.states(run))
    assert time.monotonic() - killed < 20
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 2, 1)
    assert_invariants(installation)


@pytest.mark.parametrize("texts", [(b"settle_run",), (b"settle_run", b"COMMIT")], ids=["before", "inside"])
def test_rows_9_and_51_a_run_and_its_rows_are_committed_together_or_not_at_all(
    installation: Installation, tenant: Principal, database_proxy: Proxy, texts: tuple[bytes, ...]
) -> None:
    trap = database_proxy.trap(*texts)
    installation.start_dispatcher()
    installation.start_worker("w1", DATABASE_URL=database_proxy.through(installation.addresses.app))
    run = installation.trigger(tenant, "diagnostics.write", {"key": "k", "value": "v"})
    trap.wait()
    installation.kill("w1")
    installation.start_worker("w2")
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 2, 1)
    trap.release()
    assert_invariants(installation)


def test_row_10_what_was_committed_and_not_told_is_neither_lost_nor_done_again(
    installation: Installation, tenant: Principal, redis_proxy: Proxy
) -> None:
    trap = redis_proxy.trap(b"SUCCEEDED")
    installation.start_dispatcher()
    installation.start_worker(
        "w1",
        TENANTRY_REDIS__WORKER_URL=redis_proxy.through(installation.redis_url),
        TENANTRY_REDIS__BROKER_URL=installation.redis_url,
    )
    run = installation.trigger(tenant, "diagnostics.write", {"key": "k", "value": "v"})
    trap.wait()
    installation.kill("w1")
    redis_proxy.cut()
    installation.start_worker("w2")
    after = installation.trigger(tenant, "diagnostics.echo")
    installation.ended(tenant, after)
    with redis.Redis.from_url(installation.redis_url) as client:
        told = [notice["st"] for notice in streams.notices(client, tenant.tenant) if notice["r"] == str(run)]
    assert RunState.RELEASED in told
    assert RunState.SUCCEEDED not in told
    assert installation.states(run) == ["QUEUED", "RELEASED", "RUNNING", "SUCCEEDED"]
    assert_invariants(installation)


def test_a_settlement_whose_answer_was_lost_stands(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    trap = database_proxy.trap(b"settle_run", b"COMMIT", answer=True)
    installation.start_dispatcher()
    installation.start_worker("w1", DATABASE_URL=database_proxy.through(installation.addresses.app))
    run = installation.trigger(tenant, "diagnostics.write", {"key": "k", "value": "v"})
    trap.wait()
    database_proxy.cut()
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt) == ("SUCCEEDED", 1)
    after = installation.trigger(tenant, "diagnostics.write", {"key": "k", "value": "v"})
    assert installation.ended(tenant, after).state == "SUCCEEDED"
    assert_invariants(installation)


def test_row_11_a_worker_asked_to_stop_finishes_what_ends_in_time(
    installation: Installation, tenant: Principal
) -> None:
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=1)
    run = installation.trigger(
        tenant, "diagnostics.write", {"key": "k", "value": "v", "hold_seconds": 2 * LEASE_SECONDS}
    )
    _running(installation, run)
    installation.kill("w1", signal.SIGTERM, group=False)
    eventually(lambda: installation.rows("SELECT slots FROM workers") == [(0,)])
    installation.processes["w1"].wait(20)
    assert installation.states(run) == ["QUEUED", "RELEASED", "RUNNING", "SUCCEEDED"]
    assert not installation.rows("SELECT 1 FROM workers")
    assert_invariants(installation)


def test_row_12_a_worker_that_may_not_wait_gives_its_run_back_at_once(
    installation: Installation, tenant: Principal
) -> None:
    installation.environment["TENANTRY_ENGINE__LEASE_SECONDS"] = "60"
    installation.start_dispatcher()
    patience = {"REMAP_SIGTERM": "SIGQUIT", "TENANTRY_WORKER__GRACE_SECONDS": "1"}
    installation.start_worker("w1", concurrency=1, **patience)
    run = installation.trigger(tenant, "diagnostics.write", {"key": "k", "value": "v", "hold_seconds": 4})
    _running(installation, run)
    installation.kill("w1", signal.SIGTERM, group=False)
    eventually(lambda: installation.rows("SELECT slots FROM workers") == [(0,)])
    installation.processes["w1"].wait(20)
    stopped = time.monotonic()
    installation.start_worker("w2")
    eventually(lambda: installation.states(run).count("RUNNING") == 2)
    assert time.monotonic() - stopped < 60
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 1, 0)
    assert_invariants(installation)


def test_a_worker_that_was_told_to_stop_and_hangs_is_ended(installation: Installation) -> None:
    """Its children have stopped and never take the pool's goodbye."""
    installation.start_dispatcher()
    installation.start_worker("w1", TENANTRY_WORKER__GRACE_SECONDS="1")
    for child in installation.children("w1"):
        os.kill(child, signal.SIGSTOP)
    installation.kill("w1", signal.SIGTERM, group=False)
    assert installation.processes["w1"].wait(20) == os.EX_SOFTWARE
    assert "worker_hangs" in installation.log("w1")


def test_what_a_stopping_worker_still_does_takes_no_room_from_others(
    installation: Installation, tenant: Principal
) -> None:
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=2)
    held = installation.trigger_many(
        tenant, [TriggerRequest("diagnostics.write", {"key": "k", "value": "v", "hold_seconds": 6})] * 2
    )
    for run in held:
        _running(installation, run)
    installation.kill("w1", signal.SIGTERM, group=False)
    eventually(lambda: installation.rows("SELECT slots FROM workers") == [(0,)])
    installation.start_worker("w2", concurrency=2)
    installation.ended(tenant, installation.trigger(tenant, "diagnostics.echo"))
    assert {installation.run(tenant, run).state for run in held} == {"RUNNING"}
    assert_invariants(installation)


def test_row_14_a_worker_that_was_frozen_for_longer_than_its_lease_commits_nothing(
    installation: Installation, tenant: Principal
) -> None:
    installation.start_dispatcher()
    installation.start_worker("w1")
    run = installation.trigger(tenant, "diagnostics.write", {"key": "k", "value": "v", "hold_seconds": 1})
    _running(installation, run)
    installation.kill("w1", signal.SIGSTOP)
    installation.start_worker("w2")
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 2, 1)
    installation.kill("w1", signal.SIGCONT)
    eventually(lambda: "attempt_fenced" in installation.log("w1") or "attempt_killed" in installation.log("w1"))
    assert_invariants(installation)


def test_a_worker_may_hold_a_run_again_while_its_own_fenced_attempt_still_works(
    installation: Installation, tenant: Principal
) -> None:
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=2)
    hold = {"key": "k", "value": "v", "hold_seconds": 2 * LEASE_SECONDS}
    run = installation.trigger(tenant, "diagnostics.write", hold)
    _running(installation, run)
    installation.kill("w1", signal.SIGSTOP)
    eventually(lambda: "SCHEDULED" in installation.states(run))
    installation.kill("w1", signal.SIGCONT)
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 2, 1)
    assert_invariants(installation)


def test_row_15_a_worker_that_was_frozen_for_less_than_its_lease_goes_on(
    installation: Installation, tenant: Principal
) -> None:
    installation.environment["TENANTRY_ENGINE__LEASE_SECONDS"] = "60"
    installation.start_dispatcher()
    installation.start_worker("w1")
    run = installation.trigger(tenant, "diagnostics.write", {"key": "k", "value": "v", "hold_seconds": 1})
    _running(installation, run)
    installation.kill("w1", signal.SIGSTOP)
    ((before,),) = installation.rows("SELECT clock_timestamp()")
    eventually(lambda: installation.rows("SELECT clock_timestamp() - %s > interval '2 s'", before) == [(True,)])
    installation.kill("w1", signal.SIGCONT)
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 1, 0)
    assert_invariants(installation)


@pytest.mark.parametrize(
    ("texts", "answer", "done"),
    [((b"'step-2'",), False, 2), ((b"'step-2'", b"hold_lease"), False, 2), ((b"'step-2'", b"COMMIT"), True, 3)],
    ids=["between", "inside", "after"],
)
def test_row_52_steps_that_are_done_are_skipped_and_the_open_one_is_done_once(
    installation: Installation,
    tenant: Principal,
    database_proxy: Proxy,
    texts: tuple[bytes, ...],
    answer: bool,
    done: int,
) -> None:
    trap = database_proxy.trap(*texts, answer=answer)
    installation.start_dispatcher()
    installation.start_worker("w1", DATABASE_URL=database_proxy.through(installation.addresses.app))
    run = installation.trigger(tenant, "diagnostics.steps", {"key": "k", "count": 5})
    trap.wait()
    assert installation.rows("SELECT count(*) FROM run_steps") == [(done,)]
    installation.kill("w1")
    installation.start_worker("w2")
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.result, ended.attempt) == ("SUCCEEDED", 5, 2)
    assert installation.rows("SELECT attempt, count(*) FROM diagnostics_marks GROUP BY 1 ORDER BY 1") == [
        (1, done),
        (2, 5 - done),
    ]
    assert_invariants(installation)


def test_row_53_a_transaction_held_open_for_three_leases_hinders_nobody(
    installation: Installation, tenant: Principal
) -> None:
    installation.start_dispatcher()
    installation.start_worker("w1", concurrency=3)
    held = {"key": "k", "value": "v", "hold_seconds": 3 * LEASE_SECONDS}
    long = installation.trigger(tenant, "diagnostics.write", held)
    _running(installation, long)
    others = [
        installation.trigger(tenant, "diagnostics.write", {**held, "hold_seconds": 1.5 * LEASE_SECONDS}),
        *(installation.trigger(tenant, "diagnostics.echo") for _ in range(5)),
    ]
    for run in others:
        assert installation.ended(tenant, run).attempt == 1
    assert installation.states(long)[-1] == "RUNNING"
    ended = installation.ended(tenant, long)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 1, 0)
    assert_invariants(installation)


_SKEWED = "import time, time_machine; time_machine.travel(time.time() + {seconds}, tick=True).start()"


@pytest.mark.parametrize("hours", [1, -1])
def test_row_41_the_databases_clock_rules_leases_and_not_the_workers(
    installation: Installation, tenant: Principal, tmp_path: Path, hours: int
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_SKEWED.format(seconds=hours * 3600))
    installation.start_dispatcher()
    installation.start_worker("w1", PYTHONPATH=str(tmp_path))
    hold = {"key": "k", "value": "v", "hold_seconds": 2 * LEASE_SECONDS}
    for task, args in (("diagnostics.write", hold), ("diagnostics.steps", {"key": "k", "count": 3})):
        ended = installation.ended(tenant, installation.trigger(tenant, task, args))
        assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 1, 0)
    installation.start_worker("w2")
    killed = installation.trigger(tenant, "diagnostics.write", hold)
    _running(installation, killed)
    installation.kill("w1")
    installation.kill("w2")
    installation.start_worker("w3", PYTHONPATH=str(tmp_path))
    ended = installation.ended(tenant, killed)
    assert (ended.state, ended.attempt, ended.crashes) == ("SUCCEEDED", 2, 1)
    assert_invariants(installation)

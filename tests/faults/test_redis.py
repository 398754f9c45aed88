"""Redis dies, freezes, flaps, forgets, or is full. Rows 20–26."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial

import pytest
import redis

from tasks.engine.runs import TriggerRequest
from tenants import ids
from tenants.context import Principal
from tests.faults import servers
from tests.faults.callers import Patient
from tests.faults.invariants import assert_invariants
from tests.faults.servers import Server
from tests.support import apis, streams
from tests.support.installations import Installation, eventually
from tests.support.tiers import Tier

WRITE = TriggerRequest("diagnostics.write", {"key": "k", "value": "v"})
QUEUE = "diagnostics"
SLOW_WRITE = TriggerRequest("diagnostics.write", {"key": "k", "value": "v", "hold_seconds": 0.2})
RECOVERED_SECONDS = 30.0
"""Twice what the matrix states."""
ANSWERED_SECONDS = 5.0
"""The API's own limit for Redis is 50 ms; the rest is for a machine that is busy."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Redis of this module's own."""
    with servers.redis_server(tmp_path_factory.mktemp("redis")) as made:
        yield made


@pytest.fixture
def installation(installation: Installation, server: Server) -> Iterator[Installation]:
    """One whose Redis can be killed; it starts empty."""
    with closing(redis.Redis.from_url(server.address)) as client:
        client.flushall()
    made = replace(installation, redis_url=server.address)
    try:
        yield made
    finally:
        made.stop()


def _kept(server: Server) -> None:
    server.kill()
    server.start()


def _flushed(server: Server) -> None:
    with closing(redis.Redis.from_url(server.address)) as client:
        client.flushall()


def _frozen(server: Server) -> None:
    server.freeze()
    threading.Event().wait(6.0)  # Longer than every timeout of Redis's clients.
    server.thaw()


FAULTS = pytest.mark.parametrize(
    "fault", [_kept, servers.empty, _flushed, _frozen], ids=["row-20-kept", "row-21-empty", "row-24-flushed", "row-25"]
)


def _succeeded(installation: Installation) -> int:
    ((count,),) = installation.rows("SELECT count(*) FROM runs WHERE state = 'SUCCEEDED'")
    return int(count)


def _more_have_succeeded(installation: Installation, than: int) -> bool:
    return _succeeded(installation) > than


def _waits_for_messages(server: Server) -> bool:
    """Whether a worker consumes."""
    with closing(redis.Redis.from_url(server.address)) as client:
        return any(entry["cmd"] == "brpop" for entry in client.client_list())


def _runs_soon(installation: Installation, tenant: Principal) -> None:
    """A run that is triggered now ends within the time that the matrix allows."""
    run = installation.trigger(tenant, WRITE.task_name, dict(WRITE.args))
    assert installation.ended(tenant, run, RECOVERED_SECONDS).state == "SUCCEEDED"


@FAULTS
def test_nothing_is_lost_or_doubled_and_work_goes_on_at_once(
    installation: Installation, tenant: Principal, server: Server, fault: Callable[[Server], None]
) -> None:
    """Once while all is idle; once while some runs are at work and others wait."""
    installation.start_dispatcher()
    installation.start_worker()
    _runs_soon(installation, tenant)
    fault(server)
    _runs_soon(installation, tenant)
    before = _succeeded(installation)
    runs = installation.trigger_many(tenant, [SLOW_WRITE] * 30)
    eventually(lambda: _succeeded(installation) > before)
    eventually(lambda: installation.rows("SELECT 1 FROM run_leases"))
    fault(server)
    before = min(_succeeded(installation), len(installation.accepted) - 1)
    eventually(lambda: _succeeded(installation) > before, RECOVERED_SECONDS)
    for run in runs:
        ended = installation.ended(tenant, run)
        assert (ended.state, ended.crashes) == ("SUCCEEDED", 0)
    assert_invariants(installation)


def test_row_24_redis_is_flushed_in_the_middle_of_many_runs(
    installation: Installation, tenant: Principal, server: Server, tier: Tier
) -> None:
    installation.start_dispatcher()
    installation.start_worker(concurrency=2)
    number = tier(200, 2000)
    for first in range(0, number, 1000):
        installation.trigger_many(tenant, [WRITE] * min(1000, number - first))
    for done in (number // 4, number // 2):
        eventually(partial(_more_have_succeeded, installation, done), 60)
        _flushed(server)
    assert _succeeded(installation) < number
    assert_invariants(installation, 120)


def test_row_22_runs_are_accepted_while_redis_is_away_and_start_when_it_is_back(
    installation: Installation, tenant: Principal, server: Server
) -> None:
    installation.start_dispatcher()
    installation.start_worker()
    _runs_soon(installation, tenant)
    server.kill()
    runs = [installation.trigger(tenant, WRITE.task_name, dict(WRITE.args)) for _ in range(20)]
    eventually(lambda: "broker_refused" in installation.log("d1"))
    assert not any("RUNNING" in installation.states(run) for run in runs)
    server.start()
    back = time.monotonic()
    for run in runs:
        assert installation.ended(tenant, run).state == "SUCCEEDED"
    assert time.monotonic() - back < RECOVERED_SECONDS
    assert_invariants(installation)


def test_a_worker_survives_the_loss_of_its_broker_between_a_message_and_its_acknowledgement(
    installation: Installation, tenant: Principal, server: Server
) -> None:
    """It is acknowledged when a child accepts it: while the children stand still it is not, and more is asked for."""
    installation.start_dispatcher()
    installation.start_worker()
    with closing(redis.Redis.from_url(server.address)) as client:
        _runs_soon(installation, tenant)
        children = installation.children("w1")
        for child in children:
            os.kill(child, signal.SIGSTOP)
        run = installation.trigger(tenant, WRITE.task_name, dict(WRITE.args))
        eventually(lambda: installation.states(run)[-1] == "RELEASED")
        eventually(lambda: client.llen(QUEUE) == 0 and _waits_for_messages(server))
        server.kill()
        eventually(lambda: "Cannot connect" in installation.log("w1") or installation.processes["w1"].poll())
        server.start()
        for child in children:
            os.kill(child, signal.SIGCONT)
        assert installation.ended(tenant, run, RECOVERED_SECONDS).state == "SUCCEEDED"
        _runs_soon(installation, tenant)
        assert installation.processes["w1"].poll() is None
        assert_invariants(installation)


def test_row_23_a_flapping_redis_leaves_no_silent_stall(
    installation: Installation, tenant: Principal, server: Server
) -> None:
    installation.start_dispatcher()
    installation.start_worker()
    installation.trigger_many(tenant, [SLOW_WRITE] * 40)
    for _ in range(5):
        server.kill()
        server.start()
        eventually(lambda: _waits_for_messages(server))
    _runs_soon(installation, tenant)
    assert_invariants(installation)


def test_row_25_while_redis_is_frozen_callers_are_answered_and_subscribers_told(
    installation: Installation, tenant: Principal, server: Server, tier: Tier
) -> None:
    installation.start_dispatcher()
    installation.start_worker()
    with apis.running(installation) as api:
        caller = Patient(installation, tenant, [api])
        held = caller.trigger("diagnostics.write", {**WRITE.args, "hold_seconds": 2})
        with streams.socket(api.caller(tenant)) as socket:
            socket.subscribe(streams.UPDATES, id=ids.show("run", held))
            updates = socket.updates("taskUpdates")
            assert any(update["state"] == "RUNNING" for update in updates)
            caller.slowest = 0.0
            server.freeze()
            runs = [caller.trigger(WRITE.task_name, WRITE.args) for _ in range(20)]
            assert caller.slowest < ANSWERED_SECONDS
            assert not caller.refusals
            assert [update["state"] for update in updates if update["progress"] is None][-1] == "SUCCEEDED"
            threading.Event().wait(tier(1, 30))
            assert api.client.get(f"{api.url}/health/ready").json()["checks"]["redis"]["ok"] is False
            server.thaw()
        for run in runs:
            assert installation.ended(tenant, run).state == "SUCCEEDED"
        assert_invariants(installation)


def test_row_26_a_full_redis_refuses_and_nothing_is_lost(
    installation: Installation, tenant: Principal, server: Server
) -> None:
    """Full while messages wait in it, and while the worker has some in its hands."""
    installation.start_dispatcher()
    installation.start_worker()
    with apis.running(installation) as api, closing(redis.Redis.from_url(server.address)) as client:
        caller = Patient(installation, tenant, [api])
        runs = installation.trigger_many(tenant, [SLOW_WRITE] * 20)
        eventually(lambda: _succeeded(installation))
        client.config_set("maxmemory", 1)
        runs += [caller.trigger(WRITE.task_name, WRITE.args) for _ in range(5)]
        eventually(lambda: "broker_refused" in installation.log("d1"))
        eventually(lambda: not installation.rows("SELECT 1 FROM run_leases"))
        assert not caller.refusals
        client.config_set("maxmemory", 0)
        _runs_soon(installation, tenant)
        for run in runs:
            assert installation.ended(tenant, run).state == "SUCCEEDED"
    assert installation.processes["w1"].poll() is None
    assert_invariants(installation)

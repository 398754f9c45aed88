"""The API dies or freezes, and what its callers and subscribers see of the faults of others. Rows 1, 2, 10, 16."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tenants import ids
from tenants.context import Principal
from tests.faults.invariants import assert_invariants
from tests.support import apis, streams
from tests.support.apis import Api, Caller
from tests.support.installations import Installation
from tests.support.proxy import Proxy

TRIGGER = (
    "mutation($key: String!) { triggerBackgroundTask("
    'taskName: "diagnostics.write", args: {key: "k", value: "v"}, idempotencyKey: $key) { taskId replayed } }'
)


@pytest.fixture
def api(installation: Installation, database_proxy: Proxy) -> Iterator[Api]:
    """An API whose way to PostgreSQL can fail, beside a dispatcher and a worker whose ways are straight."""
    installation.start_dispatcher()
    installation.start_worker()
    with apis.running(installation, DATABASE_URL=database_proxy.through(installation.addresses.app)) as made:
        yield made


@pytest.mark.parametrize(("answer", "replayed"), [(False, False), (True, True)], ids=["row-1-before", "row-2-after"])
def test_a_trigger_whose_api_was_killed_is_repeated_under_its_key_and_makes_one_run(
    installation: Installation, tenant: Principal, api: Api, database_proxy: Proxy, answer: bool, replayed: bool
) -> None:
    caller = api.caller(tenant)
    trap = database_proxy.trap(b"the-key", answer=answer)
    failures: list[httpx2.TransportError] = []
    asking = threading.Thread(target=_trigger_in_vain, args=(caller, failures))
    asking.start()
    trap.wait()
    installation.kill("api")
    asking.join(10)
    assert len(failures) == 1
    database_proxy.cut()
    assert len(installation.rows("SELECT 1 FROM runs")) == int(replayed)
    with apis.running(installation) as again:
        answered = again.caller(tenant).ask(TRIGGER, key="the-key")["triggerBackgroundTask"]
        assert answered["replayed"] is replayed
        _accept(installation, tenant, answered)
        assert_invariants(installation)


def test_row_10_a_subscriber_hears_the_end_that_a_killed_worker_could_not_tell(
    installation: Installation, tenant: Principal, api: Api, redis_proxy: Proxy
) -> None:
    installation.kill("w1")
    trap = redis_proxy.trap(b"SUCCEEDED")
    installation.start_worker(
        "w2",
        TENANTRY_REDIS__WORKER_URL=redis_proxy.through(installation.redis_url),
        TENANTRY_REDIS__BROKER_URL=installation.redis_url,
    )
    caller = api.caller(tenant)
    answered = caller.ask(TRIGGER, key="the-key")["triggerBackgroundTask"]
    _accept(installation, tenant, answered)
    with streams.socket(caller) as socket:
        socket.subscribe(streams.UPDATES, id=answered["taskId"])
        trap.wait()
        installation.kill("w2")
        redis_proxy.cut()
        assert _followed(socket.updates("taskUpdates"))[-1]["state"] == "SUCCEEDED"
    assert_invariants(installation)


def test_row_16_subscriptions_outlive_an_api_that_was_frozen(
    installation: Installation, tenant: Principal, api: Api
) -> None:
    caller = api.caller(tenant)
    run = installation.trigger(tenant, "diagnostics.steps", {"key": "k", "count": 20, "seconds": 2})
    with streams.socket(caller) as socket:
        socket.subscribe(streams.UPDATES, id=ids.show("run", run))
        updates = socket.updates("taskUpdates")
        first = next(updates)
        installation.kill("api", signal.SIGSTOP)
        threading.Event().wait(10.0)  # The fault itself, as long as the matrix says.
        assert installation.ended(tenant, run).state == "SUCCEEDED"
        installation.kill("api", signal.SIGCONT)
        assert _followed(updates, first)[-1]["state"] == "SUCCEEDED"
    assert_invariants(installation)


def _trigger_in_vain(caller: Caller, failures: list[httpx2.TransportError]) -> None:
    try:
        caller.post(TRIGGER, {"key": "the-key"})
    except httpx2.TransportError as error:
        failures.append(error)


def _accept(installation: Installation, tenant: Principal, answered: dict[str, Any]) -> None:
    """What the API has answered for is an accepted run like any other."""
    installation.accepted[ids.read("run", answered["taskId"])] = tenant.tenant


def _followed(updates: Iterator[dict[str, Any]], *before: dict[str, Any]) -> list[dict[str, Any]]:
    """The updates that tell of a state, to the end: each later than the one before."""
    told = [update for update in (*before, *updates) if update["state"] is not None and update["progress"] is None]
    sequences = [update["sequence"] for update in told]
    assert sequences == sorted(set(sequences)), sequences
    return told

"""The way to Redis is slow, thin, breaks again and again, or leads nowhere. Row 27."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tenants.context import Principal
from tests.faults.callers import Patient
from tests.faults.invariants import assert_invariants
from tests.support import apis
from tests.support.installations import Installation, eventually
from tests.support.proxy import Proxy
from tests.support.tiers import Tier

pytestmark = pytest.mark.timeout(300)
WRITE = {"key": "k", "value": "v"}
NOTICED_SECONDS = 30.0
ANSWERED_SECONDS = 5.0
"""The API's own limit for Redis is 50 ms; the rest is for a machine that is busy."""
FAULTS: dict[str, tuple[Callable[[Proxy], None], Callable[[Proxy], None]]] = {
    "slow": (lambda between: between.slow(0.5), lambda between: between.slow(0)),
    "thin": (lambda between: between.thin(1024), lambda between: between.thin(0)),
    "breaking": (lambda between: between.reset_each(10), lambda between: between.reset_each(0)),
    "half open": (lambda between: between.swallow(), lambda between: None),
}


def test_row_27_over_a_bad_line_to_redis_callers_do_not_wait_and_work_goes_on_after_it(
    installation: Installation, tenant: Principal, redis_proxy: Proxy, tier: Tier
) -> None:
    address = redis_proxy.through(installation.redis_url)
    installation.start_dispatcher(REDIS_URL=address)
    installation.start_worker(REDIS_URL=address)
    with apis.running(installation, REDIS_URL=address) as api:
        caller = Patient(installation, tenant, [api])
        for name, (begin, end) in FAULTS.items():
            installation.ended(tenant, caller.trigger("diagnostics.write", WRITE))
            caller.slowest = 0.0
            begin(redis_proxy)
            runs = [caller.trigger("diagnostics.write", WRITE) for _ in range(tier(5, 20))]
            threading.Event().wait(tier(2, 30))  # The fault itself.
            assert caller.slowest < ANSWERED_SECONDS, name
            assert not caller.refusals, name
            end(redis_proxy)
            for run in runs:
                assert installation.ended(tenant, run, NOTICED_SECONDS).state == "SUCCEEDED"
    assert installation.processes["w1"].poll() is None
    assert_invariants(installation)


def test_row_27_a_dispatcher_notices_that_its_bells_no_longer_reach_it(
    installation: Installation, tenant: Principal, redis_proxy: Proxy
) -> None:
    installation.start_dispatcher(REDIS_URL=redis_proxy.through(installation.redis_url))
    installation.start_worker()
    installation.ended(tenant, installation.trigger(tenant, "diagnostics.write", WRITE))
    redis_proxy.swallow()
    eventually(lambda: "bell_out_of_order" in installation.log("d1"), NOTICED_SECONDS)
    installation.ended(tenant, installation.trigger(tenant, "diagnostics.write", WRITE))
    assert_invariants(installation)

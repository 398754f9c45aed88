"""No cap is exceeded, whatever dies; and one that is set in the middle of the work binds what waits already."""

from __future__ import annotations

from uuid import UUID

import redis

from tasks.engine import limits
from tasks.engine.admission import LimitKind
from tasks.engine.limits import LimitRequest
from tasks.engine.runs import TriggerRequest
from tasks.engine.states import RunState
from tenants.context import Principal
from tests.faults.invariants import assert_invariants
from tests.support.installations import Installation, eventually

SLEEP = TriggerRequest("diagnostics.sleep", {"seconds": 0.15})


def _at_once(installation: Installation, tenant: UUID) -> list[int]:
    """How many of the tenant's runs were RUNNING after each start, in the order of the starts."""
    running: set[UUID] = set()
    found = []
    for run, state in installation.rows(
        "SELECT run_id, state FROM run_events WHERE tenant_id = %s ORDER BY at, state <> 'RUNNING' DESC", str(tenant)
    ):
        if state == RunState.RUNNING:
            running.add(run)
            found.append(len(running))
        else:
            running.discard(run)
    return found


def test_a_cap_holds_over_the_deaths_of_workers_dispatchers_and_the_broker(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    installation.write(tenant, limits.put, LimitRequest("three", LimitKind.CONCURRENCY, 3))
    installation.caps[tenant.tenant] = 3
    for worker in ("w1", "w2"):
        installation.start_worker(worker, concurrency=4)
    installation.start_dispatcher("d1")
    mine = installation.trigger_many(tenant, [SLEEP] * 40)
    others = installation.trigger_many(other_tenant, [SLEEP] * 20)

    def ended(number: int) -> bool:
        [(count,)] = installation.rows("SELECT count(*) FROM runs WHERE state = 'SUCCEEDED' AND id = ANY (%s)", mine)
        return bool(count >= number)

    eventually(lambda: ended(6))
    installation.kill("w1")
    installation.start_dispatcher("d2")
    eventually(lambda: ended(14))
    installation.kill("d1")
    eventually(lambda: ended(20), 40)
    with redis.Redis.from_url(installation.redis_url) as broker:
        broker.flushall()
    installation.start_worker("w3", concurrency=4)
    for principal, run in [(tenant, run) for run in mine] + [(other_tenant, run) for run in others]:
        assert installation.ended(principal, run, 60).state == "SUCCEEDED"
    assert max(_at_once(installation, tenant.tenant)) == 3, "as many as may, and no more"
    assert max(_at_once(installation, other_tenant.tenant)) > 3
    assert_invariants(installation)


def test_a_cap_that_is_set_while_runs_wait_binds_them_at_once(installation: Installation, tenant: Principal) -> None:
    installation.start_worker(concurrency=4)
    installation.start_dispatcher()
    runs = installation.trigger_many(tenant, [SLEEP] * 30)
    eventually(lambda: max(_at_once(installation, tenant.tenant), default=0) == 4)
    installation.write(tenant, limits.put, LimitRequest("one", LimitKind.CONCURRENCY, 1))
    [(started,)] = installation.rows("SELECT count(*) FROM run_events WHERE state = 'RUNNING'")
    for run in runs:
        installation.ended(tenant, run, 60)
    assert max(_at_once(installation, tenant.tenant)[started + 1 :]) == 1
    assert_invariants(installation)

"""The figures of workers, for people."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tasks.engine import figures
from tasks.engine.costs import Costs
from tasks.engine.fleet import Fleet
from tasks.engine.ledger import Ledger
from tenants import settings
from tenants.context import Principal
from tests.support.installations import Installation


@pytest.fixture(params=[5.0, 60.0])
def lease_seconds(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[float]:
    """How long leases hold in this process."""
    monkeypatch.setenv("TENANTRY_ENGINE__LEASE_SECONDS", str(request.param))
    settings.current.cache_clear()
    yield request.param
    monkeypatch.undo()
    settings.current.cache_clear()


def test_a_worker_is_alive_to_people_for_as_long_as_the_dispatcher_counts_on_it(
    installation: Installation, tenant: Principal, lease_seconds: float
) -> None:
    installation.rows("DELETE FROM workers")
    for name, silent in (("new", 0), ("quiet", 20), ("gone", 3600)):
        installation.rows(
            "INSERT INTO workers (name, queues, slots, last_seen)"
            " VALUES (%s, ARRAY[%s], 1, clock_timestamp() - make_interval(secs => %s))",
            name, f"of-{name}", silent,
        )  # fmt: skip
    shown = {worker.name for worker in installation.write(tenant, figures.workers) if worker.alive}
    assert shown == ({"new", "quiet"} if lease_seconds > 20 else {"new"})

    fleet = Fleet(0.05, Costs())
    ledger = Ledger(installation.addresses.system, settings.current().engine, application="tests")
    fleet.read(ledger, alive_seconds=lease_seconds)
    ledger.close()
    assert {queue for pool in fleet.pools() for queue in pool.queues} == {f"of-{name}" for name in shown}

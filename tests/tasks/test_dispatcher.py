"""A dispatcher's rounds, one at a time, on real servers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest

from tasks.dispatcher import Dispatcher
from tasks.engine.release import Releases
from tenants import audit
from tenants.context import Principal
from tests.support.installations import Installation

_DELAYED = """
INSERT INTO runs (tenant_id, id, task, queue, args, priority, rank, state, max_attempts, actor_kind, actor,
                  available_at)
SELECT %s, gen_random_uuid(), 'diagnostics.echo', 'diagnostics', '{}', 5, now(), 'SCHEDULED', 1, 'API_KEY', 'a',
       now() - make_interval(secs => %s)
FROM generate_series(1, %s)
"""
_CANCEL_ALL = "UPDATE runs SET state = 'CANCELLED' WHERE state IN ('QUEUED', 'SCHEDULED', 'RELEASED')"


@pytest.fixture
def dispatcher(installation: Installation) -> Iterator[Dispatcher]:
    """To lead, where nothing waits and no worker is."""
    installation.rows(_CANCEL_ALL)
    installation.rows("DELETE FROM workers")
    installation.rows("UPDATE dispatcher_leader SET expires_at = now()")
    dispatcher = Dispatcher(installation.settings)
    yield dispatcher
    dispatcher.close()
    installation.rows(_CANCEL_ALL)


def test_who_has_much_due_at_once_does_not_keep_others_waiting(
    installation: Installation, tenant: Principal, other_tenant: Principal, dispatcher: Dispatcher
) -> None:
    installation.rows(_DELAYED, str(tenant.tenant), 60, 5000)
    installation.rows(_DELAYED, str(other_tenant.tenant), 1, 3)
    dispatcher.tick()
    states = installation.rows("SELECT tenant_id, state FROM runs WHERE state IN ('SCHEDULED', 'QUEUED')")
    found = Counter(states)
    assert found[(other_tenant.tenant, "QUEUED")] == 3
    assert 500 <= found[(tenant.tenant, "QUEUED")] <= 1000
    for _ in range(12):
        dispatcher.tick()
    assert not installation.rows("SELECT 1 FROM runs WHERE state = 'SCHEDULED'")


def test_a_due_run_that_somebody_holds_is_asked_for_at_every_sweep_and_not_all_the_time(
    installation: Installation, tenant: Principal, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.rows(_DELAYED, str(tenant.tenant), 60, 1)
    sweeps: list[float] = []
    sweep = dispatcher._sweep

    def watched(releases: Releases) -> None:
        sweeps.append(time.monotonic())
        sweep(releases)

    monkeypatch.setattr(dispatcher, "_sweep", watched)
    with closing(psycopg2.connect(installation.addresses.owner)) as holder, holder.cursor() as cursor:
        cursor.execute("SELECT 1 FROM runs WHERE state = 'SCHEDULED' FOR UPDATE")
        while len(sweeps) < 4:
            dispatcher.tick()
        holder.rollback()
    assert sweeps[-1] - sweeps[1] >= 2 * installation.settings.engine.sweep_seconds
    while installation.rows("SELECT 1 FROM runs WHERE state = 'SCHEDULED'"):
        dispatcher.tick()


def test_who_leads_has_the_audit_log_sealed(
    installation: Installation, tenant: Principal, dispatcher: Dispatcher
) -> None:
    installation.write(tenant, audit.record, "test.done")
    while (found := installation.write(tenant, audit.verify)).waiting:
        dispatcher.tick()
    assert (found.sealed, found.broken) == (2, None), "that the tenant was made, and this"

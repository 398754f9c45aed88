"""The same tasks for two tenants at the same time, by one real worker: each meets its own data only."""

from __future__ import annotations

import time
from collections.abc import Iterator

import orjson
import pytest
import redis

from tasks.engine import messages, runs
from tasks.engine.messages import Release
from tenants import ids
from tenants.context import Principal
from tests.support import streams
from tests.support.installations import Installation, eventually


@pytest.fixture(scope="module", autouse=True)
def _processes(installation: Installation) -> Iterator[None]:
    installation.start_dispatcher()
    installation.start_worker(concurrency=2)
    installation.lead()
    yield
    installation.stop()


@pytest.fixture
def client(installation: Installation) -> Iterator[redis.Redis]:
    connected = redis.Redis.from_url(installation.redis_url)
    yield connected
    connected.close()


def test_equal_runs_of_two_tenants_write_and_count_their_own(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    each = 6
    triggered = [
        (principal, installation.trigger(principal, "diagnostics.write", {"key": "same", "value": "same"}))
        for _ in range(each)
        for principal in (tenant, other_tenant)
    ]
    for principal, run in triggered:
        assert installation.ended(principal, run).state == "SUCCEEDED"
    for principal in (tenant, other_tenant):
        marks = installation.trigger(principal, "diagnostics.marks", {"key": "same"})
        assert installation.ended(principal, marks).result == each
        own = {run for owner, run in triggered if owner is principal}
        written = installation.rows("SELECT run_id FROM diagnostics_marks WHERE tenant_id = %s", str(principal.tenant))
        assert {run for (run,) in written} == own


def test_a_task_sees_its_own_tenants_runs(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    for _ in range(5):
        installation.trigger(other_tenant, "diagnostics.echo")
    ours = installation.trigger(tenant, "diagnostics.runs")
    theirs = installation.trigger(other_tenant, "diagnostics.runs")
    assert installation.ended(tenant, ours).result == 1
    assert installation.ended(other_tenant, theirs).result == 6


def test_each_tenant_has_its_own_stream_and_the_bell_names_no_run(
    installation: Installation, tenant: Principal, other_tenant: Principal, client: redis.Redis
) -> None:
    secret = "nobody-else-may-read-this"
    run = installation.trigger(tenant, "diagnostics.echo", {"value": secret})
    installation.ended(tenant, run)
    eventually(lambda: "SUCCEEDED" in str(streams.notices(client, tenant.tenant)))
    told = streams.notices(client, tenant.tenant)
    assert {notice["r"] for notice in told} == {str(run)}
    assert streams.notices(client, other_tenant.tenant) == []
    assert secret not in str(told)


def test_every_key_in_redis_is_a_tenants_or_listed(
    installation: Installation, tenant: Principal, client: redis.Redis
) -> None:
    run = installation.trigger(tenant, "diagnostics.echo", {"value": 1})
    installation.ended(tenant, run)
    result = f"celery-task-meta-{ids.show('run', run)}".encode()
    eventually(lambda: client.exists(result))
    ours = ("t:", "sys:", "celery-task-meta-run_", "_kombu.binding", "diagnostics", "sales")
    for key in client.scan_iter():
        assert key.decode().startswith(ours), key


def test_a_result_stands_under_the_runs_own_unguessable_id(
    installation: Installation, tenant: Principal, client: redis.Redis
) -> None:
    run = installation.trigger(tenant, "diagnostics.echo", {"value": "mine"})
    installation.ended(tenant, run)
    key = f"celery-task-meta-{ids.show('run', run)}"
    stored = eventually(lambda: client.get(key))
    assert isinstance(stored, bytes)
    meta = orjson.loads(stored)
    assert (meta["status"], meta["result"], meta["task_id"]) == ("SUCCESS", "mine", ids.show("run", run))
    assert 0 < client.ttl(key) <= 86_400


@pytest.mark.parametrize("altered", ["tenant", "fence", "task"])
def test_a_grant_for_another_tenant_fence_or_task_starts_nothing(
    installation: Installation, tenant: Principal, other_tenant: Principal, client: redis.Redis, altered: str
) -> None:
    """Signed with the right key all the same: the claim, not the signature, decides what may start."""
    run = installation.trigger(other_tenant, "diagnostics.write", {"key": altered, "value": "x"}, delay_seconds=3600)
    release = Release(
        tenant=tenant.tenant if altered == "tenant" else other_tenant.tenant,
        run=run,
        task="diagnostics.marks" if altered == "task" else "diagnostics.write",
        queue="diagnostics",
        fence=7 if altered == "fence" else 0,
    )
    client.lpush("diagnostics", messages.encode(release, installation.settings.engine.grant_keys, time.time() + 60))
    after = installation.trigger(other_tenant, "diagnostics.echo")
    assert installation.ended(other_tenant, after).state == "SUCCEEDED"
    eventually(lambda: client.llen("diagnostics") == 0)
    assert installation.history(run) == [(1, "SCHEDULED", 0)]
    assert installation.rows("SELECT 1 FROM diagnostics_marks WHERE key = %s", altered) == []
    installation.write(other_tenant, runs.cancel, run)

"""Celery's own tools do what Celery's documentation says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tasks.engine import runs
from tenants import ids
from tenants.context import Principal
from tests.support.folders import ROOT
from tests.support.installations import Installation, eventually


@pytest.fixture(scope="module", autouse=True)
def _processes(installation: Installation) -> Iterator[None]:
    """Celery's results lie apart from everything else, as deployments may have it."""
    installation.environment["CELERY_RESULT_BACKEND"] = f"{installation.redis_url.removesuffix('/0')}/1"
    installation.start_dispatcher()
    installation.start_worker("w1", "-Q", "diagnostics")
    installation.start_worker("w2", "-Q", "analytics", concurrency=1)
    installation.lead()
    yield
    installation.stop()


def celery(installation: Installation, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tasks.worker", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **installation.variables, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def inspected(installation: Installation, what: str) -> dict[str, Any]:
    answer = celery(installation, "inspect", what, "--json")
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def test_inspect_shows_each_task_under_its_own_name(installation: Installation) -> None:
    registered = inspected(installation, "registered")
    assert set(registered) == {"w1@test", "w2@test"}
    names = registered["w1@test"]
    assert isinstance(names, list)
    assert {"diagnostics.echo", "sales.refresh_all_materialized_views"} <= set(names)


def test_inspect_shows_queues_and_active_runs_without_their_arguments(
    installation: Installation, tenant: Principal
) -> None:
    queues = inspected(installation, "active_queues")
    assert [queue["name"] for queue in queues["w2@test"]] == ["analytics"]
    run = installation.trigger(tenant, "diagnostics.sleep", {"seconds": 100, "steps": 500})
    eventually(lambda: installation.run(tenant, run).state == "RUNNING")
    (active,) = inspected(installation, "active")["w1@test"]
    assert (active["id"], active["name"]) == (ids.show("run", run), "diagnostics.sleep")
    assert "500" not in json.dumps(active["args"]) + json.dumps(active["kwargs"])
    installation.write(tenant, runs.cancel, run)
    assert installation.ended(tenant, run).state == "CANCELLED"


def test_no_secret_stands_in_what_inspect_shows(installation: Installation) -> None:
    shown = json.dumps(inspected(installation, "conf")) + json.dumps(inspected(installation, "stats"))
    assert "a-key-for-tests-only" not in shown
    password = installation.redis_url.partition(":")[2].partition(":")[2].partition("@")[0]
    assert len(password) > 10
    assert password not in shown


def test_a_call_without_a_tenant_is_refused_with_a_sentence_that_helps(installation: Installation) -> None:
    before = installation.rows("SELECT count(*) FROM runs")
    refused = celery(installation, "call", "diagnostics.echo")
    assert refused.returncode != 0
    assert refused.stderr.strip() == (
        "Error: Every run belongs to a tenant: pass headers={'tenant': '<slug>'},"
        " or set TENANTRY_TENANT for `celery call`."
    )
    assert installation.rows("SELECT count(*) FROM runs") == before


def test_a_call_with_a_tenant_makes_a_run(installation: Installation, tenant: Principal) -> None:
    slug = installation.slug(tenant)
    answer = celery(installation, "call", "diagnostics.echo", "--kwargs", '{"value": 7}', TENANTRY_TENANT=slug)
    assert answer.returncode == 0, answer.stderr
    ended = installation.ended(tenant, ids.read("run", answer.stdout.strip()))
    assert (ended.state, ended.result, ended.actor_kind) == ("SUCCEEDED", 7, "OPERATOR")


def test_delay_and_send_task_go_through_the_ledger(installation: Installation, tenant: Principal) -> None:
    slug = installation.slug(tenant)
    program = (
        "from tasks.worker import app\n"
        "task = app.tasks['diagnostics.echo']\n"
        "try:\n    task.delay(1)\n    print('sent')\nexcept Exception as error:\n    print(type(error).__name__)\n"
        f"print(app.send_task('diagnostics.echo', [2], headers={{'tenant': {slug!r}}}).get(timeout=20))\n"
        f"sent = task.apply_async((3,), headers={{'tenant': {slug!r}}})\n"
        "print(sent.get(timeout=20))\n"
        "print(app.AsyncResult(sent.id).result)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **installation.variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert answer.stdout.split() == ["NotSent", "2", "3", "3"]


def test_a_purge_loses_no_run(installation: Installation, tenant: Principal) -> None:
    assert celery(installation, "purge", "-f", "-Q", "diagnostics").returncode == 0
    run = installation.trigger(tenant, "diagnostics.echo", {"value": 1})
    assert installation.ended(tenant, run).state == "SUCCEEDED"


def test_flower_shows_the_workers(installation: Installation) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    installation.start(
        "flower", "celery", "-A", "tasks.worker", "flower", "--address=127.0.0.1", f"--port={port}",
        FLOWER_UNAUTHENTICATED_API="true",
    )  # fmt: skip

    def workers() -> set[str]:
        try:
            answer = httpx2.get(f"http://127.0.0.1:{port}/api/workers", params={"refresh": "1"}, timeout=10)
        except httpx2.HTTPError:
            return set()
        return set(answer.json()) if answer.status_code == 200 else set()

    assert eventually(lambda: workers() >= {"w1@test", "w2@test"}, seconds=40, every=0.3)


@pytest.mark.parametrize("part", ["worker", "beat"])
def test_no_process_starts_under_a_login_that_could_bypass_row_level_security(
    installation: Installation, part: str
) -> None:
    owner = installation.addresses.owner
    refused = celery(installation, part, DATABASE_URL=owner, DATABASE_SYSTEM_URL=owner)
    assert refused.returncode != 0
    assert "tenantry_owner" in refused.stderr

"""A dispatcher dies in the middle of an action on many runs, while a client watches how far it is."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import redis

from tasks.engine.runs import TriggerRequest
from tenants.context import Principal
from tests.faults.invariants import assert_invariants
from tests.support import apis, streams
from tests.support.installations import Installation, eventually
from tests.support.proxy import Proxy

LETTERS = 1200
ECHO = TriggerRequest("diagnostics.echo", {"value": 1})
GROUPS = "{ deadLetters { nodes { id taskName errorType message count runs(first: 1) { totalCount } } } }"
RETRY = (
    "mutation($g: ID!, $d: Boolean!) { retryDeadLetters(groupId: $g, dryRun: $d)"
    " { success matched bulkAction { id total done failed finishedAt } problem { code } } }"
)
PROGRESS = "query($i: ID!) { node(id: $i) { ... on BulkAction { total done failed finishedAt } } }"


@pytest.mark.timeout(240)
def test_a_killed_dispatcher_leaves_its_action_to_the_next_and_each_letter_is_retried_once(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    for _ in range(2):
        installation.trigger_many(tenant, [ECHO] * (LETTERS // 2))
    _die(installation)
    installation.start_worker()
    with apis.running(installation) as api:
        caller = api.caller(tenant)

        def progress() -> dict[str, Any]:
            found: dict[str, Any] = caller.ask(PROGRESS, i=action["id"])["node"]
            return found

        [group] = caller.ask(GROUPS)["deadLetters"]["nodes"]
        assert (group["taskName"], group["errorType"]) == (ECHO.task_name, "Timeout")
        assert (group["count"], group["runs"]["totalCount"]) == (LETTERS, LETTERS)
        tried = caller.ask(RETRY, g=group["id"], d=True)["retryDeadLetters"]
        assert tried == {"success": True, "matched": LETTERS, "bulkAction": None, "problem": None}
        begun = caller.ask(RETRY, g=group["id"], d=False)["retryDeadLetters"]
        action = begun["bulkAction"]
        assert (begun["matched"], action["total"], action["done"], action["finishedAt"]) == (LETTERS, LETTERS, 0, None)

        trap = database_proxy.trap(b"advance_bulk_action", answer=True)
        installation.start_dispatcher("d1", DATABASE_SYSTEM_URL=database_proxy.through(installation.addresses.system))
        trap.wait()
        installation.kill("d1")  # One portion is committed, and nobody was told.
        some = progress()
        assert 0 < some["done"] < LETTERS
        assert (some["failed"], some["finishedAt"]) == (0, None)
        installation.start_dispatcher("d2")
        eventually(lambda: progress()["finishedAt"], seconds=60, every=0.1)
        assert progress() | {"finishedAt": None} == {"total": LETTERS, "done": LETTERS, "failed": 0, "finishedAt": None}

        retried = installation.rows("SELECT id, tenant_id, origin_id FROM runs WHERE origin_id IS NOT NULL")
        assert len({origin for _, _, origin in retried}) == len(retried) == LETTERS
        installation.accepted.update({run: of for run, of, _ in retried})
        assert_invariants(installation, seconds=120)
        ended = installation.rows("SELECT state, count(*) FROM runs WHERE origin_id IS NOT NULL GROUP BY state")
        assert ended == [("SUCCEEDED", LETTERS)]
        assert len(_told(installation, tenant, "QUEUED", 1) & {run for run, _, _ in retried}) >= LETTERS - some["done"]
        assert "housekeeping_failed" not in installation.log("d2")
        assert caller.ask(GROUPS)["deadLetters"]["nodes"] == []
        again = caller.ask(RETRY, g=group["id"], d=False)["retryDeadLetters"]
        assert (again["matched"], again["problem"]) == (0, {"code": "NOT_FOUND"})


def _die(installation: Installation) -> None:
    """Let all runs have failed at their first attempt."""
    installation.rows(
        "WITH dead AS ("
        "  SELECT r.tenant_id, r.id, e.error FROM runs r, LATERAL (SELECT jsonb_build_object("
        "    'type', 'Timeout', 'message', 'no answer to request ' || r.id, 'retryable', true) AS error) e"
        "), ended AS ("
        "  UPDATE runs r SET state = 'FAILED', sequence = 4, attempt = 1, finished_at = clock_timestamp(),"
        "    error = d.error, fingerprint = dead_letter_fingerprint(d.tenant_id, r.task, d.error)"
        "  FROM dead d WHERE r.tenant_id = d.tenant_id AND r.id = d.id"
        ")"
        " INSERT INTO run_events (tenant_id, run_id, sequence, state, attempt)"
        " SELECT d.tenant_id, d.id, e.* FROM dead d,"
        "   (VALUES (2, 'RELEASED', 0), (3, 'RUNNING', 1), (4, 'FAILED', 1)) AS e(sequence, state, attempt)"
    )


def _told(installation: Installation, tenant: Principal, state: str, sequence: int) -> set[UUID]:
    """The runs whose change to this state stands in the tenant's stream."""
    with redis.Redis.from_url(installation.redis_url) as client:
        told = streams.notices(client, tenant.tenant)
    return {UUID(notice["r"]) for notice in told if (notice.get("st"), notice["s"]) == (state, sequence)}

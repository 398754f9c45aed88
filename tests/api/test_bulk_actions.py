"""Dead letters and actions on many runs as clients meet them; portions are carried out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from tasks.engine.ledger import Settlement
from tasks.engine.states import RunState
from tenants import ids
from tenants.context import Principal
from tests.support.apis import Api, Caller
from tests.support.hands import Hands

PAYLOAD = (
    "{ success message matched bulkAction { id total done failed finishedAt }"
    " problem { code message ... on Forbidden { requiredScope } ... on QuotaExceeded { limitName limit used } } }"
)
CANCEL = f"mutation($f: RunFilter!, $d: Boolean) {{ cancelRuns(filter: $f, dryRun: $d) {PAYLOAD} }}"
RETRY = f"mutation($f: RunFilter!, $d: Boolean) {{ retryRuns(filter: $f, dryRun: $d) {PAYLOAD} }}"
LETTERS = f"mutation($g: ID!, $d: Boolean) {{ retryDeadLetters(groupId: $g, dryRun: $d) {PAYLOAD} }}"
GROUP = "id taskName errorType message count firstAt lastAt"
GROUPS = (
    f"query($n: Int, $a: String) {{ deadLetters(first: $n, after: $a) {{ nodes {{ {GROUP} }} edges {{ cursor }}"
    " pageInfo { hasNextPage endCursor } } }"
)
ADVANCE = "SELECT 1 FROM advance_bulk_action('main', %s, 500, 1000000, interval '60 s')"


@pytest.fixture(autouse=True)
def _no_action_is_left(api: Api) -> Iterator[None]:
    yield
    api.installation.rows("DELETE FROM bulk_actions")


def _fail(hands: Hands, tenant: Principal, message: str) -> str:
    run, fence = hands.running(tenant)
    error = {"type": "Boom", "message": message, "retryable": True, "traceback": "secret frames"}
    hands.settle(tenant, run, fence, Settlement(RunState.FAILED, error=error))
    return ids.show("run", run)


def _node(caller: Caller, identifier: str) -> Any:
    query = (
        "query($i: ID!) { node(id: $i) { id ... on BulkAction { total done failed finishedAt }"
        " ... on DeadLetterGroup { count runs(first: 10) { nodes { id } totalCount } } } }"
    )
    return caller.ask(query, i=identifier)["node"]


def test_nothing_is_done_unless_it_is_asked_for(api: Api, hands: Hands, tenant: Principal) -> None:
    caller = api.caller(tenant)
    waiting = ids.show("run", api.installation.trigger(tenant, "diagnostics.echo"))
    _fail(hands, tenant, "no 1")
    [group] = caller.ask(GROUPS)["deadLetters"]["nodes"]
    for name, mutation, given in (
        ("cancelRuns", CANCEL, {"f": {}}),
        ("retryRuns", RETRY, {"f": {}}),
        ("retryDeadLetters", LETTERS, {"g": group["id"]}),
    ):
        for dry in ({}, {"d": True}):
            assert caller.ask(mutation, **given, **dry)[name] == {
                "success": True, "message": "1 runs match; nothing was done.", "matched": 1, "bulkAction": None,
                "problem": None,
            }  # fmt: skip
    hands.system.call(ADVANCE, hands.epoch)
    states = caller.ask("{ runs { nodes { id state } } }")["runs"]["nodes"]
    assert {run["state"] for run in states} == {"FAILED", "QUEUED"}
    assert caller.ask("query($i: ID!) { run(id: $i) { state cancelRequestedAt } }", i=waiting)["run"] == {
        "state": "QUEUED",
        "cancelRequestedAt": None,
    }


def test_groups_are_paged_and_their_runs_retried(api: Api, hands: Hands, tenant: Principal) -> None:
    caller = api.caller(tenant)
    first = [_fail(hands, tenant, f"no answer from 10.0.0.{number}") for number in range(3)]
    other = _fail(hands, tenant, "wrong currency")
    page = caller.ask(GROUPS, n=1)["deadLetters"]
    assert [(node["message"], node["count"]) for node in page["nodes"]] == [("wrong currency", 1)]
    assert page["pageInfo"]["hasNextPage"] is True
    page = caller.ask(GROUPS, n=1, a=page["pageInfo"]["endCursor"])["deadLetters"]
    [group] = page["nodes"]
    assert page["pageInfo"]["hasNextPage"] is False
    assert (group["taskName"], group["errorType"], group["message"], group["count"]) == (
        "diagnostics.echo", "Boom", "no answer from 10.0.0.2", 3,
    )  # fmt: skip
    assert group["firstAt"] < group["lastAt"]
    found = _node(caller, group["id"])
    assert found == {
        "id": group["id"], "count": 3, "runs": {"nodes": [{"id": run} for run in reversed(first)], "totalCount": 3},
    }  # fmt: skip

    begun = caller.ask(LETTERS, g=group["id"], d=False)["retryDeadLetters"]
    action = begun["bulkAction"]
    assert (begun["matched"], begun["message"], begun["problem"]) == (3, "Begun on 3 runs.", None)
    assert action["id"].startswith("bulk_")
    assert _node(caller, action["id"]) == action
    hands.system.call(ADVANCE, hands.epoch)
    done = _node(caller, action["id"])
    assert (done["total"], done["done"], done["failed"]) == (3, 3, 0)
    assert done["finishedAt"] is not None
    assert _node(caller, group["id"]) is None
    assert [node["count"] for node in caller.ask(GROUPS)["deadLetters"]["nodes"]] == [1]
    query = "query($f: RunFilter) { runs(filter: $f) { nodes { state origin { id } } } }"
    retried = caller.ask(query, f={"states": ["QUEUED"]})["runs"]["nodes"]
    assert {run["origin"]["id"] for run in retried} == set(first)
    assert caller.ask(RETRY, f={"ids": [other]}, d=False)["retryRuns"]["matched"] == 1


def test_a_cancel_with_no_condition_is_the_tenants_all(
    api: Api, hands: Hands, tenant: Principal, other_tenant: Principal
) -> None:
    caller = api.caller(tenant)
    for principal in (tenant, other_tenant):
        api.installation.trigger(principal, "diagnostics.echo")
    begun = caller.ask(CANCEL, f={}, d=False)["cancelRuns"]
    assert begun["matched"] == 1
    hands.system.call(ADVANCE, hands.epoch)
    query = "{ runs { nodes { state } } }"
    assert caller.ask(query)["runs"]["nodes"] == [{"state": "CANCELLED"}]
    assert api.caller(other_tenant).ask(query)["runs"]["nodes"] == [{"state": "QUEUED"}]


def test_anothers_group_action_and_runs_are_as_none(
    api: Api, hands: Hands, tenant: Principal, other_tenant: Principal
) -> None:
    caller, owner = api.caller(tenant), api.caller(other_tenant)
    run = _fail(hands, other_tenant, "no")
    [group] = owner.ask(GROUPS)["deadLetters"]["nodes"]
    action = owner.ask(RETRY, f={"ids": []}, d=False)["retryRuns"]["bulkAction"]["id"]
    assert caller.ask(GROUPS)["deadLetters"]["nodes"] == []
    assert _node(caller, group["id"]) is None
    assert _node(caller, action) is None
    answers = [
        caller.ask(LETTERS, g=identifier, d=dry)["retryDeadLetters"]
        for identifier in (group["id"], ids.show("dlg", ids.new()), "dlg_", "nonsense", run)
        for dry in (True, False)
    ]
    assert [answer["problem"]["code"] for answer in answers] == ["NOT_FOUND"] * len(answers)
    assert all(answer == answers[0] for answer in answers)
    for mutation, name in ((CANCEL, "cancelRuns"), (RETRY, "retryRuns")):
        for unknown in (run, ids.show("run", ids.new()), "nonsense"):
            assert caller.ask(mutation, f={"ids": [unknown]})[name]["matched"] == 0
    rows = api.installation.rows("SELECT 1 FROM bulk_actions WHERE tenant_id = %s", str(tenant.tenant))
    assert rows == []
    assert owner.ask(GROUPS)["deadLetters"]["nodes"] == [group]


def test_who_may_read_runs_may_watch_and_no_more(api: Api, hands: Hands, tenant: Principal) -> None:
    owner, reader, nobody = api.caller(tenant), api.caller(tenant, "runs:read"), api.caller(tenant, "keys:manage")
    _fail(hands, tenant, "no")
    [group] = reader.ask(GROUPS)["deadLetters"]["nodes"]
    action = owner.ask(CANCEL, f={"ids": []}, d=False)["cancelRuns"]["bulkAction"]["id"]
    for identifier in (group["id"], action):
        assert _node(reader, identifier)["id"] == identifier
        assert _node(nobody, identifier) is None
    assert nobody.fail(GROUPS) == "FORBIDDEN"
    for mutation, name, given in (
        (CANCEL, "cancelRuns", {"f": {}}),
        (RETRY, "retryRuns", {"f": {}}),
        (LETTERS, "retryDeadLetters", {"g": group["id"]}),
    ):
        for dry in (True, False):
            problem = reader.ask(mutation, **given, d=dry)[name]["problem"]
            assert (problem["code"], problem["requiredScope"]) == ("FORBIDDEN", "runs:write")
    assert api.installation.rows("SELECT count(*) FROM bulk_actions WHERE tenant_id = %s", str(tenant.tenant)) == [(1,)]


def test_a_narrowed_key_retries_no_other_tasks_letters(api: Api, hands: Hands, tenant: Principal) -> None:
    _fail(hands, tenant, "no")
    narrowed = api.caller(tenant, "runs:read", "runs:write", tasks=["diagnostics.sleep"])
    [group] = narrowed.ask(GROUPS)["deadLetters"]["nodes"]
    assert narrowed.ask(RETRY, f={})["retryRuns"]["matched"] == 0
    problem = narrowed.ask(LETTERS, g=group["id"], d=False)["retryDeadLetters"]["problem"]
    assert problem["code"] == "FORBIDDEN"


def test_the_twenty_first_action_waits_for_another(api: Api, hands: Hands, tenant: Principal) -> None:
    caller = api.caller(tenant)
    api.installation.trigger(tenant, "diagnostics.echo")
    for _ in range(20):
        assert caller.ask(CANCEL, f={}, d=False)["cancelRuns"]["success"] is True
    refused = caller.ask(CANCEL, f={}, d=False)["cancelRuns"]
    assert (refused["success"], refused["bulkAction"]) == (False, None)
    assert refused["problem"]["code"] == "QUOTA_EXCEEDED"
    assert (refused["problem"]["limitName"], refused["problem"]["used"]) == ("bulkActions", 20)


@pytest.mark.parametrize("first", [0, 101])
def test_a_page_of_groups_has_its_bounds(api: Api, tenant: Principal, first: int) -> None:
    caller = api.caller(tenant)
    assert caller.fail(GROUPS, n=first) == "BAD_USER_INPUT"
    assert caller.fail(GROUPS, a="nonsense") == "BAD_USER_INPUT"


def test_the_audit_log_tells_which_runs_were_meant(api: Api, tenant: Principal) -> None:
    caller, run = api.caller(tenant), ids.show("run", ids.new())
    meant: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
        ({"scheduleId": "of nothing here"}, {"ids": []}),
        ({"scheduleId": ids.show("sch", UUID(int=7))}, {"schedule_id": ids.show("sch", UUID(int=7))}),
        ({"ids": [run], "states": ["QUEUED"]}, {"ids": [run], "states": ["QUEUED"]}),
        ({"createdAfter": "2026-11-22T00:00:00Z"}, {"created_after": "2026-11-22T00:00:00+00:00"}),
    )
    for given, told in meant:
        assert caller.ask(CANCEL, f=given, d=False)["cancelRuns"]["success"]
        [newest] = caller.ask("{ auditLog(first: 1) { nodes { detail } } }")["auditLog"]["nodes"]
        assert newest["detail"] == {"matched": 0, "filter": told}

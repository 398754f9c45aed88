"""Limits and pauses over GraphQL: what a tenant's administrator sees and sets."""

from __future__ import annotations

from tenants.context import Principal
from tests.support.apis import Api

LIMIT = "id name kind amount perSeconds burst taskName queue concurrencyKey used"
SET = (
    f"mutation($i: LimitInput!) {{ setLimit(input: $i) {{ success message limit {{ {LIMIT} }}"
    " problem { __typename code ... on InvalidInput { issues { path } } ... on UnknownTask { candidates } } } }"
)
TRIGGER = (
    'mutation { triggerBackgroundTask(taskName: "echo", args: {value: 1}) { success taskId problem { __typename code'
    " message ... on QuotaExceeded { limitName limit used } ... on InvalidState { state } } } }"
)
EXPLAIN = "query($id: ID!) { explainRun(id: $id) { reason message limitName position expectedStart run { id } } }"
PAUSED = "tenant { paused pauseNote pauses { taskName draining note } }"


def test_a_limit_is_set_shown_found_and_removed(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    wanted = {"name": "provider", "kind": "RATE", "amount": 100, "perSeconds": 60, "burst": 5, "taskName": "echo"}
    made = caller.ask(SET, i=wanted)["setLimit"]
    assert made["success"], made
    limit = made["limit"]
    assert limit == {
        **wanted,
        "id": limit["id"],
        "taskName": "diagnostics.echo",
        "queue": None,
        "concurrencyKey": None,
        "used": 0,
    }
    assert caller.ask(f"{{ limits {{ {LIMIT} }} }}")["limits"] == [limit]
    found = caller.ask(f"query($id: ID!) {{ node(id: $id) {{ ... on Limit {{ {LIMIT} }} }} }}", id=limit["id"])
    assert found["node"] == limit
    gone = caller.ask("mutation($id: ID!) { removeLimit(id: $id) { success deletedId } }", id=limit["id"])
    assert gone["removeLimit"] == {"success": True, "deletedId": limit["id"]}
    assert caller.ask("{ limits { id } }")["limits"] == []


def test_a_refused_limit_says_which_field_is_wrong(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    for wanted, problem in (
        (
            {"name": "x", "kind": "CONCURRENCY", "amount": 0},
            {"code": "BAD_USER_INPUT", "issues": [{"path": ["amount"]}]},
        ),
        ({"name": "x", "kind": "CONCURRENCY", "amount": 1, "taskName": "ecko"}, {"code": "UNKNOWN_TASK"}),
        ({"name": "x", "kind": "WEIGHT", "amount": 9}, {"code": "FORBIDDEN"}),
    ):
        answer = caller.ask(SET, i=wanted)["setLimit"]
        assert answer["success"] is False
        assert problem.items() <= answer["problem"].items()
    assert caller.ask("{ limits { id } }")["limits"] == []


def test_a_full_backlog_is_a_problem_of_its_own_type(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    caller.ask(SET, i={"name": "backlog", "kind": "BACKLOG", "amount": 2})
    assert [caller.ask(TRIGGER)["triggerBackgroundTask"]["success"] for _ in range(3)] == [True, True, False]
    problem = caller.ask(TRIGGER)["triggerBackgroundTask"]["problem"]
    assert (problem["__typename"], problem["code"]) == ("QuotaExceeded", "QUOTA_EXCEEDED")
    assert (problem["limitName"], problem["limit"], problem["used"]) == ("backlog", 2, 2)
    assert caller.ask("{ limits { used } }")["limits"] == [{"used": 2}]


def test_pause_drain_and_resume(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    pause = (
        f'mutation($n: String, $d: Boolean!) {{ pauseTasks(taskName: $n, note: "why", draining: $d) {{ {PAUSED} }} }}'
    )
    resume = f"mutation($n: String) {{ resumeTasks(taskName: $n) {{ {PAUSED} }} }}"
    echo = {"taskName": "diagnostics.echo", "draining": False, "note": "why"}
    whole = {"taskName": None, "draining": False, "note": "why"}
    assert caller.ask(pause, n="echo", d=False)["pauseTasks"]["tenant"] == {
        "paused": False,
        "pauseNote": None,
        "pauses": [echo],
    }
    run = caller.ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
    why = caller.ask(EXPLAIN, id=run)["explainRun"]
    assert (why["reason"], why["run"]) == ("TASK_PAUSED", {"id": run})
    both = caller.ask(pause, d=False)["pauseTasks"]["tenant"]
    assert both == {"paused": True, "pauseNote": "why", "pauses": [whole, echo]}
    caller.ask(resume, n="echo")
    assert caller.ask(resume)["resumeTasks"]["tenant"] == {"paused": False, "pauseNote": None, "pauses": []}
    drained = caller.ask(pause, d=True)["pauseTasks"]["tenant"]
    assert drained == {"paused": False, "pauseNote": None, "pauses": [{**whole, "draining": True}]}
    problem = caller.ask(TRIGGER)["triggerBackgroundTask"]["problem"]
    assert (problem["code"], problem["state"]) == ("INVALID_STATE", "DRAINING")


def test_why_a_run_of_nobodys_waits_is_told_to_nobody(api: Api, tenant: Principal, other_tenant: Principal) -> None:
    run = api.caller(other_tenant).ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
    assert api.caller(tenant).ask(EXPLAIN, id=run) == {"explainRun": None}

"""Plans over GraphQL and on the command line: who sets them, what they stop, and what is told of them."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tenants import members, quotas, system
from tenants.context import Principal, Role
from tenants.errors import Forbidden, InvalidState, NotFound, QuotaExceeded
from tenants.quotas import Quota
from tests.support import commands
from tests.support.apis import Api, Caller
from tests.support.installations import Installation

USAGE = (
    "{ usage { period plan runs runLimit workerSeconds backlog backlogLimit quotas { name limit used alarmedAt } } }"
)
ASSIGN = (
    "mutation($t: String!, $p: String!, $q: [QuotaInput!]) { assignPlan(tenant: $t, plan: $p, quotas: $q)"
    " { success problem { code ... on InvalidInput { issues { path } } } } }"
)
SET = (
    "mutation($n: String!, $q: [QuotaInput!]!) { setPlan(name: $n, quotas: $q)"
    " { success plan { name quotas { name limit } } problem { code ... on InvalidInput { issues { path } } } } }"
)
TRIGGER = (
    'mutation { triggerBackgroundTask(taskName: "diagnostics.echo") { success problem { __typename code'
    " ... on QuotaExceeded { limitName limit used } } } }"
)
CREATE = (
    'mutation { createApiKey(input: {name: "k", scopes: ["runs:read"]}) { success problem { code'
    " ... on QuotaExceeded { limitName limit used } } } }"
)


@pytest.fixture
def operator(installation: Installation) -> Principal:
    """An operator."""
    return system.acting(installation.settings, system.OPERATORS, "tests")


def _of(caller: Caller, name: str) -> dict[str, Any]:
    found = caller.ask(USAGE)["usage"]["quotas"]
    [one] = [quota for quota in found if quota["name"] == name]
    return dict(one)


def test_without_quotas_nothing_changes(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    assert caller.ask(TRIGGER)["triggerBackgroundTask"]["success"]
    found = caller.ask(USAGE)["usage"]
    assert (found["plan"], found["runs"], found["runLimit"], found["backlog"], found["backlogLimit"]) == (
        "standard", 1, None, 1, None,
    )  # fmt: skip
    assert {one["limit"] for one in found["quotas"]} == {None}
    assert {one["name"] for one in found["quotas"]} == {quota.name for quota in Quota}


def test_an_operator_sets_a_plan_and_it_stops_at_once(api: Api, tenant: Principal, slug: str) -> None:
    caller, operator = api.caller(tenant), api.operator()
    made = operator.ask(SET, n="small", q=[{"name": "RUNS", "limit": 1}, {"name": "BACKLOG", "limit": 50}])["setPlan"]
    assert made["plan"] == {
        "name": "small", "quotas": [{"name": "RUNS", "limit": 1}, {"name": "BACKLOG", "limit": 50}],
    }  # fmt: skip
    assert operator.ask(ASSIGN, t=slug, p="small")["assignPlan"]["success"]
    assert caller.ask(TRIGGER)["triggerBackgroundTask"]["success"]
    problem = caller.ask(TRIGGER)["triggerBackgroundTask"]["problem"]
    assert problem == {
        "__typename": "QuotaExceeded", "code": "QUOTA_EXCEEDED", "limitName": "runs", "limit": 1, "used": 1,
    }  # fmt: skip
    found = caller.ask(USAGE)["usage"]
    assert (found["plan"], found["runs"], found["runLimit"], found["backlogLimit"]) == ("small", 1, 1, 50)
    caller.ask('mutation { setLimit(input: {name: "n", kind: BACKLOG, amount: 3}) { success } }')
    assert caller.ask(USAGE)["usage"]["backlogLimit"] == 3
    assert {plan["name"] for plan in operator.ask("{ plans { name } }")["plans"]} >= {"small", "standard"}
    huge = operator.ask(ASSIGN, t=slug, p="small", q=[{"name": "RUNS", "limit": 1e12}])["assignPlan"]
    assert huge["success"]
    assert caller.ask(USAGE)["usage"]["runLimit"] == 2**31 - 1
    assert _of(caller, "RUNS")["limit"] == 1e12


def test_nobody_else_sees_or_sets_plans(api: Api, tenant: Principal, slug: str) -> None:
    caller = api.caller(tenant)
    assert caller.fail("{ plans { name } }") == "FORBIDDEN"
    before = api.installation.rows("SELECT * FROM plans ORDER BY name")
    for query, given in ((SET, {"n": "mine", "q": []}), (ASSIGN, {"t": slug, "p": "standard"})):
        [answer] = caller.ask(query, **given).values()
        assert (answer["success"], answer["problem"]["code"]) == (False, "FORBIDDEN")
    assert api.installation.rows("SELECT * FROM plans ORDER BY name") == before


@pytest.mark.parametrize(
    ("name", "quota", "path"),
    [
        ("", 1, "name"), (" p", 1, "name"), ("a" * 64, 1, "name"), ("p\u202ep", 1, "name"),
        ("p", -1, "runs"), ("p", 1.5, "runs"), ("p", 1e16, "runs"),
    ],
)  # fmt: skip
def test_what_is_no_plan_is_named(api: Api, name: str, quota: float, path: str) -> None:
    answer = api.operator().ask(SET, n=name, q=[{"name": "RUNS", "limit": quota}])["setPlan"]
    assert (answer["success"], answer["problem"]["code"]) == (False, "BAD_USER_INPUT")
    assert answer["problem"]["issues"] == [{"path": [path]}]


def test_what_is_not_there_is_not_found_and_what_is_in_use_stays(
    installation: Installation, operator: Principal, slug: str
) -> None:
    installation.write(operator, quotas.set_plan, "kept", {})
    installation.write(operator, quotas.assign, slug, "kept")
    for name in ("kept", quotas.DEFAULT):
        with pytest.raises(InvalidState):
            installation.write(operator, quotas.remove_plan, name)
    for given in (("nobody", "kept"), (slug, "nothing")):
        with pytest.raises(NotFound):
            installation.write(operator, quotas.assign, *given)
    installation.write(operator, quotas.assign, slug, quotas.DEFAULT)
    installation.write(operator, quotas.remove_plan, "kept")
    with pytest.raises(NotFound):
        installation.write(operator, quotas.remove_plan, "kept")


def test_a_tenants_own_administrator_sets_nothing(installation: Installation, tenant: Principal, slug: str) -> None:
    for service, given in (
        (quotas.set_plan, ("mine", {})), (quotas.remove_plan, ("standard",)), (quotas.assign, (slug, "standard")),
    ):  # fmt: skip
        with pytest.raises(Forbidden):
            installation.write(tenant, service, *given)


def test_keys_stop_at_their_number_and_ended_ones_do_not_count(api: Api, tenant: Principal, slug: str) -> None:
    caller, operator = api.caller(tenant), api.operator()
    assert operator.ask(ASSIGN, t=slug, p="standard", q=[{"name": "KEYS", "limit": 2}])["assignPlan"]["success"]
    assert caller.ask(CREATE)["createApiKey"]["success"]
    refused = caller.ask(CREATE)["createApiKey"]
    assert refused["problem"] == {"code": "QUOTA_EXCEEDED", "limitName": "keys", "limit": 2, "used": 2}
    assert _of(caller, "KEYS")["alarmedAt"] is not None
    [newest, _] = caller.ask("{ apiKeys { nodes { id } } }")["apiKeys"]["nodes"]
    caller.ask("mutation($i: ID!) { revokeApiKey(id: $i) { success } }", i=newest["id"])
    assert caller.ask(CREATE)["createApiKey"]["success"]
    alarms = "SELECT target FROM audit_entries WHERE tenant_id = %s AND action = 'quota.alarm'"
    assert api.installation.rows(alarms, str(tenant.tenant)) == [("keys",)]
    told = api.client.get(f"{api.url}/metrics").text
    assert "quota" not in told
    assert slug not in told


def test_members_and_bytes_stop_at_their_number(
    installation: Installation, tenant: Principal, operator: Principal, slug: str
) -> None:
    own = {Quota.MEMBERS: 1.0, Quota.UPLOAD_BYTES: 100.0}
    installation.write(operator, quotas.assign, slug, quotas.DEFAULT, own)
    users = [system.enroll(installation.settings, f"{name}@{slug}.example", None) for name in ("ada", "bob")]
    installation.write(tenant, members.join, users[0], Role.OWNER)
    with pytest.raises(QuotaExceeded) as refused:
        installation.write(tenant, members.join, users[1], Role.MEMBER)
    assert (refused.value.limit_name, refused.value.used) == ("members", 1)
    installation.write(tenant, members.join, users[0], Role.OWNER)
    installation.write(tenant, quotas.take_bytes, 60)
    with pytest.raises(QuotaExceeded) as refused:
        installation.write(tenant, quotas.take_bytes, 41)
    assert (refused.value.limit_name, refused.value.used) == ("uploadBytes", 60)
    installation.write(tenant, quotas.take_bytes, 40)
    assert installation.write(tenant, quotas.used, Quota.UPLOAD_BYTES) == 100
    alarms = "SELECT target FROM audit_entries WHERE tenant_id = %s AND action = 'quota.alarm' ORDER BY at"
    assert installation.rows(alarms, str(tenant.tenant)) == [("members",), ("uploadBytes",)]


def test_plans_on_the_command_line(installation: Installation, tenant: Principal, slug: str) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return commands.run(installation, "plan", *arguments)

    made = command("set", "medium", "--quota", "runs=9", "--quota", "uploadBytes=1000", "--json")
    assert json.loads(made.stdout) == {"name": "medium", "quotas": {"runs": 9, "uploadBytes": 1000}}, made.stderr
    given = command("assign", slug, "medium", "--quota", "runs=none", "--quota", "members=3")
    assert given.stdout == f"{slug} has the plan medium: runs unlimited, members 3.\n", given.stderr
    assert installation.write(tenant, quotas.every) == {Quota.MEMBERS: 3, Quota.UPLOAD_BYTES: 1000}
    assert "medium: runs 9, uploadBytes 1000\n" in command("list").stdout
    for wrong, told in (("runs=many", "neither a whole number nor none"), ("runs", "neither"), ("walks=1", "no quota")):
        refused = command("set", "medium", "--quota", wrong)
        assert (refused.returncode, told in refused.stderr) == (1, True)
    assert "medium: runs 9, uploadBytes 1000\n" in command("list").stdout
    assert command("remove", "medium").returncode == 1

"""GraphQL over HTTP, on a real socket."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from api.graphql import QUERY_BYTES
from tenants import ids
from tenants.context import Principal
from tests.support.apis import Api, Caller
from tests.support.installations import Installation

STANDARD = "application/graphql-response+json"
TRIGGER = (
    "mutation($n: String!, $a: JSON, $k: String) { triggerBackgroundTask(taskName: $n, args: $a, idempotencyKey: $k)"
    " { success taskId replayed message run { id state taskName args } problem { __typename code message"
    " ... on InvalidInput { issues { path message } } ... on Conflict { existing { id } }"
    " ... on UnknownTask { candidates } ... on Forbidden { requiredScope } } } }"
)
BULK = (
    "mutation($i: [TriggerInput!]!) { triggerBackgroundTasks(inputs: $i)"
    " { success runs { id } problem { code ... on InvalidInput { issues { path } } } } }"
)


def test_the_mutation_above_all_others_verbatim(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    query = 'mutation { triggerBackgroundTask(taskName: "refresh_all_materialized_views") { success taskId message } }'
    answer = caller.ask(query)["triggerBackgroundTask"]
    assert answer["success"] is True
    assert answer["taskId"].startswith("run_")
    run = caller.ask("query($id: ID!) { run(id: $id) { taskName state family } }", id=answer["taskId"])["run"]
    assert run == {"taskName": "sales.refresh_all_materialized_views", "state": "QUEUED", "family": "sales"}


def test_a_refused_trigger_leaves_nothing(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    for arguments in (
        {"n": "ecko"},
        {"n": "echo", "a": {"vale": 1}},
        {"n": "echo", "a": [1]},
        {"n": "echo", "a": {"value": 1}, "k": ""},
        {"n": "echo", "a": {"value": 1}, "k": "x" * 256},
        {"n": "echo", "a": {"value": "x" * 200_000}},
    ):
        answer = caller.ask(TRIGGER, **arguments)["triggerBackgroundTask"]
        assert (answer["success"], answer["taskId"], answer["run"]) == (False, None, None)
        assert answer["problem"]["code"] in {"UNKNOWN_TASK", "BAD_USER_INPUT"}
    assert caller.ask("{ runs { totalCount } }")["runs"]["totalCount"] == 0


def test_an_idempotency_key_gives_the_first_run_again(api: Api, tenant: Principal, other_tenant: Principal) -> None:
    caller, other = api.caller(tenant), api.caller(other_tenant)
    arguments: dict[str, Any] = {"n": "echo", "a": {"value": 1}, "k": "ключ-1"}
    first = caller.ask(TRIGGER, **arguments)["triggerBackgroundTask"]
    again = caller.ask(TRIGGER, **arguments)["triggerBackgroundTask"]
    assert (first["replayed"], again["replayed"]) == (False, True)
    assert first["taskId"] == again["taskId"]
    clash = caller.ask(TRIGGER, **{**arguments, "a": {"value": 2}})["triggerBackgroundTask"]
    assert clash["problem"]["__typename"] == "Conflict"
    assert clash["problem"]["existing"] == {"id": first["taskId"]}
    assert other.ask(TRIGGER, **arguments)["triggerBackgroundTask"]["taskId"] != first["taskId"]
    assert caller.ask("{ runs { totalCount } }")["runs"]["totalCount"] == 1


def test_a_bulk_trigger_accepts_all_or_none(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    inputs = [{"taskName": "echo", "args": {"value": number}} for number in range(1000)]
    refused = caller.ask(BULK, i=[*inputs[:5], {"taskName": "echo", "args": {"vale": 1}}])["triggerBackgroundTasks"]
    assert refused["problem"] == {"code": "BAD_USER_INPUT", "issues": [{"path": ["5", "args", "vale"]}]}
    assert caller.ask(BULK, i=[*inputs, inputs[0]])["triggerBackgroundTasks"]["success"] is False
    assert caller.ask("{ runs { totalCount } }")["runs"]["totalCount"] == 0
    accepted = caller.ask(BULK, i=inputs)["triggerBackgroundTasks"]
    assert len({run["id"] for run in accepted["runs"]}) == 1000


@pytest.mark.parametrize("operation", ["triggerBackgroundTasks", "runs"])
def test_only_a_bulk_trigger_may_be_large(api: Api, tenant: Principal, operation: str) -> None:
    caller = api.caller(tenant)
    if operation == "runs":
        answer = caller.post(
            "query($f: RunFilter) { runs(filter: $f) { totalCount } }", {"f": {"family": "x" * 300_000}}
        )
        assert answer.status_code == 413
        two = BULK.removesuffix("}") + "cancelRun(id: 1) { message } }"
        assert caller.post(two, {"i": [{"taskName": "x" * 300_000}]}).status_code == 413
    else:
        inputs = [{"taskName": "echo", "args": {"value": "x" * 3000}} for _ in range(100)]
        assert caller.ask(BULK, i=inputs)["triggerBackgroundTasks"]["success"] is True
        assert caller.post(BULK, {"i": [{"taskName": "x" * 3_000_000}]}).status_code == 413


def test_a_stranger_is_not_listened_to_for_long(api: Api, tenant: Principal) -> None:
    stranger, gone = api.stranger(), Caller(api.url, api.client, "tnt_live_" + "A" * 30 + "_AAAAAA")
    for caller, status in ((stranger, 413), (gone, 401), (api.caller(tenant), 200)):
        inputs = [{"taskName": "echo", "args": {"value": "x" * 2000}} for _ in range(50)]
        assert caller.post(BULK, {"i": inputs}).status_code == status
        assert caller.post("{ __typename }", {"unused": "x" * 1000}).status_code == 200


def test_a_long_query_is_refused(api: Api, tenant: Principal) -> None:
    answer = api.caller(tenant).post("{ __typename #" + "x" * QUERY_BYTES + "\n}")
    assert answer.status_code == 413
    assert answer.json()["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


def test_a_body_without_a_length_is_counted_as_it_comes(api: Api) -> None:
    def body() -> Any:
        for _ in range(100):
            yield b"x" * 100_000

    answer = api.client.post(f"{api.url}/graphql", content=body(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"\xef\xbb\xbf{}", "application/json"),
        (b'{"query": "{ \xff }"}', "application/json"),
        (b'{"query": "\\ud800"}', "application/json"),
        (b'{"query": "{ __typename }", "variables": {"a": NaN}}', "application/json"),
        (b'[{"query": "{ __typename }"}]', "application/json"),
        (b"null", "application/json"),
        (b'"text"', "application/json"),
        (b'{"query": 5}', "application/json"),
        (b'{"query": "{ __typename }", "variables": [1]}', "application/json"),
        (b'{"query": "{ __typename }", "operationName": 5}', "application/json"),
        (b'{"query": "{ __typename }", "operationName": {"a": "b"}}', "application/json"),
        (b'{"query": "{ __typename }", "operationName": ["a"]}', "application/json"),
        (b'{"query": "query a { __typename }", "operationName": "b"}', "application/json"),
        (b'{"variables": {}}', "application/json"),
        (b'{"query": "{ __typename }"}', "text/plain"),
        (b'{"query": "{ __typename }"}', "application/x-www-form-urlencoded"),
        (b'{"query": "{ __typename }"}', "multipart/form-data; boundary=x"),
        (b'{"query": "{ __typename }"}', ""),
    ],
)
def test_what_is_no_request_is_refused_with_a_code(api: Api, content: bytes, kind: str) -> None:
    answer = api.client.post(f"{api.url}/graphql", content=content, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code in {400, 415}
    [error] = answer.json()["errors"]
    assert error["extensions"]["code"] in {"BAD_USER_INPUT", "GRAPHQL_PARSE_FAILED"}
    assert "data" not in answer.json()


def test_queries_may_come_by_get_and_mutations_may_not(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    found = caller.client.get(f"{api.url}/graphql", params={"query": "{ viewer { kind } }"}, headers=caller.headers)
    assert found.json()["data"] == {"viewer": {"kind": "API_KEY"}}
    query = 'mutation { triggerBackgroundTask(taskName: "echo", args: {value: 1}) { success } }'
    refused = caller.client.get(f"{api.url}/graphql", params={"query": query}, headers=caller.headers)
    assert refused.status_code in {400, 405}
    assert caller.ask("{ runs { totalCount } }")["runs"]["totalCount"] == 0


@pytest.mark.parametrize(
    "query",
    ["{ nope }", "{", "query($a: Int!) { node(id: $a) { id } }", "query a { __typename } query b { __typename }"],
)
def test_the_standard_media_type_answers_a_request_error_with_400(api: Api, query: str) -> None:
    standard = api.stranger().post(query, Accept=STANDARD)
    assert (standard.status_code, standard.headers["content-type"]) == (400, STANDARD)
    assert "data" not in standard.json()
    usual = api.stranger().post(query, Accept="application/json")
    assert (usual.status_code, usual.headers["content-type"]) == (200, "application/json")
    assert standard.json()["errors"] == usual.json()["errors"]


@pytest.mark.parametrize(
    "arguments",
    [
        "first: 0",
        "first: -1",
        "first: 101",
        "first: 1000000000",
        "last: 0",
        "first: 1, last: 1",
        'after: "x"',
        'before: "cnVuOg"',
    ],
)
def test_a_page_that_is_none_is_refused(api: Api, tenant: Principal, arguments: str) -> None:
    assert api.caller(tenant).fail(f"{{ runs({arguments}) {{ nodes {{ id }} }} }}") == "BAD_USER_INPUT"


def test_pages_are_walked_both_ways(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    accepted = caller.ask(BULK, i=[{"taskName": "echo", "args": {"value": n}} for n in range(7)])
    newest_first = sorted((run["id"] for run in accepted["triggerBackgroundTasks"]["runs"]), reverse=True)
    page = "nodes { id } edges { cursor node { id } } pageInfo { hasNextPage hasPreviousPage startCursor endCursor }"
    first = caller.ask(f"{{ runs(first: 3) {{ {page} totalCount }} }}")["runs"]
    assert [node["id"] for node in first["nodes"]] == newest_first[:3]
    assert [edge["node"] for edge in first["edges"]] == first["nodes"]
    assert (first["totalCount"], first["pageInfo"]["hasNextPage"], first["pageInfo"]["hasPreviousPage"]) == (
        7,
        True,
        False,
    )
    query = f"query($c: String!) {{ runs(first: 100, after: $c) {{ {page} }} }}"
    rest = caller.ask(query, c=first["pageInfo"]["endCursor"])["runs"]
    assert [node["id"] for node in rest["nodes"]] == newest_first[3:]
    back = caller.ask(
        f"query($c: String!) {{ runs(last: 2, before: $c) {{ {page} }} }}", c=rest["pageInfo"]["startCursor"]
    )
    assert [node["id"] for node in back["runs"]["nodes"]] == newest_first[1:3]
    assert caller.ask("{ runs { totalCount(max: 3) } }")["runs"]["totalCount"] == 3


def test_a_list_asks_for_progress_and_origin_once(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    first = caller.ask(TRIGGER, n="echo", a={"value": 1})["triggerBackgroundTask"]["taskId"]
    caller.ask("mutation($i: ID!) { cancelRun(id: $i) { success } }", i=first)
    retry = "mutation($i: ID!) { retryRun(id: $i) { success run { id origin { id } } } }"
    for _ in range(5):
        assert caller.ask(retry, i=first)["retryRun"]["run"]["origin"] == {"id": first}
    listed = caller.ask("{ runs { nodes { id origin { id } progress { fraction } } } }")["runs"]["nodes"]
    assert [node["origin"] for node in listed] == [{"id": first}] * 5 + [None]


def test_a_repetition_of_the_same_work_shares_its_effects_unless_told_otherwise(
    api: Api, tenant: Principal, installation: Installation
) -> None:
    caller = api.caller(tenant)
    first = caller.ask(TRIGGER, n="echo", a={"value": 1})["triggerBackgroundTask"]["taskId"]
    caller.ask("mutation($i: ID!) { cancelRun(id: $i) { success } }", i=first)
    shared = []
    for given in ("", "args: {value: 1}", "args: {value: 2}", "repeatEffects: true", "repeatEffects: false"):
        retry = f'mutation {{ retryRun(id: "{first}" {given}) {{ run {{ id origin {{ id }} }} }} }}'
        run = caller.ask(retry)["retryRun"]["run"]
        assert run["origin"] == {"id": first}
        shared += installation.rows("SELECT effects_of FROM runs WHERE id = %s", str(ids.read("run", run["id"])))
    same = ids.read("run", first)
    assert shared == [(same,), (same,), (None,), (None,), (same,)]


def test_a_node_is_found_by_its_id_whatever_it_is(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    run = caller.ask(TRIGGER, n="echo", a={"value": 1})["triggerBackgroundTask"]["taskId"]
    seen = caller.ask('{ viewer { tenant { id } } task(name: "echo") { id } families { id } apiKeys { nodes { id } } }')
    known = {
        run: "Run",
        seen["viewer"]["tenant"]["id"]: "Tenant",
        seen["task"]["id"]: "TaskDefinition",
        seen["families"][0]["id"]: "FamilyStatus",
        seen["apiKeys"]["nodes"][0]["id"]: "ApiKey",
    }
    for identifier, name in known.items():
        node = caller.ask("query($i: ID!) { node(id: $i) { __typename id } }", i=identifier)["node"]
        assert node == {"__typename": name, "id": identifier}


def test_every_answer_has_an_id_and_the_security_headers(api: Api) -> None:
    answer = api.client.get(f"{api.url}/health/live", headers={"X-Request-ID": "a-clients-own-id"})
    assert answer.headers["x-request-id"] == "a-clients-own-id"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["strict-transport-security"].startswith("max-age=")
    forged = api.client.get(f"{api.url}/health/live", headers={"X-Request-ID": "a b\tc{}"})
    assert forged.headers["x-request-id"] not in {"", "a b\tc{}"}
    assert (
        "access-control-allow-origin"
        not in api.client.get(f"{api.url}/health/live", headers={"Origin": "https://elsewhere.example"}).headers
    )


def test_the_page_for_browsers_loads_everything_from_here(api: Api) -> None:
    page = api.client.get(f"{api.url}/graphql", headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    loaded = [part.split('"')[0] for mark in ('src="', 'href="') for part in page.text.split(mark)[1:]]
    assert len(loaded) == 6
    for path in loaded:
        assert path.startswith("/static/")
        assert api.client.get(f"{api.url}{path}").status_code == 200, path
    assert api.client.get(f"{api.url}/static/../__init__.py").status_code == 404


def test_metrics_name_routes_and_never_what_was_asked(api: Api, tenant: Principal) -> None:
    api.caller(tenant).ask("{ viewer { kind } }")
    api.client.get(f"{api.url}/nothing/of/the/kind")
    text = api.client.get(f"{api.url}/metrics").text
    assert 'tenantry_http_requests_total{method="POST",route="/graphql",status="200"}' in text
    assert "nothing" not in text


def test_an_unknown_path_is_not_found_and_a_wrong_method_not_allowed(api: Api) -> None:
    assert api.client.get(f"{api.url}/nothing").status_code == 404
    assert api.client.put(f"{api.url}/graphql").status_code == 405
    host: httpx2.Response = api.client.get(f"{api.url}/health/live", headers={"Host": "a/?x="})
    assert host.status_code in {200, 400}


def test_no_answer_shows_an_address_or_a_stack(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    bodies = [
        caller.post("{ runs { nodes { id } } }", {"x": 1}).text,
        caller.post(TRIGGER, {"n": "echo", "a": {"value": "\ud7ff\U0001f600\u200f"}}).text,
        caller.client.post(
            f"{api.url}/graphql",
            content=('{"query": "{ __typename }", "variables": {"a": ' + "[" * 5000 + "]" * 5000 + "}}").encode(),
            headers={**caller.headers, "Content-Type": "application/json"},
        ).text,
    ]
    for body in bodies:
        for secret in ("postgresql://", "Traceback", ".py", "site-packages"):
            assert secret not in body
        json.loads(body)

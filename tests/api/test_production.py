"""What an installation in production shows to the internet: no more than it must."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import psycopg2
import pytest

from tenants.context import Principal
from tests.support import apis, streams
from tests.support.apis import Api, Caller
from tests.support.installations import Installation, eventually

ENVIRONMENT = {
    "TENANTRY_ENVIRONMENT": "production",
    "TENANTRY_API__ALLOWED_HOSTS": '["127.0.0.1", "api.example.org"]',
    "TENANTRY_API__ALLOWED_ORIGINS": '["https://console.example.org"]',
    "TENANTRY_API__ANSWER_BYTES": "20000",
    "TENANTRY_API__OPERATION_SECONDS": "4",
    "TENANTRY_API__IDLE_SOCKET_SECONDS": "0.5",
    "TENANTRY_API__SOCKETS_PER_TENANT": "5",
    "TENANTRY_API__SOCKETS_PER_ADDRESS": "8",
}


@pytest.fixture(scope="module")
def api(installation: Installation) -> Iterator[Api]:
    """An API in production, with small limits."""
    with apis.running(installation, "production", **ENVIRONMENT) as started:
        yield started


def test_there_is_no_page_for_browsers(api: Api) -> None:
    for path in ("/graphql", "/static/graphiql/index.html", "/static/graphiql/graphiql.min.js"):
        assert api.client.get(f"{api.url}{path}", headers={"Accept": "text/html"}).status_code == 404, path


def test_the_schema_is_not_told(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    for query in ("{ __schema { queryType { name } } }", '{ __type(name: "Run") { name } }'):
        answer = caller.post(query).json()
        assert {error["extensions"]["code"] for error in answer["errors"]} == {"GRAPHQL_VALIDATION_FAILED"}
        assert "data" not in answer
    for query in ("{ viewr { kind } }", "{ runs(frist: 1) { nodes { id } } }", "{ viewer { ... on Viewr { kind } } }"):
        assert "Did you mean" not in caller.post(query).text
    mistaken = caller.post("query($f: RunFilter) { runs(filter: $f) { totalCount } }", {"f": {"taskNam": "x"}})
    assert mistaken.json()["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
    assert "Did you mean" not in mistaken.text


def test_a_host_that_is_none_of_ours_is_refused(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    for host in (
        "elsewhere.example",
        "127.0.0.1.elsewhere.example",
        "a/?x=",
        "127.0.0.1:8000/graphql",
        "a b",
        "[::1",
        "",
    ):
        answer = caller.post("{ viewer { kind } }", Host=host)
        assert answer.status_code == 400, host
        assert "API_KEY" not in answer.text
    for host in ("127.0.0.1", "127.0.0.1:8000", "API.example.org"):
        assert caller.post("{ viewer { kind } }", Host=host).status_code == 200, host
    assert api.client.get(f"{api.url}/health/live", headers={"Host": "10.0.0.7:8000"}).status_code == 200


def test_every_answer_has_the_security_headers(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    answers = [
        caller.post("{ viewer { kind } }"),
        caller.post("{"),
        caller.post("{ viewer { kind } }", Host="elsewhere.example"),
        api.stranger().post("{ viewer { kind } }"),
        api.client.get(f"{api.url}/nothing"),
        api.client.post(f"{api.url}/auth/login", content=b"x"),
    ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "max-age=" in answer.headers["strict-transport-security"]
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize("origin", ["https://console.example.org", "https://elsewhere.example", "null"])
def test_pages_of_other_origins_call_only_where_they_are_allowed(api: Api, origin: str) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    preflight = api.client.options(f"{api.url}/graphql", headers=asked)
    allowed = origin == "https://console.example.org"
    assert preflight.headers.get("access-control-allow-origin") == (origin if allowed else None)
    assert "access-control-allow-credentials" not in preflight.headers
    assert "set-cookie" not in preflight.headers


def test_an_answer_that_is_too_large_is_not_sent(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    trigger = 'mutation($a: JSON) { triggerBackgroundTask(taskName: "echo", args: $a) { success } }'
    for _ in range(3):
        caller.ask(trigger, a={"value": "x" * 9000})
    assert len(caller.ask("{ runs(first: 2) { nodes { args } } }")["runs"]["nodes"]) == 2
    refused = caller.post("{ runs(first: 3) { nodes { args } } }")
    assert refused.json()["data"] is None
    assert refused.json()["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
    with streams.socket(caller) as socket:
        socket.subscribe("{ runs(first: 3) { nodes { args } } }")
        frame = socket.receive()
        assert (frame["id"], frame["type"], frame["payload"]["data"]) == ("1", "next", None)
        assert frame["payload"]["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
        assert socket.receive()["type"] == "complete"


def test_streams_over_http_take_the_places_of_sockets(api: Api, tenant: Principal, other_tenant: Principal) -> None:
    caller = api.caller(tenant)
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(streams.events(caller, streams.ALL_UPDATES))
        with streams.socket(caller):
            refused = caller.post(streams.ALL_UPDATES, Accept="text/event-stream")
            assert refused.status_code == 429
            assert refused.json()["errors"][0]["extensions"]["code"] == "RATE_LIMITED"
            assert int(refused.headers["retry-after"]) >= 1
            with streams.events(api.caller(other_tenant), "{ viewer { kind } }") as events:
                assert next(events)[0] == "next"
            assert caller.ask("{ viewer { kind } }")
        stack.enter_context(streams.events(caller, streams.ALL_UPDATES))
        with streams.socket(caller, begun=False) as socket:
            socket.send({"type": "connection_init", "payload": {"authorization": f"Bearer {caller.credential}"}})
            assert socket.closed() == 1013
    with ExitStack() as stack:
        for _ in range(5):
            assert eventually(lambda: _opens(stack, caller))


def _opens(stack: ExitStack, caller: Caller) -> bool:
    try:
        stack.enter_context(streams.events(caller, streams.ALL_UPDATES))
    except AssertionError:
        return False
    return True


def test_an_operation_that_takes_too_long_is_ended(api: Api, tenant: Principal, installation: Installation) -> None:
    caller = api.caller(tenant)
    caller.ask("{ viewer { kind } }")
    with psycopg2.connect(installation.addresses.owner) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")
        late = caller.post("{ runs { totalCount } }")
        with streams.socket(caller) as socket:
            socket.subscribe("{ runs { totalCount } }")
            errors = socket.receive()["payload"]["errors"]
    connection.close()
    assert (late.status_code, late.headers["retry-after"]) == (503, "1")
    assert [error["extensions"]["code"] for error in (*late.json()["errors"], *errors)] == ["UNAVAILABLE"] * 2
    assert caller.ask("{ runs { totalCount } }")["runs"]["totalCount"] == 0


def test_a_socket_on_which_nothing_runs_is_closed(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    with streams.socket(caller) as busy, streams.socket(caller) as idle:
        busy.subscribe(streams.ALL_UPDATES)
        assert idle.closed() == 1000
        busy.send({"type": "ping"})
        assert busy.receive()["type"] == "pong"
        busy.send({"id": "1", "type": "complete"})
        assert busy.closed() == 1000

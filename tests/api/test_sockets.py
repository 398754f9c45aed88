"""The protocol graphql-transport-ws on a real socket: what it takes, and how it says no."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tenants.context import Principal
from tests.support import streams
from tests.support.apis import Api

NOBODY = "tnt_live_" + "A" * 30 + "_AAAAAA"
TRIGGER = 'mutation { triggerBackgroundTask(taskName: "echo", args: {value: 1}) { taskId } }'
CANCEL = "mutation($i: ID!) { cancelRun(id: $i) { success } }"


@pytest.mark.parametrize("protocol", [None, "graphql-ws", "nonsense"])
def test_any_other_protocol_is_refused_at_the_handshake(api: Api, protocol: str | None) -> None:
    with pytest.raises(InvalidStatus) as refused, streams.socket(api.stranger(), begun=False, protocol=protocol):
        pass
    assert refused.value.response.status_code == 403


def test_a_page_of_another_origin_is_refused(api: Api) -> None:
    elsewhere = streams.socket(api.stranger(), begun=False, origin="https://elsewhere.example")
    with pytest.raises(InvalidStatus) as refused, elsewhere:
        pass
    assert refused.value.response.status_code == 403


def test_a_socket_that_does_not_introduce_itself_is_closed_after_five_seconds(api: Api) -> None:
    with streams.socket(api.stranger(), begun=False) as socket:
        started = time.monotonic()
        assert socket.closed() == 4408
        assert 4 < time.monotonic() - started < 7


@pytest.mark.parametrize(
    "frame",
    [
        b"binary",
        "not json",
        "[]",
        "null",
        '"text"',
        "{}",
        '{"type": 5}',
        '{"type": "nonsense"}',
        '{"type": "connection_init", "payload": null}',
        '{"type": "connection_init", "payload": []}',
        '{"type": "ping", "payload": 1}',
        '{"type": "complete"}',
    ],
)
def test_a_malformed_frame_closes_with_4400_before_and_after_the_introduction(
    api: Api, tenant: Principal, frame: str | bytes
) -> None:
    for begun in (False, True):
        with streams.socket(api.caller(tenant), begun=begun) as socket:
            socket.send(frame)
            assert socket.closed() == 4400
    assert "Traceback" not in api.installation.log(api.name)


@pytest.mark.parametrize(
    "change",
    [
        {"id": 1},
        {"id": [1]},
        {"id": ""},
        {"id": "x" * 10_000},
        {"payload": None},
        {"payload": []},
        {"payload": {}},
        {"payload": {"query": 5}},
        {"payload": {"query": "{ __typename }", "variables": [1]}},
        {"payload": {"query": "{ __typename }", "operationName": 5}},
        {"payload": {"query": "{ __typename }", "extensions": "x"}},
    ],
    ids=str,
)
def test_a_malformed_operation_closes_with_4400(api: Api, tenant: Principal, change: dict[str, Any]) -> None:
    message = {"id": "1", "type": "subscribe", "payload": {"query": "{ __typename }"}, **change}
    with streams.socket(api.caller(tenant)) as socket:
        socket.send(message)
        assert socket.closed() == 4400


def test_the_order_of_frames_is_kept(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    with streams.socket(caller, begun=False) as socket:
        socket.subscribe("{ __typename }")
        assert socket.closed() == 4401
    with streams.socket(caller) as socket:
        socket.send({"type": "connection_init", "payload": {}})
        assert socket.closed() == 4429
    with streams.socket(caller) as socket:
        socket.subscribe(streams.ALL_UPDATES)
        socket.subscribe(streams.ALL_UPDATES)
        assert socket.closed() == 4409


@pytest.mark.parametrize("credential", [None, "nonsense", NOBODY, "x" * 10_000], ids=["none", "text", "key", "long"])
def test_a_socket_without_a_good_credential_is_closed_with_4401(api: Api, credential: str | None) -> None:
    with streams.socket(api.stranger(), begun=False) as socket:
        payload = {} if credential is None else {"authorization": f"Bearer {credential}"}
        socket.send({"type": "connection_init", "payload": payload})
        assert socket.closed() == 4401


def test_a_client_that_is_no_browser_may_send_the_credential_with_the_handshake(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    with streams.socket(caller, begun=False, additional_headers=caller.headers) as socket:
        assert socket.begin(None)["type"] == "connection_ack"


def test_queries_and_mutations_run_over_the_socket_too(api: Api, tenant: Principal) -> None:
    with streams.socket(api.caller(tenant)) as socket:
        socket.subscribe(TRIGGER)
        [answer] = socket.updates("triggerBackgroundTask")
        assert answer["taskId"].startswith("run_")
        socket.send({"type": "ping", "payload": {}})
        assert socket.receive()["type"] == "pong"


def test_an_operation_that_is_none_is_answered_with_an_error_frame(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    for query, code in (
        ("{", "GRAPHQL_PARSE_FAILED"),
        ("{ nope }", "GRAPHQL_VALIDATION_FAILED"),
        ("query a { __typename } query b { __typename }", "BAD_USER_INPUT"),
        ("{ __typename #" + "x" * 70_000 + "\n}", "BAD_USER_INPUT"),
        ('subscription { taskUpdates(taskId: "run_0") { kind } }', "NOT_FOUND"),
    ):
        with streams.socket(caller) as socket:
            socket.subscribe(query)
            answer = socket.receive()
            assert (answer["type"], answer["payload"][0]["extensions"]["code"]) == ("error", code)
            socket.subscribe("{ __typename }")  # The id is free again, the socket unharmed.
            assert socket.receive()["payload"]["data"] == {"__typename": "Query"}


def test_a_large_frame_is_only_for_bulk_triggers(api: Api, tenant: Principal) -> None:
    with streams.socket(api.caller(tenant)) as socket:
        socket.subscribe("query($f: RunFilter) { runs(filter: $f) { totalCount } }", f={"family": "x" * 300_000})
        answer = socket.receive()
        assert (answer["type"], answer["payload"][0]["extensions"]["code"]) == ("error", "BAD_USER_INPUT")
        payload = {"query": "{ __typename }", "variables": {"ignored": "€" * 100_000}}
        socket.send(json.dumps({"id": "1", "type": "subscribe", "payload": payload}, ensure_ascii=False))
        assert socket.receive()["type"] == "error"
        socket.subscribe("{ __typename }", variables_are_ignored="x" * 2_500_000)
        assert socket.closed() == 1009


def test_a_socket_runs_twenty_operations_at_once(api: Api, tenant: Principal) -> None:
    with streams.socket(api.caller(tenant)) as socket:
        for number in range(21):
            socket.subscribe(streams.ALL_UPDATES, str(number))
        refused = socket.receive()
        assert (refused["type"], refused["id"]) == ("error", "20")


def test_a_subscription_sends_a_snapshot_then_every_change_and_ends(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    run = caller.ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
    with streams.socket(caller) as socket:
        socket.subscribe(streams.UPDATES, id=run)
        updates = socket.updates("taskUpdates")
        first = next(updates)
        assert (first["kind"], first["state"], first["runId"], first["sequence"]) == ("SNAPSHOT", "QUEUED", run, 1)
        assert first["run"] == {"id": run, "state": "QUEUED"}
        caller.ask(CANCEL, i=run)
        [last] = updates
        assert (last["kind"], last["state"], last["sequence"]) == ("CHANGE", "CANCELLED", 2)


def test_a_subscription_hears_of_new_runs_of_its_own_tenant_only(
    api: Api, tenant: Principal, other_tenant: Principal
) -> None:
    caller, other = api.caller(tenant), api.caller(other_tenant)
    with streams.socket(caller) as socket:
        socket.subscribe(streams.ALL_UPDATES)
        updates = socket.updates("runUpdates")
        before = caller.ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
        assert next(updates)["runId"] == before
        foreign = other.ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
        after = caller.ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
        heard = next(updates)["runId"]
        assert heard == after != foreign


def test_a_resumed_subscription_goes_on_where_it_broke(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    run = caller.ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
    with streams.socket(caller) as socket:
        socket.subscribe(streams.UPDATES, id=run)
        cursor = next(socket.updates("taskUpdates"))["cursor"]
    caller.ask(CANCEL, i=run)
    with streams.socket(caller) as socket:
        socket.subscribe(streams.UPDATES, id=run, after=cursor)
        updates = [*socket.updates("taskUpdates")]
    assert (updates[-1]["state"], updates[-1]["sequence"]) == ("CANCELLED", 2)
    assert "RESET" not in {update["kind"] for update in updates}


def test_another_tenants_cursor_is_refused(api: Api, tenant: Principal, other_tenant: Principal) -> None:
    caller, other = api.caller(tenant), api.caller(other_tenant)
    run = caller.ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
    theirs = other.ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
    with streams.socket(other) as socket:
        socket.subscribe(streams.UPDATES, id=theirs)
        cursor = next(socket.updates("taskUpdates"))["cursor"]
    for wrong in (cursor, cursor[:-2] + "xx", "nonsense", ""):
        with streams.socket(caller) as socket:
            socket.subscribe(streams.UPDATES, id=run, after=wrong)
            answer = socket.receive()
            errors = answer["payload"] if answer["type"] == "error" else answer["payload"]["errors"]
            assert errors[0]["extensions"]["code"] == "BAD_USER_INPUT", wrong


def test_a_stranger_learns_nothing_from_the_bytes(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    with streams.socket(caller) as socket:
        socket.subscribe("{ __typename }")
        raw = json.dumps(socket.receive())
    assert caller.credential is not None
    assert caller.credential not in raw
    assert caller.credential not in api.installation.log(api.name)

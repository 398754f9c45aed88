"""Server-sent events, in the mode of distinct connections."""

from __future__ import annotations

from tenants.context import Principal
from tests.support import streams
from tests.support.apis import Api

TRIGGER = 'mutation { triggerBackgroundTask(taskName: "echo", args: {value: 1}) { taskId } }'
CANCEL = "mutation($i: ID!) { cancelRun(id: $i) { success } }"


def test_a_subscription_comes_as_events_and_completes(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    run = caller.ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
    with streams.events(caller, streams.UPDATES, id=run) as events:
        name, first = next(events)
        assert (name, first["data"]["taskUpdates"]["kind"]) == ("next", "SNAPSHOT")
        caller.ask(CANCEL, i=run)
        rest = [*events]
    assert [name for name, _ in rest] == ["next", "complete"]
    assert rest[0][1]["data"]["taskUpdates"]["state"] == "CANCELLED"


def test_a_query_comes_as_one_event(api: Api, tenant: Principal) -> None:
    with streams.events(api.caller(tenant), "{ viewer { kind } }") as events:
        [(name, answer), complete] = [*events]
    assert (name, answer["data"], complete) == ("next", {"viewer": {"kind": "API_KEY"}}, ("complete", None))


def test_a_refusal_comes_as_an_event_too(api: Api, tenant: Principal, other_tenant: Principal) -> None:
    run = api.caller(other_tenant).ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
    for caller, code in ((api.caller(tenant), "NOT_FOUND"), (api.stranger(), "UNAUTHENTICATED")):
        with streams.events(caller, streams.UPDATES, id=run) as events:
            [(_, answer), complete] = [*events]
        assert answer["errors"][0]["extensions"]["code"] == code
        assert answer.get("data") is None
        assert complete == ("complete", None)


def test_a_stream_over_http_needs_the_media_type(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    answer = caller.post("subscription { runUpdates { kind } }")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"

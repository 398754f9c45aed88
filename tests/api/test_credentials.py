"""API keys: what they may do, and how soon they end, over HTTP, sockets and events."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tenants import ids, keys
from tenants.context import Principal
from tests.support import streams
from tests.support.apis import Api, Caller
from tests.support.installations import eventually

TRIGGER = "mutation($n: String!) { triggerBackgroundTask(taskName: $n, args: {value: 1}) { success problem { code } } }"
CREATE = (
    "mutation($i: CreateApiKeyInput!) { createApiKey(input: $i) { success secret apiKey { id prefix scopes taskNames }"
    " problem { __typename code ... on InvalidInput { issues { path } } ... on Forbidden { requiredScope } } } }"
)
REVOKE = "mutation($i: ID!) { revokeApiKey(id: $i) { success apiKey { revokedAt } problem { code } } }"
STREAM_SECONDS = 5.0


def _key(caller: Caller, **given: Any) -> dict[str, Any]:
    made: dict[str, Any] = caller.ask(CREATE, i={"name": "a key", **given})["createApiKey"]
    return made


def _with(api: Api, secret: str) -> Caller:
    return Caller(api.url, api.client, secret)


def test_a_key_is_shown_once_and_only_its_hash_is_kept(api: Api, tenant: Principal) -> None:
    made = _key(api.caller(tenant), scopes=["runs:read", "tenant:read"])
    secret = made["secret"]
    assert keys.check_form(secret)
    assert secret.startswith(made["apiKey"]["prefix"])
    assert _with(api, secret).ask("{ viewer { kind scopes } }")["viewer"] == {
        "kind": "API_KEY",
        "scopes": ["runs:read", "tenant:read"],
    }
    [dump] = api.installation.rows("SELECT json_agg(k)::text FROM api_keys k")
    assert secret not in dump[0]
    listed = api.caller(tenant).post("{ apiKeys { nodes { id name prefix lastUsedAt } } }").text
    assert secret not in listed


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"scopes": []},
        {"scopes": ["everything"]},
        {"scopes": ["runs:delete"]},
        {"taskNames": ["echo"]},
        {"expiresAt": "2020-01-01T00:00:00Z"},
    ],
    ids=str,
)
def test_a_key_that_makes_no_sense_is_not_made(api: Api, tenant: Principal, wrong: dict[str, Any]) -> None:
    caller = api.caller(tenant)
    made = _key(caller, **{"scopes": ["runs:read"], **wrong})
    assert (made["success"], made["secret"], made["problem"]["code"]) == (False, None, "BAD_USER_INPUT")
    assert len(caller.ask("{ apiKeys { nodes { id } } }")["apiKeys"]["nodes"]) == 1


def test_a_key_makes_no_key_that_can_do_more_than_itself(api: Api, tenant: Principal) -> None:
    narrow = api.caller(tenant, "keys:manage", "runs:read")
    assert _key(narrow, scopes=["runs:read"])["success"] is True
    for scope in ("runs:write", "*", "sales:read"):
        made = _key(narrow, scopes=[scope])
        assert (made["success"], made["problem"]["requiredScope"]) == (False, scope)
    narrowed = api.caller(tenant, "*", tasks=["diagnostics.echo"])
    assert _key(narrowed, scopes=["runs:write"])["problem"]["code"] == "FORBIDDEN"
    assert _key(narrowed, scopes=["runs:write"], taskNames=["diagnostics.echo"])["success"] is True


def test_a_key_does_what_its_scopes_and_its_tasks_allow(api: Api, tenant: Principal) -> None:
    reads = api.caller(tenant, "runs:read")
    assert reads.ask(TRIGGER, n="echo")["triggerBackgroundTask"]["problem"] == {"code": "FORBIDDEN"}
    assert reads.ask("{ runs { totalCount } }")["runs"]["totalCount"] == 0
    assert reads.fail("{ apiKeys { nodes { id } } }") == "FORBIDDEN"
    family = api.caller(tenant, "diagnostics:write")
    assert family.ask(TRIGGER, n="echo")["triggerBackgroundTask"]["success"] is True
    assert family.fail("{ runs { totalCount } }") == "FORBIDDEN"
    narrowed = api.caller(tenant, "runs:write", tasks=["diagnostics.echo"])
    assert narrowed.ask(TRIGGER, n="echo")["triggerBackgroundTask"]["success"] is True
    assert narrowed.ask(TRIGGER, n="marks")["triggerBackgroundTask"]["problem"] == {"code": "FORBIDDEN"}
    foreign = api.installation.trigger(tenant, "marks", {"key": "k"})
    for change in ("cancelRun", "retryRun"):
        answer = narrowed.ask(
            f"mutation($i: ID!) {{ {change}(id: $i) {{ success problem {{ code }} }} }}", i=ids.show("run", foreign)
        )
        assert answer[change]["success"] is False
    assert api.installation.rows("SELECT state FROM runs WHERE id = %s", str(foreign)) == [("QUEUED",)]
    allowed = {task["name"] for task in narrowed.ask("{ tasks { name allowed } }")["tasks"] if task["allowed"]}
    assert allowed == {"diagnostics.echo"}


def test_a_key_ends_at_its_time(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant, "*", expires_at=datetime.now(UTC) + timedelta(seconds=1.5))
    assert caller.post("{ viewer { kind } }").status_code == 200
    with streams.socket(caller) as socket:
        socket.subscribe(streams.ALL_UPDATES)
        assert socket.closed() == 4403
    refused = caller.post("{ viewer { kind } }")
    assert refused.status_code == 401
    assert refused.json()["errors"][0]["extensions"] == {"code": "UNAUTHENTICATED", "reason": "expired"}


def test_a_revoked_key_ends_everywhere_within_five_seconds(api: Api, tenant: Principal) -> None:
    admin, caller = api.caller(tenant), api.caller(tenant)
    [key] = [
        node["id"]
        for node in admin.ask("{ apiKeys { nodes { id prefix } } }")["apiKeys"]["nodes"]
        if caller.credential and caller.credential.startswith(node["prefix"])
    ]
    with streams.socket(caller) as socket, streams.events(caller, streams.ALL_UPDATES) as events:
        socket.subscribe(streams.ALL_UPDATES)
        revoked = time.monotonic()
        assert admin.ask(REVOKE, i=key)["revokeApiKey"]["apiKey"]["revokedAt"] is not None
        assert socket.closed() == 4401
        assert time.monotonic() - revoked < STREAM_SECONDS
        [(name, last), complete] = [*events]
        assert time.monotonic() - revoked < STREAM_SECONDS
    assert (name, last["errors"][0]["extensions"]) == ("next", {"code": "UNAUTHENTICATED", "reason": "revoked"})
    assert complete == ("complete", None)
    eventually(lambda: caller.post("{ viewer { kind } }").status_code == 401, 5)
    assert admin.ask(REVOKE, i=key)["revokeApiKey"]["success"] is True


@pytest.mark.parametrize(
    "change", [lambda key: key[:-1], lambda key: key[:-1] + "!", lambda key: key[:-1] + _other(key)]
)
def test_a_mistyped_key_is_refused_without_a_look_at_the_database(api: Api, tenant: Principal, change: Any) -> None:
    caller = api.caller(tenant)
    assert caller.credential is not None
    assert not keys.check_form(change(caller.credential))
    refused = _with(api, change(caller.credential)).post("{ viewer { kind } }")
    assert (refused.status_code, refused.json()["errors"][0]["extensions"]["reason"]) == (401, "invalid")


def test_a_refused_credential_is_the_same_answer_whatever_is_wrong(api: Api, tenant: Principal) -> None:
    assert api.caller(tenant).credential is not None
    unknown = "tnt_live_" + "A" * 30
    unknown += "_" + keys._checksum("A" * 30)
    answers = set()
    for credential in (unknown, "nonsense", "a.b.c", "x" * 10_000, "tnt_live_"):
        answer = _with(api, credential).post("{ viewer { kind } }").json()
        del answer["extensions"]["cost"]["throttleStatus"]  # Which is of the address, and of the moment.
        answers.add(json.dumps(answer))
    assert len(answers) == 1
    basic = api.client.post(
        f"{api.url}/graphql", json={"query": "{ viewer { kind } }"}, headers={"Authorization": "Basic eDp5"}
    )
    assert basic.status_code == 401


def test_the_last_use_of_a_key_is_noted(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    caller.ask("{ viewer { kind } }")
    used = "SELECT last_used_at FROM api_keys WHERE id = %s AND last_used_at IS NOT NULL"
    first = eventually(lambda: api.installation.rows(used, str(caller.key_id)))
    caller.ask("{ viewer { kind } }")
    assert api.installation.rows(used, str(caller.key_id)) == first


def test_a_suspended_tenant_reads_and_changes_nothing(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    api.installation.rows("UPDATE tenants SET suspended_at = now() WHERE id = %s", str(tenant.tenant))
    assert caller.ask(TRIGGER, n="echo")["triggerBackgroundTask"]["problem"] == {"code": "TENANT_SUSPENDED"}
    assert _key(caller, scopes=["runs:read"])["problem"]["code"] == "TENANT_SUSPENDED"
    assert caller.ask("{ runs { totalCount } }")["runs"]["totalCount"] == 0
    with streams.socket(caller) as socket:
        socket.subscribe(TRIGGER, n="echo")
        [answer] = socket.updates("triggerBackgroundTask")
        assert answer["problem"] == {"code": "TENANT_SUSPENDED"}


def test_a_tenant_suspended_since_changes_nothing_over_an_open_socket(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    key = {"name": "a key", "scopes": ["runs:read"]}
    with streams.socket(caller) as socket:
        socket.subscribe(CREATE, i=key)
        [before] = socket.updates("createApiKey")
        assert before["success"] is True
        api.installation.rows("UPDATE tenants SET suspended_at = now() WHERE id = %s", str(tenant.tenant))
        eventually(lambda: not _key(caller, **key)["success"], 5)
        keys_before = api.installation.rows("SELECT count(*) FROM api_keys WHERE tenant_id = %s", str(tenant.tenant))
        socket.subscribe(CREATE, i=key)
        [after] = socket.updates("createApiKey")
        assert (after["success"], after["problem"]["code"]) == (False, "TENANT_SUSPENDED")
        keys_after = api.installation.rows("SELECT count(*) FROM api_keys WHERE tenant_id = %s", str(tenant.tenant))
        assert keys_after == keys_before
        socket.subscribe("{ runs { totalCount } }")
        assert [*socket.updates("runs")] == [{"totalCount": 0}]


def test_a_credential_that_could_not_be_watched_for_a_while_ends_its_socket_all_the_same(
    api: Api, tenant: Principal
) -> None:
    admin, caller = api.caller(tenant), api.caller(tenant)
    key = caller.actor
    look_up = "EXECUTE ON FUNCTION find_api_key(text[])"
    with streams.socket(caller) as socket:
        socket.subscribe(streams.ALL_UPDATES)
        api.installation.rows(f"REVOKE {look_up} FROM tenantry_app")
        try:
            eventually(lambda: "authentication_not_watched" in api.installation.log(api.name), 10)
        finally:
            api.installation.rows(f"GRANT {look_up} TO tenantry_app")
        eventually(lambda: admin.post(REVOKE, {"i": key}).status_code == 200, 5)
        assert socket.closed() == 4401


def test_keys_of_the_operators_are_operators(api: Api) -> None:
    viewer = api.operator().ask("{ viewer { kind tenant { slug } } }")["viewer"]
    assert viewer == {"kind": "OPERATOR", "tenant": {"slug": "_operator"}}


def _other(key: str) -> str:
    return "a" if key[-1] != "a" else "b"


def test_who_is_not_known_is_told_no_more_than_that(api: Api, tenant: Principal) -> None:
    known = api.caller(tenant)
    assert known.credential is not None
    api.installation.rows("UPDATE tenants SET suspended_at = now() WHERE id = %s", str(tenant.tenant))
    made_up = known.credential[:-1] + ("0" if known.credential[-1] != "0" else "1")
    answers = [
        Caller(api.url, api.client, credential).post("{ viewer { kind tenant { slug } } }")
        for credential in (None, "x", made_up, "tnt_live_x")
    ]
    for answer in answers:
        content = answer.json()
        [error] = content["errors"]
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert (content.keys(), content["data"]) == ({"data", "errors", "extensions"}, None)
        assert error["extensions"].keys() <= {"code", "reason"}
        cost = content["extensions"]["cost"]
        assert cost.keys() == {"requested", "actual", "throttleStatus"}, "what any address may spend, and nothing else"
    assert len({answer.json()["errors"][0]["message"] for answer in answers}) == 1

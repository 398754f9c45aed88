"""Secrets go in and never come out: not in an answer, a log, a run, an event, a key of Redis, or Celery's output."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tenants import ids, keys
from tenants.context import Principal
from tests.support import apis
from tests.support.apis import Api, Caller
from tests.support.installations import Installation, eventually
from tests.support.people import PASSWORD, People

SET = (
    "mutation($i: CredentialInput!) { setCredential(input: $i) { success message credential { name kind changedAt }"
    " problem { __typename code message ... on InvalidInput { issues { path message } } } } }"
)
LIST = "{ credentials { name kind createdAt changedAt } }"
REMOVE = 'mutation { removeCredential(name: "stripe") { success problem { code } } }'
TRIGGER = (
    "mutation($n: String!, $a: JSON) { triggerBackgroundTask(taskName: $n, args: $a)"
    " { taskId run { args } problem { code message } } }"
)
RUN = "query($i: ID!) { run(id: $i) { state args result error { type message traceback } events { nodes { note } } } }"

PROVIDER = "sk_test_4eC39HqLyjWDarjtT1zdp7dc"
OF_A_DSN = "pw-of-a-dsn-0815"
OF_A_QUERY = "token-of-a-query-4711"
DSN = f"postgresql://app:{OF_A_DSN}@db.internal:5432/tenantry"

STACK = re.compile(r'Traceback \(most recent|File "/|\.py", line \d+')
PATH = re.compile(r"(?<![\w./])/(?:home|root|tmp|usr|var|etc|opt|work|srv)/[\w.-]+")
ADDRESS = re.compile(r"\b(?:postgres\w*|redis|valkey)(?:\+\w+)?://(?!\[redacted\]@|:\*\*@)[^\s\"']*@")


def test_a_credential_is_set_and_listed_and_its_secret_is_in_no_answer(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    made = caller.post(SET, {"i": {"name": "stripe", "kind": "api_key", "secret": PROVIDER}})
    assert made.json()["data"]["setCredential"]["success"] is True
    listed = caller.post(LIST)
    assert [(found["name"], found["kind"]) for found in listed.json()["data"]["credentials"]] == [("stripe", "api_key")]
    log = caller.post("{ auditLog(first: 100) { nodes { action target detail } } }")
    assert "credential.set" in log.text
    for answer in (made, listed, log):
        assert PROVIDER not in answer.text
    assert caller.ask(REMOVE)["removeCredential"] == {"success": True, "problem": None}
    assert caller.ask(REMOVE)["removeCredential"] == {"success": False, "problem": {"code": "NOT_FOUND"}}


def test_there_is_no_field_to_read_a_secret_from(api: Api, tenant: Principal) -> None:
    query = '{ __type(name: "Credential") { fields { name } } }'
    fields = api.caller(tenant).ask(query)["__type"]["fields"]
    assert {field["name"] for field in fields} == {"name", "kind", "createdAt", "changedAt"}


def test_what_is_wrong_with_a_credential_is_named_and_not_repeated(api: Api, tenant: Principal) -> None:
    answer = api.caller(tenant).post(SET, {"i": {"name": "Stripe!", "secret": PROVIDER}})
    problem = answer.json()["data"]["setCredential"]["problem"]
    assert (problem["__typename"], [issue["path"] for issue in problem["issues"]]) == ("InvalidInput", [["name"]])
    assert PROVIDER not in answer.text


def test_another_tenants_credentials_are_not_there(api: Api, tenant: Principal, other_tenant: Principal) -> None:
    owner, other = api.caller(tenant), api.caller(other_tenant)
    owner.ask(SET, i={"name": "stripe", "secret": PROVIDER})
    assert other.ask(LIST) == {"credentials": []}
    assert other.ask(REMOVE)["removeCredential"]["problem"] == {"code": "NOT_FOUND"}
    assert len(owner.ask(LIST)["credentials"]) == 1


def test_who_may_only_read_changes_none(api: Api, tenant: Principal) -> None:
    reader = api.caller(tenant, "tenant:read")
    assert reader.ask(LIST) == {"credentials": []}
    assert reader.ask(SET, i={"name": "x", "secret": PROVIDER})["setCredential"]["problem"]["code"] == "FORBIDDEN"
    assert api.caller(tenant, "runs:read").fail(LIST) == "FORBIDDEN"


class Room:
    """A whole stack at work, every secret that is used in it, and every answer that it gave."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.secrets = {PASSWORD, PROVIDER, OF_A_DSN, OF_A_QUERY}
        self.answers: list[str] = []

    def post(self, path: str, **body: str) -> dict[str, Any]:
        """Send JSON under `/auth`."""
        answer = self.api.client.post(f"{self.api.url}/auth/{path}", json=body)
        tokens: dict[str, Any] = answer.json() if answer.content else {}
        if "accessToken" in tokens:
            self.secrets |= {tokens["accessToken"], tokens["refreshToken"]}
        else:
            self.answers.append(answer.text)
        return tokens

    def ask(self, caller: Caller, query: str, **variables: Any) -> dict[str, Any]:
        """Ask GraphQL."""
        if caller.credential:
            self.secrets.add(caller.credential)
        answer = caller.post(query, variables)
        self.answers.append(answer.text)
        data: dict[str, Any] = answer.json().get("data") or {}
        return data


@pytest.fixture
def room(installation: Installation, tenant: Principal) -> Iterator[Room]:
    with apis.running(installation, "scanned") as api:
        installation.start_worker("scanned-worker")
        installation.start_dispatcher("scanned-beat")
        made = Room(api)
        yield made
        for name in ("scanned-worker", "scanned-beat"):
            installation.kill(name)


def _work(room: Room, tenant: Principal) -> None:
    """Everything that handles a secret: logins, keys, credentials, and tasks that fail with some in their mouth."""
    installation, api = room.api.installation, room.api
    slug = installation.slug(tenant)
    People(api, tenant).join("ada@example.org")

    room.post("login", tenant=slug, email="ada@example.org", password=PASSWORD + "x")
    first = room.post("login", tenant=slug, email="ada@example.org", password=PASSWORD)
    second = room.post("refresh", refreshToken=first["refreshToken"])
    person = Caller(api.url, api.client, second["accessToken"])
    made = room.ask(person, 'mutation { createApiKey(input: {name: "k", scopes: ["*"]}) { secret } }')
    room.answers.pop()  # The one answer that shows the key.
    caller = Caller(api.url, api.client, made["createApiKey"]["secret"])
    for credential in ("nonsense", f"{keys.PREFIX}nonsense", second["accessToken"][:-2] + "xx"):
        room.ask(Caller(api.url, api.client, credential), "{ viewer { kind } }")

    room.ask(caller, SET, i={"name": "stripe", "secret": PROVIDER})
    room.ask(caller, SET, i={"name": "stripe", "secret": PROVIDER + "\0"})
    room.ask(caller, LIST)
    installation.rows("REVOKE SELECT ON credentials FROM tenantry_app")
    room.ask(caller, SET, i={"name": "stripe", "secret": PROVIDER})
    installation.rows("GRANT SELECT ON credentials TO tenantry_app")

    said = f"cannot reach {DSN}: password={OF_A_DSN}, asked https://example.org/?token={OF_A_QUERY}"
    runs = [
        room.ask(caller, TRIGGER, n="diagnostics.fail", a=args)["triggerBackgroundTask"]["taskId"]
        for args in ({"message": said, "retryable": False}, {"message": said, "times": 1})
    ]
    runs.append(room.ask(caller, TRIGGER, n="diagnostics.echo", a={"value": "x"})["triggerBackgroundTask"]["taskId"])
    for run in runs:
        installation.ended(tenant, ids.read("run", run))
        room.ask(caller, RUN, i=run)
    room.ask(caller, "{ runs { nodes { args error { message } } } deadLetters { nodes { message } } }")
    room.ask(caller, "{ auditLog(first: 100) { nodes { actor action target detail } } }")
    room.post("logout", refreshToken=second["refreshToken"])


def _redis(installation: Installation) -> Iterator[str]:
    """All that Redis holds: every key, every value."""
    client: Any = redis.Redis.from_url(installation.redis_url)
    for key in client.scan_iter(count=1000):
        kind = client.type(key)
        value: Any = {
            b"string": lambda key: client.get(key),
            b"list": lambda key: client.lrange(key, 0, -1),
            b"set": lambda key: client.smembers(key),
            b"hash": lambda key: client.hgetall(key),
            b"zset": lambda key: client.zrange(key, 0, -1),
            b"stream": lambda key: client.xrange(key),
        }[kind](key)
        yield f"{key!r} {value!r}"
    client.close()


def test_no_secret_that_was_used_is_found_anywhere_afterwards(room: Room, tenant: Principal) -> None:
    installation = room.api.installation
    _work(room, tenant)
    installation.kill("scanned", 15)
    eventually(lambda: installation.processes["scanned"].poll() is not None)
    logs = {name: installation.log(name) for name in ("scanned", "scanned-worker", "scanned-beat")}
    assert "request_failed" in logs["scanned"], "what went wrong was not written down at all"
    assert "attempt_failed" in logs["scanned-worker"]
    stored = [
        str(row)
        for table in ("run_events", "run_progress", "run_steps", "audit_entries", "login_sessions", "api_keys", "users")
        for row in installation.rows(f"SELECT t::text FROM {table} t")
    ]
    stored += [str(row) for row in installation.rows("SELECT error::text, result::text FROM runs")]
    places = {**logs, "answers": "\n".join(room.answers), "redis": "\n".join(_redis(installation))}
    places["rows"] = "\n".join(stored)
    everything = room.secrets | {
        secret.get_secret_value()
        for ring in (installation.settings.auth.token_keys, installation.settings.auth.credential_keys)
        for secret in ring.values()
    }
    assert len(everything) >= 10
    found = {(name, secret) for name, text in places.items() for secret in everything if secret in text}
    assert found == set()
    for name, text in places.items():
        assert ADDRESS.findall(text) == [], name
    shown = re.sub(r'"traceback":"(?:[^"\\]|\\.)*"', "", places["answers"])  # Administrators' alone.
    assert STACK.findall(shown) == []
    assert PATH.findall(shown) == []
    assert PATH.findall(places["redis"]) == []

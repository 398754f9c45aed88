"""API keys that are replaced, that are for some addresses only, and what the audit log tells of those refused."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx2
import psycopg2
import pytest
from pydantic import SecretStr

from tenants import ids, keys, logins, signing
from tenants.context import Principal
from tenants.errors import Forbidden, InvalidInput, InvalidState
from tests.support import apis, streams
from tests.support.apis import Api, Caller
from tests.support.installations import Installation, eventually
from tests.support.people import People

WHO = "{ viewer { kind scopes } }"
ROTATE = (
    "mutation($i: ID!, $s: Int) { rotateApiKey(id: $i, overlapSeconds: $s) { success secret message"
    " apiKey { id name prefix scopes taskNames addressRanges predecessorId expiresAt } problem { code"
    " ... on InvalidState { state } ... on Forbidden { requiredScope } ... on InvalidInput { issues { path } } } } }"
)
NEW = """mutation ($i: CreateApiKeyInput!) { createApiKey(input: $i) {
  success secret problem { code } apiKey { id expiresAt addressRanges } } }"""


def _refusals(api: Api, tenant: Principal, action: str = "authentication.refuse") -> list[tuple[Any, ...]]:
    return api.installation.rows(
        "SELECT actor_kind, actor, target, detail FROM audit_entries WHERE tenant_id = %s AND action = %s ORDER BY id",
        str(tenant.tenant), action,
    )  # fmt: skip


def _rotate(caller: Caller, key: UUID | None, seconds: int | None = 3600) -> dict[str, Any]:
    assert key is not None
    made: dict[str, Any] = caller.ask(ROTATE, i=ids.show("key", key), s=seconds)["rotateApiKey"]
    return made


def _from(caller: Caller, address: str) -> Any:
    """Ask from an address, as a proxy on this machine tells it."""
    return caller.post(WHO, None, **{"X-Forwarded-For": address})


def _counted(api: Api) -> tuple[float, float]:
    """How many logins the process has refused, and how many tokens and keys."""
    refused = [0.0, 0.0]
    for line in api.client.get(f"{api.url}/metrics").text.splitlines():
        name, _, value = line.rpartition(" ")
        if name == 'tenantry_logins_total{outcome="refused"}':
            refused[0] += float(value)
        elif name.startswith("tenantry_authentications_refused_total{"):
            refused[1] += float(value)
    return refused[0], refused[1]


def _with(api: Api, secret: str) -> Caller:
    return Caller(api.url, api.client, secret)


class TestRotation:
    """A new key that can do the same; both are good for a while."""

    def test_both_are_good_until_the_overlap_is_over(self, api: Api, tenant: Principal) -> None:
        admin = api.caller(tenant)
        old = api.caller(tenant, "runs:read", "runs:write", tasks=["diagnostics.echo"])
        made = _rotate(admin, old.key_id, 2)
        assert made["success"], made
        key = made["apiKey"]
        assert (key["name"], key["scopes"], key["taskNames"], key["expiresAt"]) == (
            "tests", ["runs:read", "runs:write"], ["diagnostics.echo"], None,
        )  # fmt: skip
        assert key["predecessorId"] == old.actor
        assert made["secret"].startswith(key["prefix"])
        new = _with(api, made["secret"])
        assert new.ask(WHO) == old.ask(WHO) == {"viewer": {"kind": "API_KEY", "scopes": ["runs:read", "runs:write"]}}
        with streams.socket(old) as socket:
            socket.subscribe(streams.ALL_UPDATES)
            assert socket.closed() == 4403
        assert old.post(WHO).status_code == 401
        assert new.post(WHO).status_code == 200

    def test_without_an_overlap_the_old_one_ends_within_five_seconds(self, api: Api, tenant: Principal) -> None:
        admin, old = api.caller(tenant), api.caller(tenant)
        with streams.socket(old) as socket:
            socket.subscribe(streams.ALL_UPDATES)
            rotated = time.monotonic()
            assert _rotate(admin, old.key_id, 0)["success"]
            assert socket.closed() == 4403
            assert time.monotonic() - rotated < 5

    def test_what_has_ended_or_was_replaced_is_not_rotated(self, api: Api, tenant: Principal) -> None:
        admin = api.caller(tenant)
        rotated, revoked, expired = (api.caller(tenant).key_id for _ in range(3))
        assert _rotate(admin, rotated)["success"]
        api.installation.rows("UPDATE api_keys SET revoked_at = now() WHERE id = %s", str(revoked))
        api.installation.rows("UPDATE api_keys SET expires_at = now() WHERE id = %s", str(expired))
        before = api.installation.rows("SELECT count(*) FROM api_keys")
        for key, state in ((rotated, "ROTATED"), (revoked, "REVOKED"), (expired, "EXPIRED")):
            answer = _rotate(admin, key)
            assert (answer["secret"], answer["problem"]) == (None, {"code": "INVALID_STATE", "state": state})
        assert api.installation.rows("SELECT count(*) FROM api_keys") == before

    @pytest.mark.parametrize("seconds", [-1, 30 * 86_400 + 1])
    def test_an_overlap_has_bounds(self, api: Api, tenant: Principal, seconds: int) -> None:
        caller = api.caller(tenant)
        problem = _rotate(caller, caller.key_id, seconds)["problem"]
        assert problem == {"code": "BAD_USER_INPUT", "issues": [{"path": ["overlapSeconds"]}]}
        assert caller.ask("{ apiKeys { nodes { expiresAt } } }")["apiKeys"]["nodes"] == [{"expiresAt": None}]

    def test_nobody_rotates_a_key_that_can_do_more(self, api: Api, tenant: Principal) -> None:
        powerful = api.caller(tenant)
        narrow = api.caller(tenant, "keys:manage")
        assert _rotate(narrow, powerful.key_id)["problem"] == {"code": "FORBIDDEN", "requiredScope": "*"}
        assert powerful.post(WHO).status_code == 200
        assert len(powerful.ask("{ apiKeys { nodes { id } } }")["apiKeys"]["nodes"]) == 2

    def test_the_new_one_is_made_to_last_as_long(self, installation: Installation, tenant: Principal) -> None:
        pepper = installation.settings.auth.key_pepper
        end = datetime.now(UTC) + timedelta(days=10)
        old = installation.write(tenant, keys.create, pepper, name="k", scopes=["*"], expires_at=end).key
        installation.rows(
            "UPDATE api_keys SET created_at = created_at - interval '9 d', expires_at = expires_at - interval '9 d'"
            " WHERE id = %s",
            str(old.id),
        )
        new = installation.write(tenant, keys.rotate, pepper, old.id, 7 * 86_400).key
        assert new.expires_at is not None
        assert abs(new.expires_at - end) < timedelta(minutes=1)
        kept = installation.write(tenant, keys.get, old.id)
        assert kept.expires_at == end - timedelta(days=9), "it ends no later than it would have"

    def test_of_two_who_rotate_at_once_one_is_refused(self, installation: Installation, tenant: Principal) -> None:
        pepper = installation.settings.auth.key_pepper
        old = installation.write(tenant, keys.create, pepper, name="k", scopes=["*"]).key
        installation.write(tenant, keys.rotate, pepper, old.id, 0)
        with pytest.raises(InvalidState):
            installation.write(tenant, keys.rotate, pepper, old.id, 0)
        narrowed = replace(tenant, task_names=frozenset({"diagnostics.echo"}))
        other = installation.write(tenant, keys.create, pepper, name="k", scopes=["*"]).key
        with pytest.raises(Forbidden):
            installation.write(narrowed, keys.rotate, pepper, other.id)


class TestBounds:
    """A key makes none that outlives it, comes from more addresses, or is one more than there is room for."""

    def test_a_key_makes_none_that_outlives_it(self, api: Api, tenant: Principal) -> None:
        end = datetime.now(UTC) + timedelta(hours=1)
        maker = api.caller(tenant, "keys:manage", expires_at=end)

        def make(expires: datetime | None) -> Any:
            given = {"name": "k", "scopes": ["keys:manage"], "expiresAt": expires and expires.isoformat()}
            return maker.ask(NEW, i=given)["createApiKey"]

        for later in (None, end + timedelta(seconds=1)):
            assert make(later)["problem"] == {"code": "FORBIDDEN"}
        assert make(end)["success"]

    def test_a_key_that_rotates_itself_lasts_no_longer(self, api: Api, tenant: Principal) -> None:
        end = datetime.now(UTC) + timedelta(hours=1)
        maker = api.caller(tenant, "keys:manage", expires_at=end)
        api.installation.rows(
            "UPDATE api_keys SET created_at = created_at - interval '1 d' WHERE id = %s", str(maker.key_id)
        )
        made = _rotate(maker, maker.key_id, 0)
        assert datetime.fromisoformat(made["apiKey"]["expiresAt"]) == end
        for longer in (None, end + timedelta(hours=1)):
            other = api.caller(tenant, "keys:manage", expires_at=longer)
            assert _rotate(_with(api, made["secret"]), other.key_id)["problem"]["code"] == "FORBIDDEN"

    def test_a_key_makes_none_that_comes_from_elsewhere(self, api: Api, tenant: Principal) -> None:
        maker = api.caller(tenant, "keys:manage", address_ranges=["127.0.0.0/8", "2001:db8::/32"])

        def make(ranges: list[str] | None) -> Any:
            return maker.ask(NEW, i={"name": "k", "scopes": ["keys:manage"], "addressRanges": ranges})["createApiKey"]

        for wider in (None, ["0.0.0.0/0"], ["127.0.0.1", "192.0.2.1"], ["::/0"], ["::ffff:127.0.0.1"]):
            assert make(wider)["problem"] == {"code": "FORBIDDEN"}, wider
        assert make(["127.0.0.0/16", "2001:db8::7"])["success"]
        assert _rotate(maker, api.caller(tenant, "keys:manage").key_id)["problem"]["code"] == "FORBIDDEN"
        assert _rotate(maker, maker.key_id)["success"]

    def test_of_those_that_replace_each_other_two_are_good(self, api: Api, tenant: Principal) -> None:
        admin, first = api.caller(tenant), api.caller(tenant)
        second = _rotate(admin, first.key_id)["apiKey"]["id"]
        assert _rotate(admin, ids.read("key", second))["problem"] == {"code": "INVALID_STATE", "state": "OVERLAPPING"}
        assert admin.ask("mutation ($i: ID!) { revokeApiKey(id: $i) { success } }", i=first.actor)
        third = _rotate(admin, ids.read("key", second), 0)["apiKey"]["id"]
        assert _rotate(admin, ids.read("key", third), 0)["success"], "the second has ended"


def _told(answer: httpx2.Response) -> dict[str, Any]:
    """All but what the caller has left to spend."""
    told: dict[str, Any] = answer.json()
    del told["extensions"]
    return told


class TestAddresses:
    """A key that is for some addresses only."""

    @pytest.mark.parametrize(
        ("ranges", "inside", "outside"),
        [
            (["192.0.2.0/24"], ["192.0.2.7", "::ffff:192.0.2.7"], ["192.0.3.1", "2001:db8::1"]),
            (["2001:db8::/32", "198.51.100.9"], ["2001:db8::7", "198.51.100.9"], ["2001:db9::1", "198.51.100.8"]),
        ],
    )
    def test_it_is_taken_from_there_only(
        self, api: Api, tenant: Principal, ranges: list[str], inside: list[str], outside: list[str]
    ) -> None:
        caller = api.caller(tenant, address_ranges=ranges)
        for address in inside:
            assert _from(caller, address).status_code == 200, address
        unknown = _with(api, "tnt_live_" + "A" * 30 + "_" + keys._checksum("A" * 30)).post(WHO)
        for address in (*outside, "nonsense"):
            refused = _from(caller, address)
            assert (refused.status_code, _told(refused)) == (401, _told(unknown)), address
        assert caller.post(WHO).status_code == 401

    def test_a_socket_from_elsewhere_is_not_let_in(self, api: Api, tenant: Principal) -> None:
        elsewhere = api.caller(tenant, address_ranges=["192.0.2.0/24"])
        with streams.socket(elsewhere, begun=False) as socket:
            payload = {"authorization": f"Bearer {elsewhere.credential}"}
            socket.send({"type": "connection_init", "payload": payload})
            assert socket.closed() == 4401
        with streams.socket(api.caller(tenant, address_ranges=["127.0.0.0/8"])) as socket:
            socket.subscribe(WHO)
            assert [answer["kind"] for answer in socket.updates("viewer")] == ["API_KEY"]

    @pytest.mark.parametrize("wrong", [[], ["192.0.2.1/24"], ["192.0.2.0/33"], ["localhost"], [""], ["1"] * 101])
    def test_what_is_no_range_is_named(self, installation: Installation, tenant: Principal, wrong: list[str]) -> None:
        pepper = installation.settings.auth.key_pepper
        with pytest.raises(InvalidInput) as refused:
            installation.write(tenant, keys.create, pepper, name="k", scopes=["*"], address_ranges=wrong)
        assert {issue.path[0] for issue in refused.value.issues} == {"addressRanges"}

    def test_it_is_told_once_a_minute_and_never_in_the_request(self, api: Api, tenant: Principal) -> None:
        caller = api.caller(tenant, address_ranges=["192.0.2.0/24"])
        with closing(psycopg2.connect(api.installation.addresses.owner)) as connection, connection.cursor() as cursor:
            cursor.execute("LOCK TABLE audit_entries IN EXCLUSIVE MODE")
            assert caller.post(WHO).status_code == 401
            assert _refusals(api, tenant) == []
        for _ in range(20):
            assert caller.post(WHO).status_code == 401
        entry = ("API_KEY", caller.actor, caller.actor, {"reason": "address", "address": "127.0.0.1"})
        assert eventually(lambda: _refusals(api, tenant)) == [entry]


class TestRefusals:
    """What was ours and is refused is told in its tenant's log."""

    def test_a_key_that_has_ended_is_told(self, api: Api, tenant: Principal) -> None:
        revoked, expired = api.caller(tenant), api.caller(tenant)
        api.installation.rows("UPDATE api_keys SET revoked_at = now() WHERE id = %s", str(revoked.key_id))
        api.installation.rows("UPDATE api_keys SET expires_at = now() WHERE id = %s", str(expired.key_id))
        for caller in (revoked, expired):
            for _ in range(3):
                assert caller.post(WHO).status_code == 401
        eventually(lambda: len(_refusals(api, tenant)) == 2)
        told = {actor: (kind, target, detail) for kind, actor, target, detail in _refusals(api, tenant)}
        for caller, why in ((revoked, "revoked"), (expired, "expired")):
            assert told[caller.actor] == ("API_KEY", caller.actor, {"reason": why, "address": "127.0.0.1"})
            assert str(caller.credential) not in str(told)

    def test_a_token_that_is_over_or_revoked_is_told_and_a_forged_one_is_nobodys(
        self, api: Api, tenant: Principal, people: People
    ) -> None:
        user = people.join("ada@example.org")
        tokens = people.log_in("ada@example.org")
        read = signing.read_access(api.installation.settings.auth, tokens["accessToken"])
        auth = api.installation.settings.auth
        over = signing.issue(auth.model_copy(update={"access_token_seconds": -20}), read.tenant, ids.new())
        forger = auth.model_copy(update={"token_keys": {"k1": SecretStr("not-the-key-of-this-installation")}})
        forged = signing.issue(forger, read.tenant, read.session)
        api.installation.write(tenant, logins.close_login, read.session)
        for token in (over, forged, tokens["accessToken"]):
            assert _with(api, token).post(WHO).status_code == 401
        eventually(lambda: len(_refusals(api, tenant)) == 2)
        told = {(kind, actor[:4], detail["reason"]) for kind, actor, _, detail in _refusals(api, tenant)}
        assert told == {("USER", "ses_", "expired"), ("USER", "usr_", "revoked")}
        assert ids.show("usr", user) in {actor for _, actor, _, _ in _refusals(api, tenant)}

    def test_logins_are_told_and_refused_ones_too(self, api: Api, tenant: Principal, people: People) -> None:
        who = ids.show("usr", people.join("leslie@example.org"))
        tokens, before = people.log_in("leslie@example.org"), _counted(api)
        for email in ["leslie@example.org"] * 3 + ["nobody@example.org"]:
            wrong = {"tenant": people.slug, "email": email, "password": "a wrong password"}
            assert api.client.post(f"{api.url}/auth/login", json=wrong).status_code == 401
        assert _counted(api) == (before[0] + 4, before[1]), "a password that is refused is no token"
        entry = ("USER", who, who, {"reason": "password", "address": "127.0.0.1"})
        assert eventually(lambda: _refusals(api, tenant, "login.refuse")) == [entry]
        [(kind, actor, session, _)] = _refusals(api, tenant, "login.open")
        assert (kind, actor) == ("USER", who)
        for _ in range(2):
            api.client.post(f"{api.url}/auth/logout", json={"refreshToken": tokens["refreshToken"]})
        assert [target for _, _, target, _ in _refusals(api, tenant, "login.close")] == [session]
        assert api.client.post(f"{api.url}/auth/refresh", json={"refreshToken": tokens["refreshToken"]}).is_error
        assert [detail["reason"] for *_, detail in eventually(lambda: _refusals(api, tenant))] == ["revoked"]

    def test_a_refresh_token_that_comes_twice_is_told(self, api: Api, tenant: Principal, people: People) -> None:
        people.join("carol@example.org")
        first = people.log_in("carol@example.org")["refreshToken"]
        second = api.client.post(f"{api.url}/auth/refresh", json={"refreshToken": first}).json()["refreshToken"]
        third = api.client.post(f"{api.url}/auth/refresh", json={"refreshToken": second})
        assert third.status_code == 200
        assert api.client.post(f"{api.url}/auth/refresh", json={"refreshToken": first}).status_code == 401
        assert len(_refusals(api, tenant, "login.reuse")) == 1


def test_a_key_of_an_old_pepper_works_on_and_is_stored_anew(api: Api, tenant: Principal) -> None:
    caller = api.caller(tenant)
    stored = "SELECT secret_hash FROM api_keys WHERE id = %s"
    before = api.installation.rows(stored, str(caller.key_id))
    new = "a-new-pepper-for-tests-0123456789"
    old = f'["{api.installation.settings.auth.key_pepper.get_secret_value()}"]'
    with apis.running(
        api.installation, "peppered", TENANTRY_AUTH__KEY_PEPPER=new, TENANTRY_AUTH__OLD_KEY_PEPPERS=old
    ) as peppered:
        assert Caller(peppered.url, peppered.client, caller.credential).post(WHO).status_code == 200
        eventually(lambda: api.installation.rows(stored, str(caller.key_id)) != before)
    with apis.running(api.installation, "without", TENANTRY_AUTH__KEY_PEPPER=new) as without:
        assert Caller(without.url, without.client, caller.credential).post(WHO).status_code == 200
        assert Caller(without.url, without.client, api.caller(tenant).credential).post(WHO).status_code == 401

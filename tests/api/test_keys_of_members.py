"""What becomes of the keys that a member made: they are the tenant's, and can never be more than their maker could."""

from __future__ import annotations

from typing import Any

import pytest

from tenants import ids
from tenants.context import Principal, Role
from tests.support.apis import Api, Caller
from tests.support.installations import eventually
from tests.support.people import People

CREATE = (
    'mutation($s: [String!]!) { createApiKey(input: {name: "k", scopes: $s}) { success secret apiKey { id }'
    " problem { code } } }"
)
ROTATE = "mutation($i: ID!) { rotateApiKey(id: $i) { success secret problem { code } } }"
ROLE = "mutation($n: String!, $s: [String!]!) { createRole(name: $n, scopes: $s) { role { id } } }"
CHANGE = "mutation($i: ID!, $r: Role, $c: ID) { setMemberRole(id: $i, role: $r, roleId: $c) { success } }"
WHO = "{ viewer { kind scopes } }"
TRIGGER = 'mutation { triggerBackgroundTask(taskName: "diagnostics.echo") { success } }'


@pytest.fixture
def people(api: Api, tenant: Principal) -> People:
    made = People(api, tenant)
    made.join("owner@example.org")
    return made


def _make(maker: Caller, *scopes: str) -> dict[str, Any]:
    found: dict[str, Any] = maker.ask(CREATE, s=list(scopes))["createApiKey"]
    return found


def _demote(people: People, email: str, role: Role | None = None, custom: str | None = None) -> None:
    [(user,)] = people.api.installation.rows("SELECT id FROM users WHERE email = %s", email)
    given = {"i": ids.show("usr", user), "r": None if role is None else role.value, "c": custom}
    assert people.caller("owner@example.org").ask(CHANGE, **given)["setMemberRole"]["success"]


def test_a_key_stays_what_it_is_when_its_maker_may_do_less(people: People) -> None:
    maker = people.member("maker@example.org", Role.ADMIN)
    made = _make(maker, "runs:write", "runs:read", "diagnostics:write")
    key = Caller(maker.url, maker.client, made["secret"])
    _demote(people, "maker@example.org", Role.VIEWER)
    eventually(lambda: not maker.ask(TRIGGER)["triggerBackgroundTask"]["success"], 6)
    assert key.ask(TRIGGER)["triggerBackgroundTask"]["success"]
    assert sorted(key.ask(WHO)["viewer"]["scopes"]) == ["diagnostics:write", "runs:read", "runs:write"]


def test_who_was_demoted_makes_and_rotates_no_key(people: People) -> None:
    maker = people.member("lesser@example.org", Role.ADMIN)
    made = _make(maker, "runs:write")
    _demote(people, "lesser@example.org", Role.MEMBER)
    eventually(lambda: _make(maker, "runs:read")["problem"] == {"code": "FORBIDDEN"}, 6)
    assert maker.ask(ROTATE, i=made["apiKey"]["id"])["rotateApiKey"]["problem"] == {"code": "FORBIDDEN"}
    assert Caller(maker.url, maker.client, made["secret"]).post(WHO).status_code == 200


def test_who_manages_keys_alone_makes_none_that_does_more_and_renews_none_that_does(people: People) -> None:
    owner = people.caller("owner@example.org")
    role = owner.ask(ROLE, n="keeper", s=["keys:manage", "runs:read"])["createRole"]["role"]["id"]
    maker = people.member("keeper@example.org", Role.ADMIN)
    strong = _make(maker, "runs:write")
    _demote(people, "keeper@example.org", custom=role)
    eventually(lambda: maker.ask(WHO)["viewer"]["scopes"] != ["*"], 6)
    assert _make(maker, "runs:write")["problem"] == {"code": "FORBIDDEN"}
    assert _make(maker, "*")["problem"] == {"code": "FORBIDDEN"}
    refused = maker.ask(ROTATE, i=strong["apiKey"]["id"])["rotateApiKey"]
    assert (refused["problem"], refused["secret"]) == ({"code": "FORBIDDEN"}, None)
    weak = _make(maker, "runs:read")
    assert weak["success"]
    assert maker.ask(ROTATE, i=weak["apiKey"]["id"])["rotateApiKey"]["success"]

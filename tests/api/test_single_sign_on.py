"""Where members come through an identity provider only: no password opens a login there, but an owner's."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tenants import ids, links, providers
from tenants.context import Principal, Role
from tenants.links import Kind
from tenants.providers import ProviderRequest
from tests.support import streams
from tests.support.apis import Api
from tests.support.installations import eventually
from tests.support.people import PASSWORD, People, post

NEW = "another correct horse battery"


@pytest.fixture
def people(api: Api, tenant: Principal) -> People:
    return People(api, tenant)


@pytest.fixture
def elsewhere(api: Api, other_tenant: Principal) -> People:
    """A tenant where passwords are good."""
    return People(api, other_tenant)


def _require(people: People) -> None:
    installation, corp = people.api.installation, ProviderRequest("corp", "https://corp.example", "c")
    installation.write(people.tenant, providers.put, installation.settings, corp)
    installation.write(people.tenant, providers.require, True)


def _logins(people: People) -> int:
    [(count,)] = people.api.installation.rows(
        "SELECT count(*) FROM login_sessions WHERE tenant_id = %s AND revoked_at IS NULL", str(people.tenant.tenant)
    )
    return int(count)


def _refusals(people: People) -> list[tuple[Any, ...]]:
    """Who was refused by the rule, as the audit log tells it."""
    return people.api.installation.rows(
        "SELECT actor, detail->>'reason' FROM audit_entries WHERE tenant_id = %s AND action = 'login.refuse'",
        str(people.tenant.tenant),
    )


def _is_refused(people: People, answer: httpx2.Response, user: str) -> None:
    """It says why, it is told in the audit log, and nobody is logged in."""
    assert answer.status_code == 401
    [error] = answer.json()["errors"]
    assert error["message"] == "Log in through the identity provider of this tenant."
    assert error["extensions"]["reason"] == "sso"
    eventually(lambda: _refusals(people) == [(user, "sso")])
    assert _logins(people) == 0


def test_a_password_opens_no_login(people: People) -> None:
    user = ids.show("usr", people.join("ann@example.org", Role.ADMIN))
    _require(people)
    answer = post(people.api, "login", tenant=people.slug, email="ann@example.org", password=PASSWORD)
    _is_refused(people, answer, user)


def test_a_wrong_password_tells_nothing(people: People) -> None:
    people.join("ann@example.org", Role.ADMIN)
    _require(people)
    answers = [
        post(people.api, "login", tenant=people.slug, email=email, password="not the password").json()
        for email in ("ann@example.org", "nobody@example.org")
    ]
    assert answers[0] == answers[1]
    assert "identity provider" not in str(answers)


def test_a_login_elsewhere_does_not_lead_there(people: People, elsewhere: People) -> None:
    user = ids.show("usr", people.join("bob@example.org", Role.ADMIN))
    elsewhere.join("bob@example.org", Role.OWNER)
    _require(people)
    token = elsewhere.log_in("bob@example.org")["accessToken"]
    _is_refused(people, post(people.api, "switch", token, tenant=people.slug), user)


def test_who_accepts_an_invitation_is_a_member_and_comes_through_the_provider(people: People) -> None:
    _require(people)
    invite = 'mutation { inviteMember(input: {email: "cid@example.org", role: MEMBER}) { invitation { id } } }'
    made = people.api.caller(people.tenant).ask(invite)["inviteMember"]["invitation"]["id"]
    settings = people.api.installation.settings
    link = links.url(settings, Kind.INVITATION, ids.read("inv", made), people.tenant.tenant)
    answer = post(people.api, "invitation", token=link.partition("#token=")[2], password=PASSWORD)
    [(user,)] = people.api.installation.rows("SELECT id FROM users WHERE email = 'cid@example.org'")
    _is_refused(people, answer, ids.show("usr", user))
    assert people.roles() == {"cid@example.org": "MEMBER"}


def test_a_new_password_opens_no_login(people: People) -> None:
    user = ids.show("usr", people.join("dan@example.org", Role.ADMIN))
    _require(people)
    assert post(people.api, "reset", email="dan@example.org").status_code == 202
    [(row,)] = people.api.installation.rows("SELECT id FROM account_links WHERE email = 'dan@example.org'")
    token = links.url(people.api.installation.settings, Kind.RESET, row).partition("#token=")[2]
    answer = post(people.api, "reset/confirm", token=token, password=NEW)
    assert (answer.status_code, answer.content) == (204, b"")
    assert _logins(people) == 0
    again = post(people.api, "login", tenant=people.slug, email="dan@example.org", password=NEW)
    _is_refused(people, again, user)


def test_an_owner_gets_in_whatever_becomes_of_the_provider(people: People, elsewhere: People) -> None:
    people.join("eve@example.org", Role.OWNER)
    elsewhere.join("eve@example.org", Role.VIEWER)
    _require(people)
    assert people.log_in("eve@example.org")
    token = elsewhere.log_in("eve@example.org")["accessToken"]
    assert post(people.api, "switch", token, tenant=people.slug).status_code == 200
    assert _refusals(people) == []


def test_who_is_an_owner_no_more_is_out(people: People) -> None:
    people.join("first@example.org", Role.OWNER)
    user = ids.show("usr", people.join("fay@example.org", Role.OWNER))
    _require(people)
    tokens, first = people.log_in("fay@example.org"), people.caller("first@example.org")
    fay = people.caller("fay@example.org")
    with streams.socket(fay) as socket:
        socket.subscribe(streams.ALL_UPDATES)
        demote = "mutation($i: ID!) { setMemberRole(id: $i, role: ADMIN) { success } }"
        assert first.ask(demote, i=user)["setMemberRole"]["success"]
        assert socket.closed(6) == 4401
    assert post(people.api, "refresh", refreshToken=tokens["refreshToken"]).status_code == 401
    assert _logins(people) == 1, "the other owner's"

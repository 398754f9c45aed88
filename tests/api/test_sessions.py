"""A person's logins and password: seen, ended, changed; and one token for each tenant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from tenants import identities, ids, logins, providers, signing, system
from tenants.context import Principal, Role
from tenants.errors import Unauthenticated
from tenants.identities import Claims
from tenants.providers import ProviderRequest
from tests.support import apis, streams
from tests.support.apis import Api, Caller
from tests.support.installations import Installation, eventually
from tests.support.people import PASSWORD, People, address, caller, post

WHO = "{ viewer { email role tenant { id } } }"
SESSIONS = "query ($u: ID) { sessions(userId: $u) { nodes { id userId current agent } } }"
REVOKE = "mutation ($id: ID!) { revokeSession(id: $id) { success problem { code } } }"
NEW = "another correct horse battery"


def _sessions(asking: Caller, user: str | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = asking.ask(SESSIONS, u=user)["sessions"]["nodes"]
    return found


def _waits(attempt: Callable[[], httpx2.Response]) -> bool:
    """Whether who tries has to wait, as each of them would after ten failures of their own only."""
    return any(attempt().status_code == 429 for _ in range(5))


def _ended(asking: Caller) -> bool:
    return asking.post(WHO).status_code == 401


def test_a_person_sees_their_own_logins_and_ends_one(people: People) -> None:
    people.join("ada@example.org", Role.VIEWER)
    people.member("bob@example.org", Role.VIEWER)
    first, second = people.caller("ada@example.org"), people.caller("ada@example.org")
    found = _sessions(second)
    assert [one["current"] for one in found] == [True, False]
    assert all("httpx" in one["agent"] for one in found)
    with streams.socket(first) as socket:
        socket.subscribe(streams.ALL_UPDATES)
        assert second.ask(REVOKE, id=found[1]["id"])["revokeSession"]["success"]
        assert socket.closed(6) == 4401
    eventually(lambda: _ended(first), 6)
    assert [one["id"] for one in _sessions(second)] == [found[0]["id"]]
    assert second.ask(REVOKE, id=found[1]["id"])["revokeSession"]["success"], "once more changes nothing"


def test_others_logins_are_for_who_manages_members(people: People) -> None:
    people.join("owner@example.org")
    member = people.member("bob@example.org", Role.MEMBER)
    admin = people.member("admin@example.org", Role.ADMIN)
    user = member.ask("{ viewer { userId } }")["viewer"]["userId"]
    owner = people.caller("owner@example.org")
    [seen] = _sessions(admin, user)
    assert seen["userId"] == user
    [owners] = _sessions(admin, owner.ask("{ viewer { userId } }")["viewer"]["userId"])
    assert _sessions(member, owners["userId"]) == []
    assert member.ask(REVOKE, id=owners["id"])["revokeSession"]["problem"] == {"code": "NOT_FOUND"}
    assert member.ask(f'{{ node(id: "{owners["id"]}") {{ id }} }}') == {"node": None}
    assert admin.ask(REVOKE, id=owners["id"])["revokeSession"]["problem"] == {"code": "FORBIDDEN"}
    assert not _ended(owner)
    assert admin.ask(REVOKE, id=seen["id"])["revokeSession"]["success"]
    eventually(lambda: _ended(member), 6)


def test_a_login_to_another_tenant_is_not_seen_from_here(api: Api, people: People, other_tenant: Principal) -> None:
    elsewhere = People(api, other_tenant)
    here, there = people.member("ada@example.org"), elsewhere.member("ada@example.org")
    [mine], [theirs] = _sessions(here), _sessions(there)
    assert mine["id"] != theirs["id"]
    assert here.ask(REVOKE, id=theirs["id"])["revokeSession"]["problem"] == {"code": "NOT_FOUND"}
    assert not _ended(there)


def test_a_changed_password_ends_all_other_logins_everywhere(api: Api, people: People, other_tenant: Principal) -> None:
    elsewhere = People(api, other_tenant)
    there = elsewhere.member("grace@example.org", Role.VIEWER)
    people.join("grace@example.org", Role.VIEWER)
    mine, other = people.caller("grace@example.org"), people.log_in("grace@example.org")
    with streams.socket(caller(api, other["accessToken"])) as socket:
        socket.subscribe(streams.ALL_UPDATES)
        assert post(api, "password", mine.credential, current=PASSWORD, password=NEW).status_code == 204
        assert socket.closed(6) == 4401
    eventually(lambda: _ended(there), 6)
    assert post(api, "refresh", refreshToken=other["refreshToken"]).status_code == 401
    assert not _ended(mine)
    old = post(api, "login", tenant=people.slug, email="grace@example.org", password=PASSWORD)
    assert old.status_code == 401
    assert elsewhere.log_in("grace@example.org", NEW)
    [(action,)] = api.installation.rows(
        "SELECT action FROM audit_entries WHERE tenant_id = %s AND action LIKE 'password.%%'", str(people.tenant.tenant)
    )
    assert action == "password.set"


def test_a_password_is_not_changed_without_the_present_one(api: Api, people: People, tenant: Principal) -> None:
    mine = people.member("alan@example.org")
    for current, password, status in [
        ("a wrong password", NEW, 401),
        (PASSWORD, "short", 400),
        (PASSWORD, "x" * 1_000_000, 400),
        (PASSWORD, "nul\0nul\0nul", 400),
        ("x" * 5000, NEW, 400),
    ]:
        answer = post(api, "password", mine.credential, current=current, password=password)
        assert answer.status_code == status, answer.text
    assert post(api, "password", current=PASSWORD, password=NEW).status_code == 401
    assert post(api, "password", api.caller(tenant).credential, current=PASSWORD, password=NEW).status_code == 403
    assert people.log_in("alan@example.org")


def test_who_holds_a_token_does_not_guess_the_password_for_long(api: Api, people: People) -> None:
    mine, at = people.member("kurt@example.org"), address()
    for _ in range(10):
        assert post(api, "password", mine.credential, at, current="a wrong one", password=NEW).status_code == 401
    assert _waits(lambda: post(api, "password", mine.credential, at, current="a wrong one", password=NEW))
    assert _waits(lambda: post(api, "login", at=at, tenant=people.slug, email="kurt@example.org", password="wrong"))


@pytest.mark.parametrize(
    "email", ["ALAN2@example.org", "\uff41lan2@example.org", " alan2@example.org", "Alan2@EXAMPLE.org"]
)
def test_another_spelling_and_another_tenant_are_no_new_guesses(
    api: Api, people: People, other_tenant: Principal, email: str
) -> None:
    people.join("alan2@example.org")
    elsewhere = People(api, other_tenant)
    elsewhere.join("alan2@example.org")
    at = address()
    for _ in range(10):
        post(api, "login", at=at, tenant=people.slug, email="alan2@example.org", password="wrong")
    assert _waits(lambda: post(api, "login", at=at, tenant=elsewhere.slug, email=email, password="wrong"))


def test_a_person_has_a_token_for_each_of_their_tenants(api: Api, people: People, other_tenant: Principal) -> None:
    elsewhere = People(api, other_tenant)
    people.join("lin@example.org")
    elsewhere.join("lin@example.org", Role.VIEWER)
    here = people.caller("lin@example.org")
    listed = api.client.get(f"{api.url}/auth/tenants", headers=here.headers).json()["tenants"]
    assert [(one["slug"], one["role"], one["current"]) for one in listed] == sorted(
        [(people.slug, "OWNER", True), (elsewhere.slug, "VIEWER", False)]
    )
    tokens = post(api, "switch", here.credential, tenant=elsewhere.slug).json()
    there = caller(api, tokens["accessToken"])
    viewer = there.ask(WHO)["viewer"]
    assert (viewer["role"], viewer["tenant"]["id"]) == ("VIEWER", ids.show("ten", other_tenant.tenant))
    assert here.ask(WHO)["viewer"]["tenant"]["id"] == ids.show("ten", people.tenant.tenant)
    assert post(api, "logout", here.credential).status_code == 204
    eventually(lambda: _ended(here), 6)
    assert not _ended(there), "each login ends by itself"
    assert post(api, "switch", here.credential, tenant=elsewhere.slug).status_code == 401


def test_nobody_switches_to_where_they_are_not(
    api: Api, people: People, tenant: Principal, other_tenant: Principal
) -> None:
    mine = people.member("ada3@example.org")
    strange = [People(api, other_tenant).slug, "nowhere", system.OPERATORS, people.slug, "' OR 1=1 --"]
    answers = {post(api, "switch", mine.credential, tenant=slug).text for slug in strange}
    assert len(answers) == 1
    assert "NOT_FOUND" in answers.pop()
    assert post(api, "switch", api.caller(tenant).credential, tenant=people.slug).status_code == 403
    assert post(api, "switch", tenant=people.slug).status_code == 401


def _vouched_for(people: People, email: str) -> Caller:
    """A member whom the tenant's identity provider has let in."""
    installation, tenant = people.api.installation, people.tenant
    corp = ProviderRequest("corp", "https://login.corp.example", "client", domains=[email.rpartition("@")[2]])
    installation.write(tenant, providers.put, installation.settings, corp)
    claims = Claims(corp.issuer, "s-1", email, email_verified=True)
    user = installation.write(tenant, identities.admit, "corp", claims)
    tokens = installation.write(tenant, logins.redeem, installation.settings.auth, user, ids.new(), "corp", "a browser")
    assert tokens is not None
    return caller(people.api, tokens.access)


def test_a_login_that_a_provider_vouched_for_leads_nowhere_else(
    api: Api, people: People, other_tenant: Principal
) -> None:
    elsewhere = People(api, other_tenant)
    people.join("ada4@example.org")
    elsewhere.join("ada4@example.org")
    vouched, mine = _vouched_for(people, "ada4@example.org"), people.caller("ada4@example.org")
    for asking, reached, status in ((vouched, {people.slug}, 404), (mine, {people.slug, elsewhere.slug}, 200)):
        listed = api.client.get(f"{api.url}/auth/tenants", headers=asking.headers).json()["tenants"]
        assert {one["slug"] for one in listed} == reached
        assert post(api, "switch", asking.credential, tenant=elsewhere.slug).status_code == status
    opened = "SELECT provider FROM login_sessions WHERE tenant_id = %s"
    assert api.installation.rows(opened, str(other_tenant.tenant)) == [(None,)]


def test_a_login_that_a_provider_vouched_for_changes_no_password(api: Api, people: People) -> None:
    people.join("ada6@example.org")
    vouched = _vouched_for(people, "ada6@example.org")
    assert post(api, "password", vouched.credential, current=PASSWORD, password=NEW).status_code == 401
    mine = people.caller("ada6@example.org")
    assert post(api, "password", mine.credential, current=PASSWORD, password=NEW).status_code == 204


def test_a_login_that_a_provider_vouched_for_is_seen_and_noted_as_any(people: People) -> None:
    people.join("ada7@example.org")
    [seen] = _sessions(_vouched_for(people, "ada7@example.org"))
    assert (seen["agent"], seen["current"]) == ("a browser", True)
    noted = people.api.installation.rows(
        "SELECT target, detail->>'provider' FROM audit_entries WHERE tenant_id = %s AND action = 'login.open'",
        str(people.tenant.tenant),
    )
    assert noted == [(seen["id"], "corp")]


def test_keys_rotate_and_what_the_old_one_signed_stays_good_while_it_is_in_the_ring(
    installation: Installation, tenant: Principal
) -> None:
    old, new = '"k1":"another-key-for-tests-0123456789abcdef"', '"k2":"the-next-key-for-tests-0123456789abcdef"'
    with apis.running(installation, "rotating") as api:
        people = People(api, tenant)
        people.join("ada5@example.org")
        before = people.log_in("ada5@example.org")
        installation.kill("rotating")
        apis.start(api, TENANTRY_AUTH__TOKEN_KEYS=f"{{{old},{new}}}")
        assert caller(api, before["accessToken"]).ask(WHO)["viewer"]["email"] == "ada5@example.org"
        after = post(api, "refresh", refreshToken=before["refreshToken"]).json()
        installation.kill("rotating")
        apis.start(api, TENANTRY_AUTH__TOKEN_KEYS=f"{{{new}}}")
        assert caller(api, before["accessToken"]).post(WHO).status_code == 401
        assert post(api, "refresh", refreshToken=before["refreshToken"]).status_code == 401
        assert caller(api, after["accessToken"]).ask(WHO)["viewer"]["email"] == "ada5@example.org"
        again = post(api, "refresh", refreshToken=after["refreshToken"])
        assert again.status_code == 200
        with pytest.raises(Unauthenticated):
            signing.read_access(installation.settings.auth, again.json()["accessToken"])

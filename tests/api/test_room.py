"""A plan's members: an invitation or a provider makes no more of them than there is room for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx2
import pytest

from tenants import ids, links, providers, quotas, system
from tenants.context import Principal, Role
from tenants.links import Kind
from tenants.providers import ProviderRequest
from tenants.quotas import Quota
from tests.api.test_oidc import DENIED, _audit
from tests.support.apis import Api
from tests.support.issuers import CLIENT, Browser, Issuer
from tests.support.people import PASSWORD, People, post

INVITE = "mutation($e: String!) { inviteMember(input: {email: $e, role: MEMBER}) { invitation { id } } }"
REMOVE = "mutation($i: ID!) { removeMember(id: $i) { success } }"
FULL = {"code": "QUOTA_EXCEEDED", "limitName": "members"}


@pytest.fixture
def people(api: Api, tenant: Principal) -> People:
    return People(api, tenant)


def _give_room(people: People, most: int | None) -> None:
    """Let the tenant have so many members."""
    settings = people.api.installation.settings
    operator = system.acting(settings, system.OPERATORS, "tests")
    people.api.installation.write(operator, quotas.assign, people.slug, quotas.DEFAULT, {Quota.MEMBERS: most})


def _invite(people: People, email: str) -> str:
    """The token of the link that an invited address is mailed."""
    caller = people.api.caller(people.tenant)
    invitation = ids.read("inv", caller.ask(INVITE, e=email)["inviteMember"]["invitation"]["id"])
    link = links.url(people.api.installation.settings, Kind.INVITATION, invitation, people.tenant.tenant)
    return link.partition("#token=")[2]


def _accept(people: People, token: str) -> httpx2.Response:
    return post(people.api, "invitation", token=token, password=PASSWORD)


def _told(answer: httpx2.Response) -> dict[str, Any]:
    """What a refusal says of the quota."""
    [error] = answer.json()["errors"]
    return {name: error["extensions"][name] for name in FULL}


def test_who_is_invited_waits_until_there_is_room(people: People) -> None:
    people.join("first@example.org")
    token = _invite(people, "second@example.org")
    _give_room(people, 1)
    refused = _accept(people, token)
    assert (refused.status_code, _told(refused)) == (403, FULL)
    assert people.roles() == {"first@example.org": "OWNER"}
    users = "SELECT 1 FROM users WHERE email = 'second@example.org'"
    assert people.api.installation.rows(users) == [], "no password was kept of who was not let in"
    _give_room(people, 2)
    assert _accept(people, token).status_code == 201
    assert people.roles()["second@example.org"] == "MEMBER"


def test_a_place_that_a_member_leaves_is_the_next_ones(people: People) -> None:
    people.join("first@example.org")
    leaver = people.join("leaver@example.org", Role.VIEWER)
    token = _invite(people, "second@example.org")
    _give_room(people, 2)
    assert _told(_accept(people, token)) == FULL
    owner = people.caller("first@example.org")
    assert owner.ask(REMOVE, i=ids.show("usr", leaver))["removeMember"]["success"]
    assert _accept(people, token).status_code == 201


def test_who_has_become_a_member_meanwhile_needs_no_place(people: People) -> None:
    people.join("first@example.org")
    token = _invite(people, "second@example.org")
    people.join("second@example.org", Role.ADMIN)
    _give_room(people, 2)
    assert _accept(people, token).status_code == 201
    assert people.roles()["second@example.org"] == "ADMIN"


def test_of_two_who_accept_at_once_where_one_has_room_one_gets_in(people: People) -> None:
    people.join("first@example.org")
    for number in range(3):
        emails = [f"{which}{number}@example.org" for which in "ab"]
        tokens = [_invite(people, email) for email in emails]
        _give_room(people, len(people.roles()) + 1)
        with ThreadPoolExecutor(2) as threads:
            answers = list(threads.map(lambda token: _accept(people, token), tokens))
        assert sorted(answer.status_code for answer in answers) == [201, 403]
        [refused] = [answer for answer in answers if answer.status_code != 201]
        assert _told(refused) == FULL
        assert len(people.roles().keys() & set(emails)) == 1


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with closing(Issuer()) as made:
        yield made


@pytest.fixture
def place(people: People, issuer: Issuer) -> str:
    """Where logins through a provider begin that makes members of whom it knows."""
    request = ProviderRequest(
        "corp", issuer.url, CLIENT, domains=["example.org"], just_in_time=True, default_role=Role.MEMBER
    )
    people.api.installation.write(people.tenant, providers.put, people.api.installation.settings, request)
    return f"/auth/{people.slug}/oidc/corp"


def test_a_provider_brings_in_no_more_than_there_is_room_for(people: People, issuer: Issuer, place: str) -> None:
    people.join("first@example.org")
    _give_room(people, 1)
    assert Browser(people.api.url, place).through(issuer) == DENIED
    assert _audit(people.api, people.tenant)[-1] == ("login.refuse", None, "no room")
    assert people.roles() == {"first@example.org": "OWNER"}
    _give_room(people, 2)
    assert Browser(people.api.url, place).tokens(issuer)
    assert people.roles()["ada@example.org"] == "MEMBER"
    _give_room(people, 1)
    assert Browser(people.api.url, place).tokens(issuer), "who is a member stays one"


def test_of_two_whom_a_provider_brings_at_once_one_gets_in(people: People, issuer: Issuer, place: str) -> None:
    people.join("first@example.org")
    _give_room(people, 2)
    browsers = [Browser(people.api.url, place) for _ in range(2)]
    given = []
    for number, browser in enumerate(browsers):
        asked = browser.asked()
        given.append({"code": issuer.approve(asked), "state": asked["state"], "iss": issuer.url})
        asked["subject"] = f"s-{number}"
    subjects = iter(["a", "b"])
    issuer.write = lambda claims: issuer.sign({
        **claims, "sub": (name := next(subjects)), "email": f"{name}@example.org"
    })  # fmt: skip
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda pair: pair[0].come_back(**pair[1]), zip(browsers, given, strict=True)))
    told = ["code" if "#code=" in answer.headers["location"] else "refused" for answer in answers]
    assert sorted(told) == ["code", "refused"]
    assert len(people.roles()) == 2
    assert _audit(people.api, people.tenant)[-1][2] in {"no room", None}
    assert "no room" in {reason for _, _, reason in _audit(people.api, people.tenant)}

"""What people do to their account is told in the audit log of each of their tenants, and in no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from tenants import ids, links
from tenants.context import Principal, Role
from tenants.links import Kind
from tests.support.apis import Api
from tests.support.people import PASSWORD, People, caller, post

LOG = "{ auditLog(first: 20) { nodes { actor action target detail } } }"
NEW = "another correct horse battery"


@pytest.fixture
def two(api: Api, tenant: Principal, other_tenant: Principal) -> list[People]:
    """Two tenants of one person, whose slugs neither log may name of the other."""
    found = [People(api, tenant), People(api, other_tenant)]
    for people in found:
        people.join("ann@example.org", Role.MEMBER)
    return found


def _told(people: People) -> list[dict[str, Any]]:
    """What the tenant's administrator sees of passwords."""
    nodes = people.api.caller(people.tenant).ask(LOG)["auditLog"]["nodes"]
    return [node for node in nodes if node["action"].startswith("password.")]


def _token(api: Api, kind: Kind, email: str) -> str:
    [(row,)] = api.installation.rows(
        "SELECT id FROM account_links WHERE email = %s AND kind = %s AND used_at IS NULL", email, kind.name
    )
    return links.url(api.installation.settings, kind, row).partition("#token=")[2]


def _person(api: Api, email: str) -> UUID:
    [(user,)] = api.installation.rows("SELECT id FROM users WHERE email = %s", email)
    return UUID(str(user))


def test_a_reset_is_told_to_each_tenant_of_the_person(
    api: Api, two: list[People], new_tenant: Callable[..., Principal]
) -> None:
    stranger = People(api, new_tenant("diagnostics"))
    assert post(api, "reset", email="ann@example.org").status_code == 202
    assert [_told(people) for people in two] == [[], []], "asking is nothing yet: anybody may ask"
    token = _token(api, Kind.RESET, "ann@example.org")
    assert post(api, "reset/confirm", token=token, password=NEW).status_code == 204
    who = ids.show("usr", _person(api, "ann@example.org"))
    entry = {"actor": who, "action": "password.reset", "target": who, "detail": {}}
    assert [_told(people) for people in two] == [[entry], [entry]]
    assert _told(stranger) == []
    assert post(api, "reset/confirm", token=token, password=NEW).status_code == 404
    assert [len(_told(people)) for people in two] == [1, 1]
    api.installation.rows("DELETE FROM users WHERE email = 'ann@example.org'")


def test_a_change_is_told_once_to_each_tenant_of_the_person(api: Api, two: list[People]) -> None:
    token = two[0].log_in("ann@example.org")["accessToken"]
    wrong = post(api, "password", token, current="not this one", password=NEW)
    assert (wrong.status_code, _told(two[0]), _told(two[1])) == (401, [], [])
    assert post(api, "password", token, current=PASSWORD, password=NEW).status_code == 204
    who = ids.show("usr", _person(api, "ann@example.org"))
    entry = {"actor": who, "action": "password.set", "target": who, "detail": {}}
    assert [_told(people) for people in two] == [[entry], [entry]]


def test_who_accepts_an_invitation_is_told_with_their_login(api: Api, tenant: Principal) -> None:
    people, admin = People(api, tenant), api.caller(tenant)
    invite = 'mutation { inviteMember(input: {email: "bea@example.org", role: VIEWER}) { invitation { id } } }'
    made = admin.ask(invite)["inviteMember"]["invitation"]["id"]
    link = links.url(api.installation.settings, Kind.INVITATION, ids.read("inv", made), tenant.tenant)
    answer = post(api, "invitation", token=link.partition("#token=")[2], password=PASSWORD)
    assert answer.status_code == 201
    session = caller(api, answer.json()["accessToken"]).ask("{ sessions { nodes { id } } }")["sessions"]["nodes"][0]
    nodes = admin.ask(LOG)["auditLog"]["nodes"]
    who = ids.show("usr", _person(api, "bea@example.org"))
    opened, *joined = nodes[:3]
    assert opened == {"actor": who, "action": "login.open", "target": session["id"], "detail": {"provider": None}}
    assert {node["action"]: (node["actor"], node["target"]) for node in joined} == {
        "invitation.accept": (made, made),
        "member.set": (made, who),
    }
    assert people.roles() == {"bea@example.org": "VIEWER"}

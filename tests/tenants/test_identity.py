"""People: addresses, passwords, memberships."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tenants import identity, members, passwords, system
from tenants.context import ActorKind, Principal, Role
from tenants.errors import Conflict, InvalidInput, InvalidState, NotFound
from tests.support.installations import Installation

PASSWORD = "correct horse battery staple"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (" Ada@Example.ORG ", "ada@example.org"),
        ("user+tag@example.org", "user+tag@example.org"),
        ("\uff41da@example.org", "ada@example.org"),
        ("stra\u00dfe@example.org", "strasse@example.org"),
    ],
)
def test_an_address_has_one_form(given: str, kept: str) -> None:
    assert identity.normalise(given) == kept


@pytest.mark.parametrize("given", ["", "x", "a@", "@b", "a b@c", "a@b@c", "a@b\0", "a" * 65 + "@b"])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(InvalidInput):
        identity.normalise(given)


def test_a_person_is_one_in_all_tenants_and_keeps_the_password(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    settings = installation.settings
    user = system.enroll(settings, "Ada@example.org", PASSWORD)
    assert system.enroll(settings, "ada@EXAMPLE.org", None) == user
    assert system.enroll(settings, "ada@example.org", PASSWORD) == user
    with pytest.raises(Conflict):
        system.enroll(settings, "ada@example.org", "another password")
    [(kept,)] = installation.rows("SELECT password_hash FROM users WHERE id = %s", str(user))
    assert passwords.verify(kept, PASSWORD)
    for principal in (tenant, other_tenant):
        installation.write(principal, members.join, user, Role.MEMBER)
    assert len(installation.rows("SELECT 1 FROM memberships WHERE user_id = %s", str(user))) == 2


def test_the_last_owner_stays(installation: Installation, tenant: Principal) -> None:
    operator = replace(tenant, kind=ActorKind.OPERATOR)
    owner = system.enroll(installation.settings, "first@example.org", None)
    second = system.enroll(installation.settings, "second@example.org", None)
    installation.write(operator, members.join, owner, Role.OWNER)
    installation.write(operator, members.join, second, Role.ADMIN)
    with pytest.raises(InvalidState):
        installation.write(operator, members.remove, owner, [])
    with pytest.raises(InvalidState):
        installation.write(operator, members.join, owner, Role.MEMBER)
    installation.write(operator, members.join, second, Role.OWNER)
    installation.write(operator, members.remove, owner, [])
    with pytest.raises(NotFound):
        installation.write(operator, members.remove, owner, [])


@pytest.mark.parametrize("slug", ["", "Upper", "1st", "_reserved", "a b", "a" * 64, "a/b", "\u00e9t\u00e9"])
def test_a_tenant_with_a_strange_slug_is_not_made(installation: Installation, slug: str) -> None:
    before = installation.rows("SELECT count(*) FROM tenants")
    with pytest.raises(InvalidInput):
        system.create_tenant(installation.settings, slug)
    assert installation.rows("SELECT count(*) FROM tenants") == before


def test_a_tenant_is_made_once(installation: Installation) -> None:
    made = system.create_tenant(installation.settings, "once", timezone="Europe/Berlin", families=("sales",))
    assert installation.rows("SELECT family FROM tenant_families WHERE tenant_id = %s", str(made.id)) == [("sales",)]
    with pytest.raises(Conflict):
        system.create_tenant(installation.settings, "once")
    with pytest.raises(InvalidInput):
        system.create_tenant(installation.settings, "elsewhere", timezone="Mars/Olympus")
    with pytest.raises(NotFound):
        system.acting(installation.settings, "elsewhere", "tests")

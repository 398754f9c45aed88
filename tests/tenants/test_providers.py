"""Identity providers: what can be set up, by whom, and what ends with it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from tenants import credentials, db, identities, ids, invitations, logins, members, providers, system
from tenants.context import Principal, Role
from tenants.errors import Conflict, InvalidInput, InvalidState, NotFound, Unauthenticated
from tenants.identities import Claims, NotVouched
from tenants.providers import ProviderRequest
from tests.support.installations import Installation, eventually

CORP = ProviderRequest(
    "corp", "https://login.corp.example", "client", domains=["corp.example"], default_role=Role.MEMBER,
    just_in_time=True, client_secret=SecretStr("a client secret"),
)  # fmt: skip
ADA = Claims(CORP.issuer, "s-1", "ada@corp.example", email_verified=True)

WAITS = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def _put(installation: Installation, tenant: Principal, request: ProviderRequest = CORP) -> None:
    installation.write(tenant, providers.put, installation.settings, request)


def _member(installation: Installation, tenant: Principal, email: str, role: Role) -> UUID:
    user = system.enroll(installation.settings, email, None)
    installation.write(tenant, members.join, user, role)
    return user


def _ended(installation: Installation, tenant: Principal, user: UUID) -> list[bool]:
    rows = installation.rows(
        "SELECT revoked_at IS NOT NULL FROM login_sessions WHERE tenant_id = %s AND user_id = %s"
        " ORDER BY created_at, id",
        str(tenant.tenant),
        str(user),
    )
    return [ended for (ended,) in rows]


def test_a_provider_is_kept_and_its_secret_is_a_credential(installation: Installation, tenant: Principal) -> None:
    _put(installation, tenant, replace(CORP, domains=[" Corp.EXAMPLE", "corp.example"], scopes=["email", "openid"]))
    [row] = installation.write(tenant, providers.every)
    assert (row.domains, row.scopes) == (["corp.example"], ["openid", "email"])
    client = installation.write(tenant, providers.client, installation.settings, "corp")
    assert client.client_secret == SecretStr("a client secret")
    assert [kept.name for kept in installation.write(tenant, credentials.every)] == ["oidc.corp"]
    _put(installation, tenant, replace(CORP, client_secret=None, client_id="another"))
    again = installation.write(tenant, providers.client, installation.settings, "corp")
    assert (again.client_id, again.client_secret) == ("another", client.client_secret)
    assert "a client secret" not in str(
        installation.rows("SELECT detail::text FROM audit_entries WHERE tenant_id = %s", str(tenant.tenant))
    )


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"name": ""}, "name"),
        ({"name": "Corp"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "corp\n"}, "name"),
        ({"issuer": "http://login.corp.example"}, "issuer"),
        ({"issuer": "login.corp.example"}, "issuer"),
        ({"issuer": "https://"}, "issuer"),
        ({"issuer": "https://user@login.corp.example"}, "issuer"),
        ({"issuer": "https://login.corp.example/?a"}, "issuer"),
        ({"issuer": "https://login.corp.example/#a"}, "issuer"),
        ({"issuer": "https://login.corp.example\\@x"}, "issuer"),
        ({"issuer": "https://login.corp.example:99999"}, "issuer"),
        ({"issuer": "file:///etc/passwd"}, "issuer"),
        ({"issuer": "https://login.corp.example/" + "x" * 500}, "issuer"),
        ({"client_id": ""}, "clientId"),
        ({"client_id": "a\0"}, "clientId"),
        ({"groups_claim": ""}, "groupsClaim"),
        ({"scopes": ["two words"]}, "scopes"),
        ({"scopes": [""]}, "scopes"),
        ({"domains": ["*.corp.example"]}, "domains"),
        ({"domains": ["example"]}, "domains"),
        ({"domains": ["@corp.example"]}, "domains"),
        ({"domains": []}, "domains"),
        ({"roles": {"heads": Role.OWNER}}, "roles"),
        ({"default_role": Role.OWNER}, "roles"),
        ({"roles": {"": Role.MEMBER}}, "roles"),
        ({"default_role": None}, "defaultRole"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_and_nothing_is_kept(
    installation: Installation, tenant: Principal, wrong: dict[str, Any], path: str
) -> None:
    production = installation.settings.model_copy(update={"environment": "production"})
    with pytest.raises(InvalidInput) as refused:
        installation.write(tenant, providers.put, production, replace(CORP, **wrong))
    assert path in {issue.path[0] for issue in refused.value.issues}
    assert installation.write(tenant, providers.every) == []
    assert installation.write(tenant, credentials.every) == []


def test_an_issuer_is_of_one_provider_in_a_tenant(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    _put(installation, tenant)
    _put(installation, other_tenant)
    with pytest.raises(Conflict):
        _put(installation, tenant, replace(CORP, name="another"))


def test_with_a_provider_go_who_is_who_there_and_the_logins_it_vouched_for(
    installation: Installation, tenant: Principal
) -> None:
    _put(installation, tenant)
    user = installation.write(tenant, identities.admit, "corp", ADA)
    auth = installation.settings.auth
    installation.write(tenant, logins.redeem, auth, user, ids.new(), "corp")
    installation.write(tenant, logins.open_login, auth, user)
    installation.write(tenant, providers.remove, "corp")
    assert _ended(installation, tenant, user) == [True, False]
    assert installation.write(tenant, logins.redeem, auth, user, ids.new(), "corp") is None
    for table in ("identities", "identity_providers", "credentials"):
        assert installation.rows(f"SELECT * FROM {table} WHERE tenant_id = %s", str(tenant.tenant)) == []
    with pytest.raises(NotFound):
        installation.write(tenant, identities.admit, "corp", ADA)


def test_another_issuer_makes_everybody_a_stranger(installation: Installation, tenant: Principal) -> None:
    _put(installation, tenant)
    user = installation.write(tenant, identities.admit, "corp", ADA)
    installation.write(tenant, logins.redeem, installation.settings.auth, user, ids.new(), "corp")
    _put(installation, tenant, replace(CORP, issuer="https://evil.example", just_in_time=False, domains=[]))
    assert _ended(installation, tenant, user) == [True]
    with pytest.raises(NotVouched, match="domain"):
        installation.write(tenant, identities.admit, "corp", replace(ADA, issuer="https://evil.example"))
    with pytest.raises(NotFound):
        installation.write(tenant, identities.admit, "corp", ADA)


def test_where_a_provider_is_required_passwords_are_an_owners_only(
    installation: Installation, tenant: Principal
) -> None:
    owner = _member(installation, tenant, "owner@corp.example", Role.OWNER)
    member = _member(installation, tenant, "member@corp.example", Role.ADMIN)
    auth = installation.settings.auth
    for user in (owner, member):
        installation.write(tenant, logins.open_login, auth, user)
    with pytest.raises(InvalidState):
        installation.write(tenant, providers.require, True)
    _put(installation, tenant)
    claims = Claims(CORP.issuer, "s-2", "member@corp.example", email_verified=True)
    assert installation.write(tenant, identities.admit, "corp", claims) == member
    installation.write(tenant, logins.redeem, auth, member, ids.new(), "corp")
    installation.write(tenant, providers.require, True)
    assert (_ended(installation, tenant, owner), _ended(installation, tenant, member)) == ([False], [True, False])
    with pytest.raises(Unauthenticated, match="identity provider"):
        installation.write(tenant, logins.open_login, auth, member)
    installation.write(tenant, logins.open_login, auth, owner)
    with pytest.raises(InvalidState):
        installation.write(tenant, providers.remove, "corp")
    installation.write(tenant, providers.require, False)
    installation.write(tenant, logins.open_login, auth, member)


def test_a_login_that_is_being_opened_ends_where_a_provider_is_required_meanwhile(
    installation: Installation, tenant: Principal
) -> None:
    member = _member(installation, tenant, "member@corp.example", Role.ADMIN)
    _put(installation, tenant)
    engine = db.sync_engine(installation.addresses.app, pool_size=1)
    with db.open_session(engine, tenant) as session, ThreadPoolExecutor(1) as threads:
        logins.open_login(session, installation.settings.auth, member)
        requiring = threads.submit(installation.write, tenant, providers.require, True)
        try:
            eventually(lambda: installation.rows(WAITS))
        finally:
            session.commit()
        requiring.result(30)
    engine.dispose()
    assert _ended(installation, tenant, member) == [True]


def test_who_is_no_owner_any_more_keeps_no_login_by_password(installation: Installation, tenant: Principal) -> None:
    auth = installation.settings.auth
    _member(installation, tenant, "owner@corp.example", Role.OWNER)
    second = _member(installation, tenant, "second@corp.example", Role.OWNER)
    _put(installation, tenant)
    installation.write(tenant, providers.require, True)
    tokens = installation.write(tenant, logins.open_login, auth, second)
    refresh = logins.read_refresh(auth.token_keys, tokens.refresh)
    found = installation.write(tenant, logins.find_session, tenant.tenant, refresh.session)
    assert found.revoked_at is None
    installation.write(tenant, members.join, second, Role.MEMBER)
    found = installation.write(tenant, logins.find_session, tenant.tenant, refresh.session)
    assert found.revoked_at is not None
    assert installation.write(tenant, logins.refresh, auth, refresh) is None
    assert _ended(installation, tenant, second) == [True]


def test_a_suspended_tenant_lets_members_in_and_nobody_new(installation: Installation, tenant: Principal) -> None:
    _put(installation, tenant)
    harry = _member(installation, tenant, "harry@corp.example", Role.MEMBER)
    installation.rows("UPDATE tenants SET suspended_at = now() WHERE id = %s", str(tenant.tenant))
    with pytest.raises(NotVouched):
        installation.write(tenant, identities.admit, "corp", replace(ADA, email="stranger@corp.example"))
    assert installation.rows("SELECT 1 FROM users WHERE email = 'stranger@corp.example'") == []
    claims = Claims(CORP.issuer, "s-3", "harry@corp.example", email_verified=True)
    assert installation.write(tenant, identities.admit, "corp", claims) == harry


def test_a_provider_of_another_tenant_brings_nobody_in(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    _put(installation, other_tenant)
    with pytest.raises(NotFound):
        installation.write(tenant, identities.admit, "corp", ADA)
    people = installation.rows("SELECT count(*) FROM users")
    bring = "SELECT bring_in('corp', %s, %s)"
    for who, email in ((tenant, "ada@corp.example"), (other_tenant, "ada@elsewhere.example")):
        made = installation.write(
            who, lambda session, email: session.connection().exec_driver_sql(bring, (ids.new(), email)).scalar(), email
        )
        assert made is None
    assert installation.rows("SELECT count(*) FROM users") == people


def test_who_becomes_an_owner_while_a_provider_brings_them_in_stays_one(
    installation: Installation, tenant: Principal
) -> None:
    _put(installation, tenant)
    grace, invitation = Claims(CORP.issuer, "s-3", "grace@corp.example", email_verified=True), ids.new()
    installation.rows(
        "INSERT INTO invitations (tenant_id, id, email, role, invited_by, expires_at)"
        " VALUES (%s, %s, %s, 'OWNER', 'tests', now() + interval '1 h')",
        str(tenant.tenant), str(invitation), grace.email,
    )  # fmt: skip
    engine = db.sync_engine(installation.addresses.app, pool_size=1)
    with db.open_session(engine, tenant) as session, ThreadPoolExecutor(1) as threads:
        user = invitations.accept(session, invitation, "a hash", [])
        coming = threads.submit(installation.write, tenant, identities.admit, "corp", grace)
        try:
            eventually(lambda: installation.rows(WAITS))
        finally:
            session.commit()
        assert coming.result(30) == user
    engine.dispose()
    became = "SELECT detail->'after'->>'role' FROM audit_entries WHERE tenant_id = %s AND action = 'member.set'"
    assert installation.rows(became, str(tenant.tenant)) == [("OWNER",)]
    assert installation.rows("SELECT role FROM memberships WHERE user_id = %s", str(user)) == [("OWNER",)]

"""Who ends as a member somewhere: forgotten where it was the last place, and never while they become one elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy.orm import Session

from tenants import db, identities, ids, invitations, lifecycle, links, members, providers, system
from tenants.context import Principal, Role
from tenants.identities import Claims
from tests.support.installations import Installation, eventually

CORP = providers.ProviderRequest(
    "corp", "https://id.example.org", "c", domains=["example.org"], just_in_time=True, default_role=Role.MEMBER,
    client_secret=SecretStr("a client secret"),
)  # fmt: skip
Joining = tuple[Principal, Callable[[Session], object]]


@dataclass(frozen=True, slots=True)
class Ada:
    """Somebody with a password.

    Args:
        name: the slug of the tenant that she signs up for.
    """

    user: UUID
    name: str
    password_hash: str
    installation: Installation

    @property
    def email(self) -> str:
        return f"{self.name}@example.org"

    def is_known(self) -> bool:
        """Whether anything is kept of her."""
        return bool(self.installation.rows("SELECT 1 FROM users WHERE email = %s", self.email))

    def slugs(self) -> list[str]:
        """The tenants that she is a member of."""
        statement = (
            "SELECT t.slug FROM tenants t JOIN memberships m ON m.tenant_id = t.id JOIN users u ON u.id = m.user_id"
            " WHERE u.email = %s ORDER BY t.slug"
        )
        return [slug for (slug,) in self.installation.rows(statement, self.email)]


def _slug(installation: Installation, tenant: Principal) -> str:
    [(slug,)] = installation.rows("SELECT slug FROM tenants WHERE id = %s", str(tenant.tenant))
    return str(slug)


@contextmanager
def _session(installation: Installation, principal: Principal) -> Iterator[db.TenantSession]:
    engine = db.sync_engine(installation.addresses.app, pool_size=1)
    with db.open_session(engine, principal) as session:
        yield session
    engine.dispose()


def _blocked(installation: Installation) -> None:
    """Wait until somebody waits for another's lock."""
    eventually(lambda: installation.rows("SELECT 1 FROM pg_stat_activity WHERE pg_blocking_pids(pid) <> '{}'"))


@pytest.fixture
def ada(installation: Installation, tenant: Principal) -> Ada:
    """A member of the tenant."""
    name = f"ada-{ids.new()}"
    user = system.enroll(installation.settings, f"{name}@example.org", "correct horse battery staple")
    installation.write(tenant, members.join, user, Role.MEMBER)
    [(password_hash,)] = installation.rows("SELECT password_hash FROM users WHERE id = %s", str(user))
    return Ada(user, name, password_hash, installation)


def _by_invitation(ada: Ada, other: Principal) -> Joining:
    row = ada.installation.write(other, invitations.create, ada.email, Role.MEMBER, None, [], 7)
    return other, lambda session: invitations.accept(session, row.id, ada.password_hash, [])


def _by_signing_up(ada: Ada, other: Principal) -> Joining:
    desk = system.desk("tests")
    row = ada.installation.write(desk, links.ask_sign_up, ada.installation.settings, ada.email, ada.name, None, "UTC")
    return desk, lambda session: links.sign_up(session, row.id, ada.name, [], ada.user, ada.password_hash)


def _by_a_provider(ada: Ada, other: Principal) -> Joining:
    ada.installation.write(other, providers.put, ada.installation.settings, CORP)
    claims = Claims(CORP.issuer, "ada", ada.email, email_verified=True)
    return other, lambda session: identities.admit(session, "corp", claims)


def _erase(ada: Ada, tenant: Principal) -> Callable[[], None]:
    settings = ada.installation.settings
    with system.connect(settings) as connection:
        lifecycle.begin_erasure(connection, tenant.tenant, "tests")
        list(lifecycle.erase_rows(connection, tenant.tenant))

    def end() -> None:
        with system.connect(settings) as connection:
            lifecycle.end(connection, tenant.tenant)

    return end


def _leave(ada: Ada, tenant: Principal) -> Callable[[], None]:
    return lambda: ada.installation.write(tenant, members.remove, ada.user, [])


JOINS = (_by_invitation, _by_signing_up, _by_a_provider)
ENDS = (_erase, _leave)


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("end", ENDS)
def test_who_joins_one_tenant_while_their_last_membership_ends_stays_in_the_one(
    installation: Installation, tenant: Principal, other_tenant: Principal, ada: Ada, join: Any, end: Any
) -> None:
    principal, joining = join(ada, other_tenant)
    ending = threading.Thread(target=end(ada, tenant))
    with _session(installation, principal) as session:
        joining(session)
        ending.start()
        _blocked(installation)
        session.commit()
    ending.join()
    assert ada.slugs() == [ada.name if join is _by_signing_up else _slug(installation, other_tenant)]


def test_who_joins_after_their_last_membership_has_begun_to_end_is_a_person_anew(
    installation: Installation, tenant: Principal, other_tenant: Principal, ada: Ada
) -> None:
    principal, joining = _by_invitation(ada, other_tenant)
    entering = threading.Thread(target=installation.write, args=(principal, joining))
    with _session(installation, tenant) as session:
        members.remove(session, ada.user, [])
        entering.start()
        _blocked(installation)
        session.commit()
    entering.join()
    assert ada.slugs() == [_slug(installation, other_tenant)]
    assert installation.rows("SELECT 1 FROM users WHERE id = %s", str(ada.user)) == []


@pytest.mark.parametrize("end", ENDS)
def test_who_is_a_member_nowhere_any_more_is_forgotten(
    installation: Installation, tenant: Principal, other_tenant: Principal, ada: Ada, end: Any
) -> None:
    installation.write(other_tenant, members.join, ada.user, Role.MEMBER)
    end(ada, tenant)()
    assert ada.is_known()
    assert ada.slugs() == [_slug(installation, other_tenant)]
    installation.write(other_tenant, members.remove, ada.user, [])
    assert not ada.is_known()


def test_of_two_last_memberships_that_end_at_once_one_takes_the_person_along(
    installation: Installation, tenant: Principal, other_tenant: Principal, ada: Ada
) -> None:
    installation.write(other_tenant, members.join, ada.user, Role.MEMBER)
    second = threading.Thread(target=_leave(ada, other_tenant))
    with _session(installation, tenant) as session:
        members.remove(session, ada.user, [])
        second.start()
        _blocked(installation)
        session.commit()
    second.join()
    assert not ada.is_known()

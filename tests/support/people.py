"""Members of a tenant for tests: made, logged in, asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx2

from tenants import ids, members, system
from tenants.context import Principal, Role
from tests.support.apis import Api, Caller

PASSWORD = "correct horse battery staple"


@dataclass(frozen=True, slots=True)
class People:
    """The people of one tenant."""

    api: Api
    tenant: Principal

    @property
    def slug(self) -> str:
        """The tenant's slug."""
        return self.api.installation.slug(self.tenant)

    def join(self, email: str, role: Role | None = Role.OWNER, custom: UUID | None = None) -> UUID:
        """Make somebody a member; the person."""
        user = system.enroll(self.api.installation.settings, email, PASSWORD)
        self.api.installation.write(self.tenant, members.join, user, role, custom)
        return user

    def log_in(self, email: str, password: str = PASSWORD) -> dict[str, Any]:
        """The tokens of a login."""
        answer = post(self.api, "login", tenant=self.slug, email=email, password=password)
        assert answer.status_code == 200, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens

    def caller(self, email: str) -> Caller:
        """Somebody who has logged in."""
        return caller(self.api, self.log_in(email)["accessToken"])

    def member(self, email: str, role: Role | None = Role.OWNER, custom: UUID | None = None) -> Caller:
        """Somebody who has been made a member and has logged in."""
        self.join(email, role, custom)
        return self.caller(email)

    def roles(self) -> dict[str, str]:
        """Each member's role, by e-mail address."""
        return dict(
            self.api.installation.rows(
                "SELECT u.email, coalesce(m.role, r.name) FROM memberships m JOIN users u ON u.id = m.user_id"
                " LEFT JOIN roles r ON r.tenant_id = m.tenant_id AND r.id = m.role_id WHERE m.tenant_id = %s",
                str(self.tenant.tenant),
            )
        )


def caller(api: Api, token: str) -> Caller:
    """Whoever holds a token."""
    return Caller(api.url, api.client, token)


def address() -> str:
    """Where nobody has been before."""
    number = ids.new().int
    return f"10.{number & 255}.{number >> 8 & 255}.{number >> 16 & 255}"


def post(api: Api, route: str, credential: str | None = None, at: str | None = None, **body: Any) -> httpx2.Response:
    """Send a form under `/auth`, from an address of its own, so that nobody waits for another test's failures.

    Args:
        at: or from this one.
    """
    headers = {"X-Forwarded-For": address() if at is None else at}
    if credential is not None:
        headers["Authorization"] = f"Bearer {credential}"
    return api.client.post(f"{api.url}/auth/{route}", json=body, headers=headers)

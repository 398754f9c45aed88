"""What an invitation says of its tenant: a name that people know, and no message of the tenant's own."""

from __future__ import annotations

import pytest

from tasks.families.accounts.service import letters
from tenants import invitations, member_roles
from tenants.context import Principal
from tests.support.installations import Installation

SHOWN = {
    "Müller & Söhne (Köln)": "Müller & Söhne (Köln)",
    "Acme, Inc.": "Acme, Inc",
    "हिन्दी 株式会社": "हिन्दी 株式会社",
    "You won! https://evil.example/x?a=1": "You won https evil example x a 1",
    "write to spam@evil.example\r\nBcc: a@b.example\u202e": "write to spam evil example Bcc a b example",
    "x" * 200: "x" * 60,
    "://": None,
}


@pytest.mark.parametrize(("given", "shown"), SHOWN.items())
def test_a_name_in_an_invitation_is_short_and_makes_no_link(
    installation: Installation, tenant: Principal, given: str, shown: str | None
) -> None:
    installation.rows("UPDATE tenants SET name = %s WHERE id = %s", given, str(tenant.tenant))
    [(slug,)] = installation.rows("SELECT slug FROM tenants WHERE id = %s", str(tenant.tenant))
    role = installation.write(tenant, member_roles.create, "Click evil.example", ["runs:read"]).id
    row = installation.write(tenant, invitations.create, "ada@example.org", None, role, [], 7)
    letter = installation.write(tenant, letters.invitation, installation.settings, row.id)
    assert letter is not None
    assert letter.subject == f"You are invited to {shown or slug}"
    assert letter.text.startswith(f"You are invited to {shown or slug} ({slug}) as Click evil example. This link")

"""Passwords: any form of the same text, and no other."""

from __future__ import annotations

import pytest

from tenants import passwords
from tenants.errors import InvalidInput

PASSWORD = "correct horse battery staple"


def test_a_password_is_verified_in_any_unicode_form_and_no_other() -> None:
    hashed = passwords.digest("caf\u00e9 au lait")
    assert hashed.startswith("$argon2id$")
    assert passwords.verify(hashed, "cafe\u0301 au lait")
    for wrong in ("cafe au lait", "caf\u00e9 au lait ", "", "x" * 1_000_000):
        assert not passwords.verify(hashed, wrong)
    assert not passwords.verify(None, "nobody has this password")
    assert not passwords.verify("not a hash", PASSWORD)


@pytest.mark.parametrize("password", ["", "short", "x" * 1001])
def test_a_password_too_short_or_too_long_is_refused(password: str) -> None:
    with pytest.raises(InvalidInput):
        passwords.digest(password)

"""Passwords: hashed, verified, changed. Hashing takes tens of milliseconds: it is never done in an event loop."""

from __future__ import annotations

import unicodedata

import argon2
from sqlalchemy import text
from sqlalchemy.orm import Session

from tenants import audit, context, db
from tenants.errors import InvalidInput, Issue, Unauthenticated

_HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
"""Argon2id with the parameters that OWASP's password storage cheat sheet names."""
_NOBODY = _HASHER.hash("nobody has this password")
"""Verified when there is no such person, so that the answer takes as long as for one who exists."""

_SHORTEST, _LONGEST = 8, 1000
_OWN = text("SELECT own_password(:tenant, :login) AS hash")
_CHANGE = text("SELECT change_password(:tenant, :login, :before, :hash) AS changed")


def digest(password: str) -> str:
    """The Argon2id hash of a password.

    Raises:
        InvalidInput: it is too short or too long.
    """
    if not _SHORTEST <= len(password) <= _LONGEST:
        message = f"must be {_SHORTEST} to {_LONGEST} characters"
        raise InvalidInput(f"password {message}.", issues=[Issue(("password",), message)])
    return _HASHER.hash(_bytes(password))


def verify(password_hash: str | None, password: str) -> bool:
    """Whether the password is the hash's. Takes as long when there is no hash."""
    try:
        verified = _HASHER.verify(password_hash or _NOBODY, _bytes(password[:_LONGEST]))
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False
    return verified and password_hash is not None and len(password) <= _LONGEST


def own(session: Session) -> str | None:
    """The hash of the caller's own password; None when they have none, or their login has ended or is a provider's."""
    caller = context.principal(session)
    [row] = db.fetch(session, _OWN, {"tenant": caller.tenant, "login": caller.login})
    found: str | None = row["hash"]
    return found


def change(session: Session, before: str, password_hash: str) -> None:
    """Replace the caller's own password, and end all of their other logins, in every tenant.

    Args:
        before: the hash that the caller's present password has been verified against.

    Raises:
        Unauthenticated: the login has ended or is a provider's, or the password is another by now.
    """
    caller = context.principal(session)
    values = {"tenant": caller.tenant, "login": caller.login, "before": before, "hash": password_hash}
    [row] = db.fetch(session, _CHANGE, values)
    if not row["changed"]:
        raise Unauthenticated("The password has been changed meanwhile: log in again.", reason="revoked")
    audit.record(session, "password.change", caller.actor)


def _bytes(password: str) -> bytes:
    """One form for what different keyboards send. Source: RFC 8265, section 4.2."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")

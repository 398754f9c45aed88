"""Integration credentials: the secrets of a tenant's providers, which can be replaced and used, and never read back."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tenants import audit, context, encryption, log, signing
from tenants.errors import InvalidInput, Issue, Misconfigured, NotFound
from tenants.models import Credential
from tenants.settings import KeyRing

OF_PROVIDERS = "oidc."
"""What the names of identity providers' secrets begin with: only who may set a provider may set its secret."""

_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,99}")
_KIND = re.compile(r"[a-z][a-z0-9_]{0,49}")
_LONGEST_SECRET = 8192


def put(session: Session, ring: KeyRing, name: str, kind: str, secret: SecretStr) -> Credential:
    """Store a credential, or replace the one of this name.

    Args:
        ring: what the secret is encrypted under.
        name: what tasks and settings call it.
        kind: what it is, for people, such as `api_key`.
        secret: 8 to 8,192 characters: a shorter one could not be told from words, to be kept out of what is written.

    Raises:
        InvalidInput: a value is wrong.
        Misconfigured: there is no key to encrypt under.
    """
    _check(name, kind, secret)
    row = _find(session, name)
    before = None if row is None else shown(row)
    if row is None:
        row = Credential(name=name)
        session.add(row)
    row.kind = kind
    row.changed_at = func.clock_timestamp()
    _seal(row, ring, context.principal(session).tenant, secret.get_secret_value().encode())
    session.flush()
    session.refresh(row)
    audit.record(session, "credential.set", name, before=before, after=shown(row))
    return row


def every(session: Session) -> list[Credential]:
    """The tenant's credentials, by name."""
    return list(session.scalars(select(Credential).order_by(Credential.name)))


def remove(session: Session, name: str) -> None:
    """Take a credential away.

    Raises:
        NotFound: there is none of this name.
    """
    row = _find(session, name)
    if row is None:
        raise NotFound
    session.delete(row)
    session.flush()
    audit.record(session, "credential.remove", name, before=shown(row))


def reveal(session: Session, ring: KeyRing, name: str) -> SecretStr:
    """The secret, for a call to its provider: the request or the attempt blots it out of its logs and errors.

    Raises:
        NotFound: there is none of this name.
        Misconfigured: it does not open under the ring.
    """
    row = session.scalar(select(Credential).where(Credential.name == name))
    if row is None:
        raise NotFound(f"There is no credential {name!r}: set it first.")
    secret = _open(row, ring, context.principal(session).tenant).decode()
    log.hide(secret)
    return SecretStr(secret)


def rotate(session: Session, ring: KeyRing) -> int:
    """Encrypt anew, under the newest key, what stands under an older one; how many that were.

    Raises:
        Misconfigured: one does not open under the ring; nothing is changed then.
    """
    tenant = context.principal(session).tenant
    rows = session.scalars(select(Credential).where(Credential.key_id != signing.newest(ring)).with_for_update()).all()
    for row in rows:
        _seal(row, ring, tenant, _open(row, ring, tenant))
    if rows:
        session.flush()
        audit.record(session, "credential.rotate", None, names=sorted(row.name for row in rows))
    return len(rows)


def shown(row: Credential) -> dict[str, Any]:
    """What may be told of a credential."""
    return {"name": row.name, "kind": row.kind, "changedAt": row.changed_at.isoformat()}


def _find(session: Session, name: str) -> Credential | None:
    row: Credential | None = session.scalar(select(Credential).where(Credential.name == name).with_for_update())
    return row


def _seal(row: Credential, ring: KeyRing, tenant: UUID, secret: bytes) -> None:
    row.key_id, row.sealed = encryption.encrypt(ring, secret, "credential", str(tenant), row.name)


def _open(row: Credential, ring: KeyRing, tenant: UUID) -> bytes:
    secret = encryption.decrypt(ring, row.key_id, row.sealed, "credential", str(tenant), row.name)
    if secret is None:
        raise Misconfigured(
            f"The credential {row.name!r} does not open under the key {row.key_id!r} of"
            " TENANTRY_AUTH__CREDENTIAL_KEYS: put that key back, or set the credential anew."
        )
    return secret


def _check(name: str, kind: str, secret: SecretStr) -> None:
    issues = []
    if not _NAME.fullmatch(name):
        issues.append(Issue(("name",), "must be 1 to 100 of a-z, 0-9, _, . and -, beginning with a letter"))
    if not _KIND.fullmatch(kind):
        issues.append(Issue(("kind",), "must be 1 to 50 of a-z, 0-9 and _, beginning with a letter"))
    text = secret.get_secret_value()
    if not log.SHORTEST <= len(text) <= _LONGEST_SECRET or "\0" in text:
        limits = f"{log.SHORTEST} to {_LONGEST_SECRET}"
        issues.append(Issue(("secret",), f"must be {limits} characters, none of them null"))
    if issues:
        raise InvalidInput(issues=issues)

"""API keys: made, found, revoked. Only a keyed hash of the secret is stored.

A key is `tnt_live_`, 30 random characters of base 62 (178 bits), `_`, and the CRC-32 of those 30 in base 62, so that a
scanner, or this service without its database, can tell a key from a typing error.
"""

from __future__ import annotations

import re
import secrets
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy import func, or_, select, text, update
from sqlalchemy.orm import Session

from tenants import addresses, audit, context, db, ids, key_bounds, pages, quotas, signing
from tenants.addresses import Range
from tenants.errors import InvalidInput, InvalidState, Issue, NotFound, Unauthenticated
from tenants.models import ApiKey
from tenants.pages import Page
from tenants.quotas import Quota
from tenants.settings import Auth

PREFIX = "tnt_live_"
SCOPES = frozenset(
    {
        "*",
        "runs:read",
        "runs:write",
        "schedules:read",
        "schedules:write",
        "keys:manage",
        "members:manage",
        "limits:write",
        "tenant:read",
        "tenant:write",
        "audit:read",
    }
)
"""All scopes but those of the families, which are `<family>:read` and `<family>:write`."""

_FAMILY_SCOPE = re.compile(r"[a-z][a-z0-9_]*:(read|write)")
_TASK_NAME = re.compile(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*")
_RESERVED = {scope.partition(":")[0] for scope in SCOPES}
_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM_LENGTH = 30
_CHECK_LENGTH = 6
_SHOWN_LENGTH = len(PREFIX) + 6
_KEY = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{_RANDOM_LENGTH}}})_([0-9A-Za-z]{{{_CHECK_LENGTH}}})")
_LONGEST_NAME = 200
_MOST_TASKS = 100
_LONGEST_OVERLAP_SECONDS = 30 * 86_400
_USE_INTERVAL = timedelta(minutes=1)
_FIND = text("SELECT * FROM find_api_key(:hashes)")
GOOD = select(func.count(ApiKey.id)).where(
    ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())
)
"""How many keys there are that have not ended."""


@dataclass(frozen=True, slots=True)
class Created:
    """A new key, and its secret, which nobody can read again."""

    key: ApiKey
    secret: str


@dataclass(frozen=True, slots=True)
class Found:
    """A key that was found by its secret, whatever its state."""

    tenant: UUID
    key: UUID
    scopes: frozenset[str]
    task_names: frozenset[str] | None
    address_ranges: tuple[Range, ...] | None
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    suspended: bool
    made_by: UUID | None
    outdated: bool
    """Whether it is still stored under a hash of an old pepper."""


def create(
    session: Session,
    pepper: SecretStr,
    *,
    name: str,
    scopes: Sequence[str],
    task_names: Sequence[str] | None = None,
    address_ranges: Sequence[str] | None = None,
    expires_at: datetime | None = None,
) -> Created:
    """A new key of the session's tenant.

    Args:
        pepper: the secret of the installation that keys are hashed with.
        name: for people.
        scopes: what it may do; never more than its maker may.
        task_names: the only tasks it may trigger, by full name; None for all.
        address_ranges: the only addresses it is taken from, single ones or ranges in CIDR form; None for all.
        expires_at: when it ends; None for never.

    Raises:
        InvalidInput: a value is wrong.
        Forbidden: it is more than its maker: by a scope, a task, an address, or how long it lasts.
        QuotaExceeded: the tenant has as many good ones as its plan has room for.
    """
    _check(name, scopes, task_names, address_ranges, expires_at)
    key_bounds.check(session, scopes, task_names, address_ranges, expires_at)
    quotas.take(session, Quota.KEYS, GOOD)
    made = _make(
        session,
        pepper,
        name=name.strip(),
        scopes=sorted(set(scopes)),
        task_names=None if task_names is None else sorted(set(task_names)),
        made_by=context.principal(session).person,
        address_ranges=None if address_ranges is None else [str(addresses.read(one)) for one in address_ranges],
        expires_at=expires_at,
    )
    audit.record(session, "key.create", ids.show("key", made.key.id), after=_shown(made.key))
    return made


def rotate(session: Session, pepper: SecretStr, key_id: UUID, overlap_seconds: int = 3600) -> Created:
    """Replace a key by a new one that can do the same, and is made to last as long. Both are good meanwhile.

    By a key that ends, one is made that ends no later. Of those that replaced each other two are good at most.

    Args:
        pepper: the secret of the installation that keys are hashed with.
        overlap_seconds: how long the old one is good for yet, if it does not end before; 0 to 30 days.

    Raises:
        NotFound: there is no such key.
        InvalidInput: the overlap is out of bounds.
        InvalidState: the key has ended, or has been replaced, or the one that it replaced is still good.
        Forbidden: it is more than the caller, as for `create`.
    """
    if not 0 <= overlap_seconds <= _LONGEST_OVERLAP_SECONDS:
        message = f"must be 0 to {_LONGEST_OVERLAP_SECONDS} seconds"
        raise InvalidInput(issues=[Issue(("overlapSeconds",), message)])
    old = session.scalar(select(ApiKey).where(ApiKey.id == key_id).with_for_update())
    if old is None:
        raise NotFound
    key_bounds.check(session, old.scopes, old.task_names, old.address_ranges, old.expires_at)
    now = datetime.now(UTC)
    if old.revoked_at is not None:
        raise InvalidState("The key is revoked: make a new one.", state="REVOKED")
    if old.expires_at is not None and old.expires_at <= now:
        raise InvalidState("The key has expired: make a new one.", state="EXPIRED")
    if session.scalar(select(ApiKey.id).where(ApiKey.predecessor_id == key_id)) is not None:
        raise InvalidState("The key has been replaced: rotate the one that replaced it.", state="ROTATED")
    if session.scalar(GOOD.where(ApiKey.id == old.predecessor_id)):
        raise InvalidState("The key that it replaced is still good: revoke that first, or wait.", state="OVERLAPPING")
    before = _shown(old)
    latest = context.principal(session).expires_at
    lasting = None if old.expires_at is None else now + (old.expires_at - old.created_at)
    made = _make(
        session,
        pepper,
        name=old.name,
        scopes=old.scopes,
        task_names=old.task_names,
        address_ranges=old.address_ranges,
        predecessor_id=old.id,
        made_by=context.principal(session).person,
        expires_at=min((end for end in (lasting, latest) if end is not None), default=None),
    )
    end = now + timedelta(seconds=overlap_seconds)
    old.expires_at = end if old.expires_at is None else min(old.expires_at, end)
    session.flush()
    replaced_by = {"id": ids.show("key", made.key.id), **_shown(made.key)}
    audit.record(session, "key.rotate", ids.show("key", old.id), before=before, after=_shown(old), by=replaced_by)
    return made


def get(session: Session, key_id: UUID) -> ApiKey:
    """One key of the tenant.

    Raises:
        NotFound: there is none with this id.
    """
    key = session.scalar(select(ApiKey).where(ApiKey.id == key_id))
    if key is None:
        raise NotFound
    return key


def page(session: Session, *, first: int | None = None, after: str | None = None) -> Page[ApiKey]:
    """One page of the tenant's keys, newest first."""
    return pages.read(session, select(ApiKey), ApiKey.id, "key", first=first, after=after)


def revoke(session: Session, key_id: UUID) -> ApiKey:
    """End a key for good; a key that is revoked already stays as it is.

    Raises:
        NotFound: there is no such key.
    """
    key = get(session, key_id)
    if key.revoked_at is None:
        key.revoked_at = datetime.now(UTC)
        session.flush()
        audit.record(session, "key.revoke", ids.show("key", key.id), before=_shown(key))
    return key


def is_scope(scope: str) -> bool:
    """Whether this can be a scope: one of those there are, or of a family."""
    return scope in SCOPES or (_FAMILY_SCOPE.fullmatch(scope) is not None and scope.partition(":")[0] not in _RESERVED)


def check_form(secret: str) -> bool:
    """Whether the text can be a key at all: its form and checksum are right. Asks no database."""
    match = _KEY.fullmatch(secret)
    return match is not None and _checksum(match[1]) == match[2]


@db.single_statement
def find(session: Session, auth: Auth, secret: str) -> Found:
    """The key behind a secret, before its tenant is known.

    Raises:
        Unauthenticated: there is none.
    """
    hashes = [signing.digest(pepper, secret) for pepper in (auth.key_pepper, *auth.old_key_peppers)]
    rows = db.fetch(session, _FIND, {"hashes": hashes})
    if not rows:
        raise Unauthenticated(reason="invalid")
    row = rows[0]
    return Found(
        tenant=row["tenant_id"],
        key=row["key_id"],
        scopes=frozenset(row["scopes"]),
        task_names=None if row["task_names"] is None else frozenset(row["task_names"]),
        address_ranges=None if row["address_ranges"] is None else tuple(map(addresses.read, row["address_ranges"])),
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        last_used_at=row["last_used_at"],
        suspended=row["suspended"],
        made_by=row["made_by"],
        outdated=row["outdated"],
    )


def used_lately(found: Found) -> bool:
    """Whether the note of its last use is fresh enough to be left alone."""
    return found.last_used_at is not None and datetime.now(UTC) - found.last_used_at < _USE_INTERVAL


def store_anew(session: Session, auth: Auth, key_id: UUID, secret: str) -> None:
    """Keep the hash of a key that has been found under an old pepper under the one of today."""
    session.execute(
        update(ApiKey).where(ApiKey.id == key_id).values(secret_hash=signing.digest(auth.key_pepper, secret))
    )


def note_use(session: Session, key_id: UUID) -> None:
    """Note that the key was used, at most once a minute."""
    session.execute(
        update(ApiKey)
        .where(
            ApiKey.id == key_id,
            or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - _USE_INTERVAL),
        )
        .values(last_used_at=func.now())
    )


def _make(session: Session, pepper: SecretStr, **values: Any) -> Created:
    secret = _new_secret()
    key = ApiKey(id=ids.new(), prefix=secret[:_SHOWN_LENGTH], secret_hash=signing.digest(pepper, secret), **values)
    session.add(key)
    session.flush()
    session.refresh(key)
    return Created(key, secret)


def _check(
    name: str,
    scopes: Sequence[str],
    task_names: Sequence[str] | None,
    address_ranges: Sequence[str] | None,
    expires_at: datetime | None,
) -> None:
    issues: list[Issue] = []
    if not 1 <= len(name.strip()) <= _LONGEST_NAME:
        issues.append(Issue(("name",), f"must be 1 to {_LONGEST_NAME} characters"))
    if not scopes:
        issues.append(Issue(("scopes",), "must name at least one scope"))
    for index, scope in enumerate(scopes):
        if not is_scope(scope):
            issues.append(Issue(("scopes", str(index)), "is not a scope"))
    if task_names is not None and len(task_names) > _MOST_TASKS:
        issues.append(Issue(("taskNames",), f"must be at most {_MOST_TASKS}"))
    for index, task in enumerate(task_names or ()):
        if not _TASK_NAME.fullmatch(task):
            issues.append(Issue(("taskNames", str(index)), "must be a full name, <family>.<task>"))
    issues += addresses.wrong(address_ranges, "addressRanges")
    if expires_at is not None and expires_at <= datetime.now(UTC):
        issues.append(Issue(("expiresAt",), "must be in the future"))
    if issues:
        raise InvalidInput(issues=issues)


def _shown(key: ApiKey) -> dict[str, Any]:
    """What the audit log tells of a key."""
    return {
        "name": key.name,
        "prefix": key.prefix,
        "scopes": key.scopes,
        "taskNames": key.task_names,
        "addressRanges": key.address_ranges,
        "expiresAt": key.expires_at.isoformat() if key.expires_at else None,
    }


def _new_secret() -> str:
    random = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_LENGTH))
    return f"{PREFIX}{random}_{_checksum(random)}"


def _checksum(random: str) -> str:
    number = zlib.crc32(random.encode())
    digits = []
    for _ in range(_CHECK_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))

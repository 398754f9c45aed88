"""The signed grant in a message's headers: the leave to run one release of one run, for workers to verify."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from uuid import UUID

from tenants import signing
from tenants.errors import Misconfigured, TenantryError
from tenants.settings import KeyRing

HEADER = "grant"
_VERSION = "1"
_FIELDS = 9
_LONGEST = 1000


class BadGrant(TenantryError):
    """The message carries no valid grant."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave to run one release of one run.

    Args:
        tenant: whose run it is.
        run: the run.
        fence: which release of it.
        task: the task's full name.
        queue: the queue it was released to.
        body: the SHA-256 of the message's body, in hexadecimal.
        expires: when it ends, in seconds of Unix time by the database's clock.
    """

    tenant: UUID
    run: UUID
    fence: int
    task: str
    queue: str
    body: str
    expires: int


def require(ring: KeyRing) -> None:
    """
    Raises:
        Misconfigured: there is no key to sign or verify grants with, so nothing could ever run.
    """
    if not ring:
        raise Misconfigured("TENANTRY_ENGINE__GRANT_KEYS is not set: dispatcher and workers share the keys of grants.")


def digest(body: str) -> str:
    """The digest of a message's body as it stands in the message."""
    return hashlib.sha256(body.encode()).hexdigest()


def sign(ring: KeyRing, grant: Grant) -> str:
    """The grant as a header's text: its fields, the key's id and the HMAC-SHA256 over both, separated by `|`."""
    text = "|".join(
        (
            _VERSION,
            grant.tenant.hex,
            grant.run.hex,
            str(grant.fence),
            grant.task,
            grant.queue,
            grant.body,
            str(grant.expires),
        )
    )
    key, mac = signing.sign(ring, text.encode())
    return f"{text}|{key}.{mac}"


def read(ring: KeyRing, text: object) -> Grant:
    """The grant behind a header's text, its signature verified. Whether it has expired is for the caller to ask.

    Raises:
        BadGrant: with the reason `missing`, `malformed` or `signature`.
    """
    if text is None:
        raise BadGrant("missing")
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise BadGrant("malformed")
    payload, _, seal = text.rpartition("|")
    key, _, mac = seal.partition(".")
    if not signing.verify(ring, key, payload.encode("utf-8", "replace"), mac):
        raise BadGrant("signature")
    fields = payload.split("|")
    if len(fields) != _FIELDS - 1 or fields[0] != _VERSION:
        raise BadGrant("malformed")
    try:
        return Grant(
            tenant=UUID(fields[1]),
            run=UUID(fields[2]),
            fence=int(fields[3]),
            task=fields[4],
            queue=fields[5],
            body=fields[6],
            expires=int(fields[7]),
        )
    except ValueError:
        raise BadGrant("malformed") from None


def expired(grant: Grant, skew: float = 0.0) -> bool:
    """Whether the grant's time is over.

    Args:
        skew: seconds by which the database's clock, which set it, is ahead of this machine's.
    """
    return grant.expires < time.time() + skew

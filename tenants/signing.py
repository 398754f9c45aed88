"""Signatures: HMAC-SHA256 under a ring of keys, and the access tokens of people."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from dataclasses import dataclass
from uuid import UUID

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OctKey
from pydantic import SecretStr

from tenants import ids
from tenants.errors import Misconfigured, NotFound, Unauthenticated
from tenants.settings import Auth, KeyRing

_ALGORITHM = "HS256"
_AUDIENCE = "tenantry-api"
_LEEWAY_SECONDS = 30
_LONGEST_TOKEN = 4096
_SHORTEST_SECRET = 16


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What a verified access token says.

    Args:
        tenant: the tenant it was issued for.
        session: the login it belongs to; whether that still stands is for the database to say.
        expires: Unix time in seconds.
    """

    tenant: UUID
    session: UUID
    expires: int


class Expired(Unauthenticated):
    """An access token of ours whose time is over.

    Args:
        token: what it says.
    """

    def __init__(self, token: AccessToken) -> None:
        super().__init__(Unauthenticated().message, reason="expired")
        self.token = token


def sign(ring: KeyRing, data: bytes) -> tuple[str, str]:
    """The key's id and the HMAC-SHA256 of the data, in URL-safe base64 without padding.

    Raises:
        Misconfigured: the ring is empty or its newest secret is too short.
    """
    key = newest(ring)
    return key, _mac(ring[key], data)


def verify(ring: KeyRing, key: str, data: bytes, mac: str) -> bool:
    """Whether `mac` is the data's signature under the ring's key with that id; compares in constant time."""
    secret = ring.get(key)
    if secret is None or not secret.get_secret_value():
        return False
    return hmac.compare_digest(_mac(secret, data).encode(), mac.encode("utf-8", "replace"))


def seal(ring: KeyRing, data: bytes) -> str:
    """The data with its signature as one opaque text."""
    key, mac = sign(ring, data)
    return f"{_encode(data)}.{key}.{mac}"


def unseal(ring: KeyRing, text: str) -> bytes | None:
    """The data behind a sealed text, or None when it was not sealed by this ring."""
    body, _, rest = text.partition(".")
    key, _, mac = rest.partition(".")
    try:
        data = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except (ValueError, binascii.Error):
        return None
    return data if _encode(data) == body and verify(ring, key, data, mac) else None


def newest(ring: KeyRing) -> str:
    """The id of the key that new work is done with.

    Raises:
        Misconfigured: the ring is empty or its newest secret is too short.
    """
    if not ring:
        raise Misconfigured("A ring of keys is empty: tenantry doctor says which.")
    key = list(ring)[-1]
    if len(ring[key].get_secret_value()) < _SHORTEST_SECRET:
        raise Misconfigured(f"The key {key!r} needs at least {_SHORTEST_SECRET} characters.")
    return key


def issue(auth: Auth, tenant: UUID, session: UUID) -> str:
    """A new access token. Source: RFC 7519 and RFC 9068's claims, signed with HMAC-SHA256.

    Raises:
        Misconfigured: there is no key to sign with.
    """
    key = newest(auth.token_keys)
    now = int(time.time())
    claims = {
        "iss": auth.issuer,
        "aud": _AUDIENCE,
        "iat": now,
        "nbf": now,
        "exp": now + auth.access_token_seconds,
        "tid": ids.show("ten", tenant),
        "sid": ids.show("ses", session),
    }
    return jwt.encode(
        {"alg": _ALGORITHM, "typ": "at+jwt", "kid": key},
        claims,
        _key(key, auth.token_keys[key]),
    )


def read_access(auth: Auth, token: str) -> AccessToken:
    """What an access token says, once its signature, algorithm, key id, issuer, audience and times have been checked.

    Raises:
        Unauthenticated: it is malformed, not ours or not yet valid.
        Expired: it is over, and nothing else is wrong with it.
    """
    if len(token) > _LONGEST_TOKEN:
        raise Unauthenticated(reason="invalid")
    keys = KeySet([_key(key, secret) for key, secret in auth.token_keys.items() if secret.get_secret_value()])
    try:
        decoded = jwt.decode(token, keys, algorithms=[_ALGORITHM])
        if "kid" not in decoded.header:
            raise Unauthenticated(reason="invalid")
        # Decoding alone looks at no claim. They are all compared with a moment at which the token was not over.
        expires = int(decoded.claims["exp"])
        _claims(auth, min(int(time.time()), expires)).validate(decoded.claims)
        read = AccessToken(
            ids.read("ten", decoded.claims["tid"]),
            ids.read("ses", decoded.claims["sid"]),
            expires,
        )
    except (JoseError, NotFound, LookupError, ArithmeticError, ValueError, TypeError, AttributeError):
        raise Unauthenticated(reason="invalid") from None
    if expires <= time.time():
        raise Expired(read)
    return read


def digest(pepper: SecretStr, text: str) -> str:
    """The keyed hash under which a random secret is stored: HMAC-SHA256, in hexadecimal.

    Raises:
        Misconfigured: there is no pepper.
    """
    key = pepper.get_secret_value()
    if len(key) < _SHORTEST_SECRET:
        raise Misconfigured(f"TENANTRY_AUTH__KEY_PEPPER needs at least {_SHORTEST_SECRET} characters.")
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()


def _claims(auth: Auth, now: int) -> jwt.JWTClaimsRegistry:
    # The leeway is for clocks that issued a token a little ahead of ours; the end of its time is compared exactly.
    return jwt.JWTClaimsRegistry(
        now=now,
        leeway=_LEEWAY_SECONDS,
        iss={"essential": True, "value": auth.issuer},
        aud={"essential": True, "value": _AUDIENCE},
        exp={"essential": True},
        nbf={"essential": True},
        tid={"essential": True},
        sid={"essential": True},
    )


def _key(key: str, secret: SecretStr) -> OctKey:
    return OctKey.import_key(secret.get_secret_value(), {"kid": key})


def _mac(secret: SecretStr, data: bytes) -> str:
    return _encode(hmac.new(secret.get_secret_value().encode(), data, hashlib.sha256).digest())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

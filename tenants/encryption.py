"""Encryption: AES-256-GCM under a ring of keys, bound to what the encrypted text belongs to."""

from __future__ import annotations

import base64
import os
import time
from typing import Any

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tenants import signing
from tenants.settings import KeyRing

_NONCE_BYTES = 12
_KEY_BYTES = 32
_UNTIL = "until"


def encrypt(ring: KeyRing, data: bytes, *place: str) -> tuple[str, bytes]:
    """The key's id, and the data encrypted under the ring's newest key.

    Each place has a key of its own, derived from the ring's, so that no key sees more than a few random nonces.
    Source: NIST SP 800-38D, section 8.2.2, for the nonce; RFC 5869 for the derivation.

    Args:
        place: what the data belongs to, such as its tenant and its name: it opens nowhere else.

    Raises:
        Misconfigured: the ring is empty or its newest secret is too short.
    """
    key = signing.newest(ring)
    nonce = os.urandom(_NONCE_BYTES)
    return key, nonce + _cipher(ring, key, place).encrypt(nonce, data, _bound(key, place))


def decrypt(ring: KeyRing, key: str, sealed: bytes, *place: str) -> bytes | None:
    """The data, or None where it was not encrypted for this place under the ring's key with that id."""
    if key not in ring or not ring[key].get_secret_value():
        return None
    nonce, text = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        return _cipher(ring, key, place).decrypt(nonce, text, _bound(key, place))
    except (InvalidTag, ValueError):
        return None


def wrap(ring: KeyRing, purpose: str, value: dict[str, Any], seconds: float) -> str:
    """An object as opaque text, for somebody who is to hand it back within so many seconds.

    Raises:
        Misconfigured: the ring is empty or its newest secret is too short.
    """
    key, sealed = encrypt(ring, orjson.dumps({**value, _UNTIL: time.time() + seconds}), purpose)
    return f"{base64.urlsafe_b64encode(sealed).rstrip(b'=').decode()}.{key}"


def unwrap(ring: KeyRing, purpose: str, text: str) -> dict[str, Any] | None:
    """The object in a text; None where it was not wrapped by this ring for this purpose, or its time is over."""
    body, _, key = text.partition(".")
    try:
        sealed = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except ValueError:
        return None
    data = decrypt(ring, key, sealed, purpose)
    if data is None:
        return None
    value: dict[str, Any] = orjson.loads(data)
    return value if value.pop(_UNTIL) > time.time() else None


def _cipher(ring: KeyRing, key: str, place: tuple[str, ...]) -> AESGCM:
    secret = ring[key].get_secret_value().encode()
    return AESGCM(HKDF(SHA256(), _KEY_BYTES, salt=None, info=_bound("encryption", place)).derive(secret))


def _bound(first: str, place: tuple[str, ...]) -> bytes:
    """All that the text is bound to, as bytes that no other parts have."""
    return "\0".join([first, *place]).encode()

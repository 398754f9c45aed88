"""Identifiers: UUIDv7 inside, opaque strings that tell their type outside (`run_…`, `key_…`)."""

from __future__ import annotations

import os
import time
from uuid import UUID

from tenants.errors import NotFound

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}
_LENGTH = 26


def new() -> UUID:
    """A UUIDv7: 48 bits of Unix milliseconds, then 74 random bits. Source: RFC 9562, section 5.7."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = milliseconds << 80 | 0x7 << 76 | (random >> 68) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    return UUID(int=value)


def show(kind: str, value: UUID) -> str:
    """The outside form: the kind, an underscore, 26 characters of Crockford's base 32. Source: the TypeID format."""
    number = value.int
    digits = [_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5)]
    return f"{kind}_{''.join(digits)}"


def read(kind: str, text: str) -> UUID:
    """The UUID behind an outside form.

    Raises:
        NotFound: the text is malformed or names another kind; the same answer as for an object that does not exist.
    """
    prefix, _, digits = text.rpartition("_")
    if prefix != kind or len(digits) != _LENGTH or digits[0] > "7":
        raise NotFound
    number = 0
    for digit in digits:
        value = _VALUES.get(digit)
        if value is None:
            raise NotFound
        number = number << 5 | value
    return UUID(int=number)

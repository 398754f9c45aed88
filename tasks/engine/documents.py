"""JSON as PostgreSQL can keep it: no null characters, no halves of characters, no number beyond 64 bits."""

from __future__ import annotations

import re
from typing import Any

import orjson

_NULL_CHARACTER = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def encode(value: Any) -> bytes:
    """A value as JSON.

    Raises:
        ValueError: it can't be kept; the message goes behind what it is about.
    """
    try:
        data = orjson.dumps(value)
    except TypeError as error:
        raise ValueError(f"can't be written as JSON: {error}") from None
    if _NULL_CHARACTER.search(data):
        raise ValueError("holds a null character, which can't be stored")
    return data


def readable(text: str) -> str:
    """Text for people, without what can't be stored."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def name_issue(value: object, most: int = 255) -> str | None:
    """What is wrong with a name: it is text of 1 to so many characters, all of which can be stored."""
    if isinstance(value, str) and 1 <= len(value) <= most and readable(value) == value:
        return None
    return f"must be 1 to {most} characters, none of them null"

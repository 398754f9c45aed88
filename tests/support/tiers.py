"""Tests in a short form, which continuous integration runs, and in a long one."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")


class Tier(StrEnum):
    """What `--tier` asks for."""

    QUICK = "quick"
    FULL = "full"

    def __call__(self, short: T, long: T) -> T:
        """The value for the form that is asked for."""
        return short if self is Tier.QUICK else long

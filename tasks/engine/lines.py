"""What waits: lines of runs, one behind another."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID


class Line(NamedTuple):
    """What waits one behind another, and counts under the same limits."""

    tenant: UUID
    queue: str
    task: str
    key: str | None


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """A run that waits for its release."""

    rank: datetime
    run: UUID
    line: Line

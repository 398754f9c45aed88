"""What holds runs back, as the fair order asks for it."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from tasks.engine.lines import Candidate, Line


class Gate(Protocol):
    """What limits let through now."""

    def task(self, tenant: UUID, queue: str, task: str) -> bool:
        """Whether one more run of the task may start, as far as the tenant, the queue and the task are concerned."""

    def key(self, line: Line) -> bool:
        """Whether one more run may start, as far as its concurrency key is concerned."""

    def take(self, candidate: Candidate) -> None:
        """The run has been picked and counts from now on."""

"""What runs are expected to take: learnt for each task of each tenant."""

from __future__ import annotations

from collections import OrderedDict
from uuid import UUID

from tasks.engine.lines import Line

_MEMORY = 0.9
"""How much of what was known outweighs one more measurement."""
_FIRST_GUESS_SECONDS = 1.0
_SHORTEST_SECONDS = 1e-4
_KEPT = 100_000


class Costs:
    """Moving means of worker-seconds, by tenant and task, and by task."""

    def __init__(self) -> None:
        self._means: OrderedDict[tuple[UUID | None, str], float] = OrderedDict()

    def learn(self, line: Line, seconds: float) -> None:
        """A run of the line has taken so many worker-seconds."""
        for name in ((line.tenant, line.task), (None, line.task)):
            before = self._means.pop(name, seconds)
            self._means[name] = max(_SHORTEST_SECONDS, _MEMORY * before + (1 - _MEMORY) * seconds)
        while len(self._means) > _KEPT:
            self._means.popitem(last=False)

    def of(self, line: Line) -> float:
        """Worker-seconds that a run of the line is expected to take: as its tenant's, else as others' of its task."""
        found = self._means.get((line.tenant, line.task)) or self._means.get((None, line.task))
        return found or _FIRST_GUESS_SECONDS

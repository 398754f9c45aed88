"""Who is next: a pure, deterministic order over tenants. No I/O, no clock.

A plain round robin over tenants; inside a tenant the earliest rank first, among the queues that have room.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """A run that waits for its release."""

    rank: datetime
    run: UUID
    tenant: UUID
    queue: str
    task: str
    concurrency_key: str | None


class FairOrder:
    """The waiting runs that are known, and whose turn it is.

    Only the front of each tenant's queue need be known: `offer` more when `known` runs low.
    """

    def __init__(self) -> None:
        self._ring: OrderedDict[UUID, dict[str, list[Candidate]]] = OrderedDict()
        self._runs: set[UUID] = set()

    def offer(self, candidates: Iterable[Candidate]) -> None:
        """Add waiting runs; those already known are left as they are."""
        for candidate in candidates:
            if candidate.run not in self._runs:
                self._runs.add(candidate.run)
                insort(self._ring.setdefault(candidate.tenant, {}).setdefault(candidate.queue, []), candidate)

    def known(self, tenant: UUID, queue: str) -> int:
        """How many waiting runs of the tenant are known in the queue."""
        return len(self._ring.get(tenant, {}).get(queue, ()))

    def pick(self, rooms: MutableMapping[str, int], most: int) -> list[Candidate]:
        """Take the next runs, in turn.

        Args:
            rooms: how many more each queue may have released; counted down.
            most: how many in all.
        """
        picked: list[Candidate] = []
        idle = 0
        while len(picked) < most and idle < len(self._ring):
            tenant, queues = next(iter(self._ring.items()))
            self._ring.move_to_end(tenant)
            heads = [waiting[0] for queue, waiting in queues.items() if waiting and rooms.get(queue, 0) > 0]
            if not heads:
                idle += 1
                if not any(queues.values()):
                    del self._ring[tenant]
                    idle -= 1
                continue
            idle = 0
            head = min(heads)
            queues[head.queue].pop(0)
            self._runs.discard(head.run)
            rooms[head.queue] -= 1
            picked.append(head)
        return picked

    def forget(self, tenant: UUID, queue: str) -> None:
        """Drop what is known of a tenant's queue, to be offered anew."""
        for candidate in self._ring.get(tenant, {}).pop(queue, ()):
            self._runs.discard(candidate.run)

"""Room in queues, counted in slots."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.engine.windows import Room, Space


def room(slots: Mapping[str, int]) -> Room:
    """As many free slots for each queue, and nothing ahead of them."""
    return Room(Space(sum(slots.values())), {queue: Space(free) for queue, free in slots.items()})

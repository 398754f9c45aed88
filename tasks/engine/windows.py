"""How much may be released: a run for each free slot, and ahead of the slots what is expected to start at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from uuid import UUID

_MOST_AHEAD = 64
"""The most runs released ahead for one slot."""
_REFILLED_AT = 0.5
"""Nothing is released ahead until no more than this part of what may be is left: several at once cost hardly more."""


@dataclass(slots=True)
class Space:
    """What may be released now; it is counted down.

    Args:
        free: runs, one for each slot that nothing takes up.
        ahead: runs that may wait for a slot.
        seconds: the worker-seconds that those may take together.
    """

    free: int
    ahead: int = 0
    seconds: float = 0.0

    @property
    def open(self) -> bool:
        """Whether a run fits, if it is short enough."""
        return self.free > 0 or (self.ahead > 0 and self.seconds > 0)

    def fits(self, seconds: float) -> bool:
        """Whether a run of so many worker-seconds may be released."""
        return self.free > 0 or (self.ahead > 0 and seconds <= self.seconds)

    def take(self, seconds: float) -> None:
        """A run of so many worker-seconds is released."""
        if self.free > 0:
            self.free -= 1
        else:
            self.ahead -= 1
            self.seconds -= seconds

    def close(self) -> None:
        """Let nothing more in."""
        self.free = self.ahead = 0


class Room:
    """What the queues of a pool may have released now.

    Args:
        whole: the pool's.
        queues: each queue's own, as far as the workers go that consume it.
    """

    def __init__(self, whole: Space, queues: Mapping[str, Space]) -> None:
        self._whole = whole
        self._queues = queues

    @property
    def queues(self) -> Collection[str]:
        """The queues of the pool that have room."""
        return [name for name, space in self._queues.items() if space.open] if self._whole.open else []

    def open(self, queue: str) -> bool:
        """Whether the queue may have a run released, if it is short enough."""
        return self._whole.open and (own := self._queues.get(queue)) is not None and own.open

    def take(self, queue: str, seconds: float) -> bool:
        """Make room for the queue's next run. Where it is too long to wait for a slot, nothing may go before it.

        Args:
            seconds: what the run is expected to take.
        """
        spaces = (self._whole, self._queues[queue])
        for space in spaces:
            if not space.fits(seconds):
                space.close()
                return False
        for space in spaces:
            space.take(seconds)
        return True


class Window:
    """Some slots, what takes them up, and what waits for them, in the order of its release.

    Args:
        slots: how many.
        buffer_seconds: how much work may wait for each.

    What takes them up is known by its run and fence.
    """

    def __init__(self, slots: int, buffer_seconds: float) -> None:
        self._slots = slots
        self._buffer_seconds = buffer_seconds
        self._started: dict[tuple[UUID, int], float] = {}
        self._ahead: dict[tuple[UUID, int], float] = {}
        self._ahead_seconds = 0.0
        self._turning = 0.0
        """How many of the slots in use are expected to be free within the buffer's time."""

    def add(self, holding: tuple[UUID, int], seconds: float) -> None:
        """A run has been released that is expected to take so long."""
        if len(self._started) < self._slots:
            self._start(holding, seconds)
        else:
            self._ahead[holding] = seconds
            self._ahead_seconds += seconds

    def drop(self, holding: tuple[UUID, int]) -> None:
        """A run has ended: the next one starts."""
        if holding in self._started:
            self._turning -= self._turns(self._started.pop(holding))
            if self._ahead:
                after = next(iter(self._ahead))
                self._start(after, self._pull(after))
        elif holding in self._ahead:
            self._pull(holding)

    def space(self, share: float) -> Space:
        """What may be released.

        Args:
            share: of the buffer, from 0 to 1.
        """
        free = self._slots - len(self._started)
        startable = share * self._buffer_seconds * (free + self._turning)
        if not free and self._ahead_seconds > _REFILLED_AT * startable:
            return Space(0)
        return Space(free, self._slots * _MOST_AHEAD - len(self._ahead), startable - self._ahead_seconds)

    def _start(self, holding: tuple[UUID, int], seconds: float) -> None:
        self._started[holding] = seconds
        self._turning += self._turns(seconds)

    def _pull(self, holding: tuple[UUID, int]) -> float:
        seconds = self._ahead.pop(holding)
        self._ahead_seconds = self._ahead_seconds - seconds if self._ahead else 0.0
        return seconds

    def _turns(self, seconds: float) -> float:
        return min(1.0, self._buffer_seconds / seconds)

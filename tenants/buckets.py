"""A leaky bucket: how much somebody may use up at once, and how fast that comes back."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Bucket:
    """What is poured in leaks out again; when it is full, nothing more goes in.

    Args:
        size: how much it holds.
        rate: how much leaks out in a second.
        level: how much is in it.
        unsent: how much was poured that others who fill the same bucket have not been told.
    """

    size: float
    rate: float
    level: float = 0.0
    unsent: float = 0.0
    _seen: float = field(default_factory=time.monotonic)

    def wait(self, amount: float) -> float:
        """How many seconds until there is room for an amount: 0 for none; of what is more than the bucket, for all."""
        self._leak()
        return max(0.0, (self.level + min(amount, self.size) - self.size) / self.rate)

    def pour(self, amount: float) -> None:
        """Pour an amount in, room or not; a negative one gives back."""
        self._leak()
        self.level = max(0.0, self.level + amount)
        self.unsent += amount

    def correct(self, level: float) -> None:
        """Take over the level that all who fill the bucket have agreed on; what was poured since stays on top."""
        self._leak()
        self.level = max(0.0, level + self.unsent)

    def room(self) -> float:
        """How much may be poured in now."""
        self._leak()
        return max(0.0, self.size - self.level)

    def _leak(self) -> None:
        now = time.monotonic()
        if self.level:
            self.level = max(0.0, self.level - (now - self._seen) * self.rate)
        self._seen = now

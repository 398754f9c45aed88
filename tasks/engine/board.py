"""What each child of a worker is doing right now, in memory that the parent shares with its children.

A child writes its slot when it has claimed a run and clears it when the run is settled; the parent's lease keeper reads
all slots, and leaves a reason there before it sends a signal.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

_FORMAT = struct.Struct("<BBHHHIqqddd16s16sId")
_TAG = struct.Struct("<q")
_TAG_AT = struct.calcsize("<BBHHHIq")
_LIMITS = struct.Struct("<dd")
_LIMITS_AT = struct.calcsize("<BBHHHIqqd")
_EMPTY = bytes(_FORMAT.size)


class Phase(IntEnum):
    """How far the slot's attempt is."""

    IDLE = 0
    WORKING = 1
    PROTECTED = 2
    """Inside a commit, an effect or a settle: a soft signal waits until it is over."""


class Reason(IntEnum):
    """Why the keeper interrupts an attempt."""

    NONE = 0
    CANCELLED = 1
    SOFT_LIMIT = 2
    HARD_LIMIT = 3
    FENCED = 4
    SUSPENDED = 5


@dataclass(frozen=True, slots=True)
class Slot:
    """One attempt at work.

    Args:
        index: the slot's number.
        pid: the process that works on it.
        task: the definition's place in the registry's order.
        started: monotonic seconds of the claim.
        soft_seconds: when it is told to stop, after the claim.
        hard_seconds: when it is killed, after the claim.
        sequence: the run's, with the claim.
        claimed_at: Unix seconds of the claim by the database's clock.
    """

    index: int
    pid: int
    tenant: UUID
    run: UUID
    fence: int
    task: int
    attempt: int
    max_attempts: int
    started: float
    soft_seconds: float
    hard_seconds: float
    sequence: int
    claimed_at: float
    phase: Phase = Phase.WORKING
    reason: Reason = Reason.NONE

    def same(self, other: Slot | None) -> bool:
        """Whether the other is the same attempt."""
        return other is not None and (other.run, other.fence) == (self.run, self.fence)


class Board:
    """All slots of a worker.

    Args:
        slots: how many there can be.
    """

    def __init__(self, slots: int) -> None:
        self._memory = mmap.mmap(-1, slots * _FORMAT.size)
        self._slots = slots

    def enter(self, slot: Slot) -> None:
        """Note the attempt that a slot works on."""
        values = _FORMAT.pack(
            Phase.WORKING,
            Reason.NONE,
            slot.task,
            min(slot.attempt, 0xFFFF),
            min(slot.max_attempts, 0xFFFF),
            slot.pid,
            slot.fence,
            0,
            slot.started,
            slot.soft_seconds,
            slot.hard_seconds,
            slot.tenant.bytes,
            slot.run.bytes,
            slot.sequence,
            slot.claimed_at,
        )
        start = slot.index * _FORMAT.size
        self._memory[start + 1 : start + _FORMAT.size] = values[1:]
        self._memory[start] = Phase.WORKING

    def leave(self, index: int) -> None:
        """The slot is idle."""
        start = index * _FORMAT.size
        self._memory[start] = Phase.IDLE
        self._memory[start : start + _FORMAT.size] = _EMPTY

    def protect(self, index: int, protected: bool) -> None:
        """Mark the beginning or the end of a part that no soft signal interrupts."""
        self._memory[index * _FORMAT.size] = Phase.PROTECTED if protected else Phase.WORKING

    def extend(self, index: int, seconds: float) -> None:
        """Move both limits of the slot's attempt later."""
        slot = self.read(index)
        if slot is not None:
            limits = (slot.soft_seconds + seconds, slot.hard_seconds + seconds)
            _LIMITS.pack_into(self._memory, index * _FORMAT.size + _LIMITS_AT, *limits)

    def give_reason(self, slot: Slot, reason: Reason) -> None:
        """Leave the reason of the signal that follows; it holds for this attempt, not for the slot's next one."""
        start = slot.index * _FORMAT.size
        _TAG.pack_into(self._memory, start + _TAG_AT, _tag(slot.run, slot.fence))
        self._memory[start + 1] = reason

    def read(self, index: int) -> Slot | None:
        """The slot's attempt, or None where it is idle."""
        start = index * _FORMAT.size
        if self._memory[start] == Phase.IDLE:
            return None
        phase, reason, task, attempt, most, pid, fence, tag, started, soft, hard, tenant, run, sequence, claimed_at = (
            _FORMAT.unpack(self._memory[start : start + _FORMAT.size])
        )
        if phase == Phase.IDLE:
            return None
        told = tag == _tag(UUID(bytes=run), fence)
        return Slot(
            index=index,
            pid=pid,
            tenant=UUID(bytes=tenant),
            run=UUID(bytes=run),
            fence=fence,
            task=task,
            attempt=attempt,
            max_attempts=most,
            started=started,
            soft_seconds=soft,
            hard_seconds=hard,
            sequence=sequence,
            claimed_at=claimed_at,
            phase=Phase(phase),
            reason=Reason(reason) if told else Reason.NONE,
        )

    def active(self) -> list[Slot]:
        """Every attempt at work."""
        return [slot for index in range(self._slots) if (slot := self.read(index)) is not None]


def _tag(run: UUID, fence: int) -> int:
    """An attempt in eight bytes."""
    return (run.int ^ fence) & 0x7FFF_FFFF_FFFF_FFFF

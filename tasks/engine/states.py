"""The states of a run and the only moves between them."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """Where a run stands."""

    SCHEDULED = "SCHEDULED"
    QUEUED = "QUEUED"
    RELEASED = "RELEASED"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


_S = RunState

MOVES: dict[RunState, frozenset[RunState]] = {
    _S.SCHEDULED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.QUEUED: frozenset({_S.RELEASED, _S.CANCELLED}),
    _S.RELEASED: frozenset({_S.RUNNING, _S.QUEUED, _S.CANCELLED}),
    _S.RUNNING: frozenset({_S.SUCCEEDED, _S.FAILED, _S.TIMED_OUT, _S.CANCELLED, _S.WAITING, _S.SCHEDULED}),
    _S.WAITING: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
    _S.TIMED_OUT: frozenset(),
}
"""Every legal move. RUNNING → SCHEDULED is a retry, a snooze or a rescue; RELEASED → QUEUED was never claimed."""

TERMINAL = frozenset(state for state, moves in MOVES.items() if not moves)


def diagram() -> str:
    """The table of moves as lines of text, for the README."""
    lines = [f"{state:<9} → {', '.join(sorted(moves))}" for state, moves in MOVES.items() if moves]
    return "\n".join(lines)

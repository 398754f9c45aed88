"""The board between a worker and its children: what is read of a slot is of one attempt."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.engine.board import Board, Phase, Reason, Slot
from tenants import ids

SLOT = Slot(
    index=3, pid=77, tenant=ids.new(), run=ids.new(), fence=1_795_000_000_000_000, task=2, attempt=1, max_attempts=5,
    started=12.5, soft_seconds=60.0, hard_seconds=90.0, sequence=3, claimed_at=1_795_000_000.123456,
)  # fmt: skip


@pytest.fixture
def board() -> Board:
    made = Board(8)
    made.enter(SLOT)
    return made


def test_an_attempt_stands_on_the_board_until_it_leaves(board: Board) -> None:
    assert board.active() == [SLOT]
    board.leave(SLOT.index)
    assert board.active() == []


def test_a_reason_and_a_phase_are_read_as_they_were_left(board: Board) -> None:
    board.give_reason(SLOT, Reason.CANCELLED)
    board.protect(SLOT.index, True)
    assert board.active() == [replace(SLOT, reason=Reason.CANCELLED, phase=Phase.PROTECTED)]


@pytest.mark.parametrize("following", [{"run": ids.new()}, {"fence": SLOT.fence + 1}], ids=["run", "fence"])
def test_a_reason_that_comes_too_late_does_not_meet_the_next_attempt(
    board: Board, following: dict[str, object]
) -> None:
    after = replace(SLOT, **following)  # type: ignore[arg-type]
    board.leave(SLOT.index)
    board.enter(after)
    board.give_reason(SLOT, Reason.HARD_LIMIT)
    assert board.read(SLOT.index) == after

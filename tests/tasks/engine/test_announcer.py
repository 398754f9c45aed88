"""What is told of attempts at work: those that last, once each, as the ledger has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from queue import SimpleQueue

import pytest

from tasks.engine.announcer import Announcer
from tasks.engine.board import Board, Slot
from tasks.engine.ledger import Change
from tasks.engine.publish import Notice
from tasks.engine.states import RunState
from tenants import ids

SLOT = Slot(
    index=3, pid=77, tenant=ids.new(), run=ids.new(), fence=1_795_000_000_000_000, task=2, attempt=1, max_attempts=5,
    started=12.5, soft_seconds=60.0, hard_seconds=90.0, sequence=3, claimed_at=1_795_000_000.5,
)  # fmt: skip
BEGUN = Change(SLOT.tenant, SLOT.run, RunState.RUNNING, 3, 1, datetime.fromtimestamp(1_795_000_000.5, UTC))


@pytest.fixture
def told() -> SimpleQueue[list[Notice]]:
    return SimpleQueue()


@pytest.fixture
def board(told: SimpleQueue[list[Notice]]) -> Iterator[Board]:
    """A board, of which is told."""
    made = Board(8)
    announcer = Announcer(made, told.put)
    announcer.start()
    yield made
    announcer.stop()


def test_an_attempt_that_lasts_is_told_of_once_and_its_successor_anew(
    board: Board, told: SimpleQueue[list[Notice]]
) -> None:
    board.enter(SLOT)
    assert told.get(timeout=10) == [BEGUN]
    board.enter(replace(SLOT, index=4, run=ids.new()))
    [other] = told.get(timeout=10)
    assert isinstance(other, Change)
    assert other.run != SLOT.run
    board.enter(replace(SLOT, fence=SLOT.fence + 1, sequence=6, attempt=2))
    assert told.get(timeout=10) == [replace(BEGUN, sequence=6, attempt=2)]


def test_an_attempt_that_ends_at_once_is_not_told_of(board: Board, told: SimpleQueue[list[Notice]]) -> None:
    short = ids.new()
    board.enter(replace(SLOT, run=short))
    board.leave(SLOT.index)
    board.enter(replace(SLOT, index=4))
    [change] = told.get(timeout=10)
    assert isinstance(change, Change)
    assert change.run == SLOT.run

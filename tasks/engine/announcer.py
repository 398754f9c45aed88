"""Tells tenants' streams of attempts that are at work.

An attempt that ends within a moment tells of its beginning and its end at once, which spares a trip to Redis; of one
that does not, its worker's parent tells.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from tasks.engine.board import Board
from tasks.engine.ledger import Change, Holding
from tasks.engine.publish import Notice
from tasks.engine.states import RunState

log = structlog.get_logger(__name__)
_MOMENT_SECONDS = 0.1


class Announcer:
    """A thread beside the lease keeper's: it may wait for Redis, which must hold up none of those.

    Args:
        board: what the worker's children do.
        send: publish best effort.
    """

    def __init__(self, board: Board, send: Callable[[list[Notice]], None]) -> None:
        self._board = board
        self._send = send
        self._seen: set[Holding] = set()
        self._told: set[Holding] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Tell nothing more."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(_MOMENT_SECONDS):
            try:
                self._announce()
            except Exception:
                log.exception("announcer_round_failed")

    def _announce(self) -> None:
        """Tell of those that were at work at the last look already, once each."""
        active = {(slot.run, slot.fence): slot for slot in self._board.active()}
        lasting = (active.keys() & self._seen) - self._told
        self._told = (self._told & active.keys()) | lasting
        self._seen = set(active)
        if lasting:
            self._send(
                [
                    Change(
                        slot.tenant,
                        slot.run,
                        RunState.RUNNING,
                        slot.sequence,
                        slot.attempt,
                        datetime.fromtimestamp(slot.claimed_at, UTC),
                    )
                    for slot in map(active.__getitem__, lasting)
                ]
            )

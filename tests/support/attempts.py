"""One attempt in the test's own process: a body of the test's, everything around it as in a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import orjson
import pytest

from tasks import registry
from tasks.engine import execute, messages
from tasks.engine.attempts import Desk
from tasks.engine.board import Board
from tasks.engine.context import RunContext
from tasks.engine.execute import Ending
from tasks.engine.ledger import Ledger
from tasks.engine.messages import Release
from tasks.families.diagnostics import inputs
from tasks.registry import RetryPolicy
from tenants import db
from tenants.context import Principal
from tests.support.hands import WORKER, Hands

Body = Callable[[RunContext], Any]


class Attempts:
    """Performs attempts of `diagnostics.echo`.

    Args:
        hands: release its runs.
    """

    def __init__(self, hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
        self._hands = hands
        self._monkeypatch = monkeypatch
        registry.bodies()
        self._settings = hands.installation.settings
        self.board = Board(1)
        self._ledger = Ledger(hands.installation.addresses.app, hands.engine, application="tests")
        self._engine = db.sync_engine(hands.installation.addresses.app, pool_size=1)

    def accept(self, principal: Principal, retry: RetryPolicy | None = None, **options: Any) -> UUID:
        """A run whose task is tried again by this policy."""
        with self._defined(retry):
            return self._hands.installation.trigger(principal, "diagnostics.echo", **options)

    def perform(self, principal: Principal, run: UUID, body: Body, retry: RetryPolicy | None = None) -> Ending:
        """Let the run be due, and perform its next attempt with this body."""
        self._hands.due(run)
        self._hands.requeue(unclaimed_seconds=3600)
        fence = self._hands.release(principal, run)[run]
        release = Release(principal.tenant, run, inputs.ECHO.name, inputs.ECHO.queue, fence)
        message = orjson.loads(messages.encode(release, self._settings.engine.grant_keys, time.time() + 60))
        desk = Desk(self._settings, self._ledger, self._engine, self.board, lambda: 0, lambda notices: None)
        self._monkeypatch.setitem(registry._BODIES, inputs.ECHO.name, lambda ctx, args: body(ctx))
        with self._defined(retry) as definition:
            ending, _ = execute.perform(desk, definition, message["headers"], WORKER, lambda *_: None)
        assert self.board.active() == []
        return ending

    def close(self) -> None:
        """Close the connections."""
        self._ledger.close()
        self._engine.dispose()

    @contextmanager
    def _defined(self, retry: RetryPolicy | None) -> Iterator[registry.TaskDefinition[Any]]:
        definition = inputs.ECHO if retry is None else replace(inputs.ECHO, retry=retry)
        with self._monkeypatch.context() as patched:
            found = {**registry.definitions(), definition.name: definition}
            patched.setattr(registry, "definitions", lambda: found)
            yield definition

"""What of a child's words survives the reset of the event loop."""

from __future__ import annotations

import os
import pickle
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency.asynpool import ResultHandler
from kombu.asynchronous import Hub

from tasks.engine import pool

MESSAGE = (3, (1, "done"))


class Child:
    """A process that lives, and the pipe that its results come through."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self.pid = self.process.pid
        self.descriptor, self._ours = os.pipe()
        os.set_blocking(self.descriptor, False)
        self.outq = SimpleNamespace(_reader=self)

    def write(self, data: bytes) -> None:
        """Say something."""
        os.write(self._ours, data)

    def poll(self, seconds: float) -> bool:
        """Whether something can be read."""
        return bool(select.select([self.descriptor], [], [], seconds)[0])

    def _is_alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """End the process and the pipe."""
        self.process.communicate(b"\n")
        os.close(self.descriptor)
        os.close(self._ours)


@pytest.fixture
def child() -> Iterator[Child]:
    """A child of a pool."""
    made = Child()
    yield made
    made.close()


def _handler(child: Child, heard: list[Any]) -> ResultHandler:
    made = ResultHandler.__new__(ResultHandler)
    made.fileno_to_outq = {child.descriptor: child}
    made.on_state_change = heard.append
    return made


def _framed() -> bytes:
    body = pickle.dumps(MESSAGE)
    return struct.pack("!i", len(body)) + body


@pytest.mark.parametrize("first", [1, 4, 9])
def test_a_result_of_which_a_part_was_read_is_read_to_its_end_before_the_loop_is_reset(
    child: Child, first: int
) -> None:
    heard: list[Any] = []
    hub = Hub()
    handler = _handler(child, heard)
    handler.register_with_event_loop(hub)
    pool.finish_reading(SimpleNamespace(_fileno_to_outq=handler.fileno_to_outq, _result_handler=handler), hub)
    child.write(_framed()[:first])
    handler.handle_event(child.descriptor)
    assert heard == []
    child.write(_framed()[first:] + _framed())
    hub.reset()
    assert heard == [MESSAGE]
    assert not hub.readers
    handler.handle_event(child.descriptor)
    assert heard == [MESSAGE, MESSAGE]
    hub.close()


def test_a_child_that_never_ends_its_sentence_is_ended(child: Child) -> None:
    hub = Hub()
    handler = _handler(child, [])
    handler.partial_read_timeout = handler.partial_read_deadline = 0.05
    handler.register_with_event_loop(hub)
    pool.finish_reading(SimpleNamespace(_fileno_to_outq=handler.fileno_to_outq, _result_handler=handler), hub)
    child.write(_framed()[:5])
    handler.handle_event(child.descriptor)
    hub.reset()
    assert child.process.wait(10) == -signal.SIGKILL
    hub.close()

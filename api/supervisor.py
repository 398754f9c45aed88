"""Keeps processes running: starts them, passes their output on, starts again what ends, and ends all together."""

from __future__ import annotations

import os
import selectors
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from types import FrameType
from typing import Self

from api.journal import Journal
from api.process import Command, Process

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 10.0

_STEADY_SECONDS = 30.0
_CHUNK = 65_536


class Supervisor:
    """Processes that are to be running until SIGINT or SIGTERM. Use it in the main thread, as a context manager."""

    def __init__(self, journal: Journal) -> None:
        """
        Args:
            journal: takes the processes' output.
        """
        self.signals = 0
        self._journal = journal
        self._watched: dict[str, _Watched] = {}
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._former_wakeup = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._former = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._former_wakeup)
        self._selector.close()
        self._wake.close()
        self._woken.close()

    @property
    def pids(self) -> dict[str, int]:
        """The process ids by name."""
        return {name: watched.process.pid for name, watched in self._watched.items()}

    def adopt(self, process: Process) -> None:
        """Watch a process that somebody else started and will end, such as a server."""
        self._watched[process.command.name] = _Watched(process, adopted=True)

    def start(self, command: Command) -> None:
        """Start a process and watch it."""
        self._watched[command.name] = watched = _Watched(Process(command))
        self._attach(watched)

    def run(self, each_turn: Callable[[], None], *, turn_seconds: float = 0.2) -> None:
        """Watch until a signal says to stop.

        Args:
            each_turn: called after every event, and at least once in each turn.
            turn_seconds: how long a turn without events lasts.
        """
        while not self.signals:
            self._listen(turn_seconds)
            for watched in self._watched.values():
                self._revive(watched)
            each_turn()

    def stop(self, seconds: float) -> None:
        """End what was started here: ask all at once; kill those that take longer, or all at one more signal."""
        own = [watched.process for watched in self._watched.values() if not watched.adopted]
        for process in own:
            process.signal(process.command.stop_signal)
        end = monotonic() + seconds
        patience = self.signals + 1
        while any(process.poll() is None for process in own) and monotonic() < end and self.signals < patience:
            self._listen(0.05)
        for process in own:
            if process.poll() is None:
                self._journal.say(process.command.name, "did not stop in time and is killed")
                process.kill()
        self._listen(0)
        for process in own:
            process.stop(seconds=0)
            self._journal.close(process.command.name)

    def _attach(self, watched: _Watched) -> None:
        if watched.process.output is not None:
            self._selector.register(watched.process.output, selectors.EVENT_READ, watched)

    def _listen(self, seconds: float) -> None:
        """Pass on what the processes wrote, or wait for it, for a signal, or for the end of a process."""
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                with suppress(BlockingIOError):
                    self._woken.recv(_CHUNK)
                continue
            output = os.read(key.fd, _CHUNK)
            if output:
                self._journal.feed(key.data.name, output)
            else:
                self._selector.unregister(key.fileobj)
                self._journal.close(key.data.name)

    def _revive(self, watched: _Watched) -> None:
        status = watched.process.poll()
        if status is None:
            return
        if watched.due is None:
            delay = watched.next_delay()
            self._journal.say(watched.name, f"{_describe(status)}; starts again in {delay:.1f} s")
        elif monotonic() >= watched.due:
            watched.due = None
            self._detach(watched)
            watched.process.start()
            self._attach(watched)

    def _detach(self, watched: _Watched) -> None:
        output = watched.process.output
        if output is not None:
            with suppress(KeyError):
                self._selector.unregister(output)
            output.close()

    def _note(self, number: int, _: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self.signals += 1


@dataclass(slots=True)
class _Watched:
    process: Process
    adopted: bool = False
    failures: int = 0
    due: float | None = None

    @property
    def name(self) -> str:
        return self.process.command.name

    def next_delay(self) -> float:
        """How long to wait before the next start, in seconds: twice as long each time, until it has run steadily."""
        now = monotonic()
        if now - self.process.started > _STEADY_SECONDS:
            self.failures = 0
        delay = min(FIRST_DELAY_SECONDS * 2.0**self.failures, LONGEST_DELAY_SECONDS)
        self.failures += 1
        self.due = now + delay
        return delay


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


def _describe(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

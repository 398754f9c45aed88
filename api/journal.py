"""The lines of several processes on one output, each with its process's name in front."""

from __future__ import annotations

import os
import select
from contextlib import suppress

_COLOURS = (36, 33, 32, 35, 34, 31)


class Journal:
    """Writes whole lines, and never waits for whoever should read them: a reader that stops must not stop the stack."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._coloured = os.isatty(descriptor)
        self._colours: dict[str, int] = {}
        self._unfinished: dict[str, bytes] = {}
        self._dropped = 0

    def say(self, name: str, text: str) -> None:
        """One line, or several."""
        self.feed(name, text.encode() + b"\n")

    def feed(self, name: str, output: bytes) -> None:
        """What a process wrote; its last line stays back until it is whole."""
        *lines, rest = (self._unfinished.pop(name, b"") + output).split(b"\n")
        if rest:
            self._unfinished[name] = rest
        for line in lines:
            self._write(self._prefix(name) + line.rstrip(b"\r") + b"\n")

    def close(self, name: str) -> None:
        """The process writes no more: let its last line out."""
        if name in self._unfinished:
            self.feed(name, b"\n")

    def _prefix(self, name: str) -> bytes:
        label = f"{name:<8} | "
        if self._coloured:
            colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
            label = f"\x1b[{colour}m{label}\x1b[0m"
        return label.encode()

    def _write(self, line: bytes) -> None:
        if self._dropped and self._takes():
            dropped, self._dropped = self._dropped, 0
            self._emit(self._prefix("dev") + f"{dropped} lines were dropped: nobody read them\n".encode())
        for start in range(0, len(line), select.PIPE_BUF):
            if not self._takes():
                self._dropped += 1
                return
            self._emit(line[start : start + select.PIPE_BUF])

    def _takes(self) -> bool:
        """Whether the output takes PIPE_BUF bytes without waiting. Source: pipe(7), select(2)."""
        return bool(select.select([], [self._descriptor], [], 0)[1])

    def _emit(self, part: bytes) -> None:
        with suppress(OSError):
            os.write(self._descriptor, part)

"""How things are measured: load over raw sockets, processor time from the kernel, medians over interleaved rounds."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Sample:
    """What one round of load showed.

    Args:
        operations: how many were answered.
        seconds: how long it took.
        latencies: seconds of each.
        cpu_seconds: processor time of the process under load.
    """

    operations: int
    seconds: float
    latencies: Sequence[float]
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    @property
    def cpu_microseconds(self) -> float:
        """Processor time of one operation."""
        return self.cpu_seconds / self.operations * 1e6

    @property
    def p50(self) -> float:
        """The median latency in seconds."""
        return statistics.median(self.latencies)

    @property
    def p99(self) -> float:
        """The latency that one in a hundred exceeds, in seconds."""
        return statistics.quantiles(self.latencies, n=100)[98]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def tree_seconds(pid: int) -> float:
    """User and system time of a process and of all that it has started, those that have ended included."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    ended = (int(fields[13]) + int(fields[14])) / _TICKS
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return cpu_seconds(pid) + ended + sum(tree_seconds(int(child)) for child in children)


def request(url: str, body: bytes, **headers: str) -> bytes:
    """A POST as it goes over the wire."""
    parts = urlsplit(url)
    lines = [
        f"POST {parts.path} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Content-Type: application/json",
        "Accept: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def load(
    url: str, make: Callable[[int], bytes], *, pid: int, operations: int, connections: int, expect: bytes = b""
) -> Sample:
    """Send requests over a number of connections, each as soon as the one before it was answered.

    Args:
        make: the request with this number.
        pid: the process whose processor time is taken.
        expect: what every answer must hold.

    Raises:
        RuntimeError: an answer was not 200, or did not hold what was expected.
    """
    parts = urlsplit(url)
    numbers = iter(range(operations))
    latencies: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        for number in numbers:
            message = make(number)
            started = time.perf_counter()
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            answer = await reader.readexactly(length)
            latencies.append(time.perf_counter() - started)
            if not head.startswith(b"HTTP/1.1 200") or expect not in answer:
                raise RuntimeError(f"{head[:60]!r} {answer[:400]!r}")
        writer.close()

    cpu = cpu_seconds(pid)
    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(connections)))
    return Sample(operations, time.perf_counter() - started, latencies, cpu_seconds(pid) - cpu)


async def interleaved(rounds: int, *measurements: Callable[[], Awaitable[Sample]]) -> list[list[Sample]]:
    """Rounds of each measurement in turn, so that the machine's drift meets them alike."""
    samples: list[list[Sample]] = [[] for _ in measurements]
    for _ in range(rounds):
        for place, measure in enumerate(measurements):
            samples[place].append(await measure())
    return samples


def median(samples: Sequence[Sample], figure: Callable[[Sample], float]) -> float:
    """The median of one figure over the rounds."""
    return statistics.median(figure(sample) for sample in samples)

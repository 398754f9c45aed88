"""Who is next: start-time fair queueing over tenants by weight, then over their concurrency keys. No I/O, no clock.

A tenant's next run has the start tag S = max(v, F): v is the start tag of the run picked last, F the tenant's finish
tag. The least start tag goes first; picking it moves v to S, and F to S + cost / weight. Who was idle joins at v, so
that nobody saves up a claim, and who is behind a limit is passed over. The same holds for the keys of one tenant.

Source: P. Goyal, H. Vin, H. Cheng, "Start-time Fair Queueing", SIGCOMM 1996.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import Any, Generic, NamedTuple, Protocol, TypeVar
from uuid import UUID

T = TypeVar("T", bound=Hashable)
_SPARE = 64


class Line(NamedTuple):
    """What waits one behind another, and counts under the same limits."""

    tenant: UUID
    queue: str
    task: str
    key: str | None


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """A run that waits for its release."""

    rank: datetime
    run: UUID
    line: Line


class Gate(Protocol):
    """What limits let through now."""

    def task(self, tenant: UUID, queue: str, task: str) -> bool:
        """Whether one more run of the task may start, as far as the tenant, the queue and the task are concerned."""

    def key(self, line: Line) -> bool:
        """Whether one more run may start, as far as its concurrency key is concerned."""

    def take(self, candidate: Candidate) -> None:
        """The run has been picked and counts from now on."""


class Heap(Generic[T]):
    """A priority queue whose items can move: the least key first, among equals the one put first."""

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int, T]] = []
        self._current: dict[T, tuple[Any, int, T]] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, item: T) -> bool:
        return item in self._current

    def put(self, item: T, key: Any) -> None:
        """Add an item, or move it."""
        self._serial += 1
        entry = (key, self._serial, item)
        self._current[item] = entry
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._current) + _SPARE:
            self._heap = list(self._current.values())
            heapq.heapify(self._heap)

    def drop(self, item: T) -> None:
        """Take an item out, if it is in."""
        self._current.pop(item, None)

    def first(self) -> tuple[Any, int, T] | None:
        """The first item behind its key and its number; None where there is none."""
        heap = self._heap
        while heap:
            entry = heap[0]
            if self._current.get(entry[2]) is entry:
                return entry
            heapq.heappop(heap)
        return None

    def until(self, key: Any) -> Iterator[T]:
        """Take out, one after another, the items whose keys are not above this one."""
        while (entry := self.first()) is not None and entry[0] <= key:
            self.drop(entry[2])
            yield entry[2]


@dataclass(slots=True)
class _Key:
    """A concurrency key of a tenant: its finish tag, and the runs that wait in its lines, by rank."""

    tag: float
    lines: dict[Line, list[Candidate]] = field(default_factory=dict)


@dataclass(slots=True)
class _Task:
    """A task of a tenant in a queue."""

    waiting: set[str | None] = field(default_factory=set)
    """The keys of which something waits."""
    open: Heap[str | None] = field(default_factory=Heap)
    """Those of them that no limit is known to hold back, by tag and rank."""


@dataclass(slots=True)
class _Tenant:
    """A tenant: its finish tag, its own virtual time, and what of it waits."""

    tag: float
    time: float = 0.0
    keys: dict[str | None, _Key] = field(default_factory=dict)
    resting: Heap[str | None] = field(default_factory=Heap)
    """Keys of which nothing waits, until the virtual time has passed their tags."""
    queues: dict[str, dict[str, _Task]] = field(default_factory=dict)
    """What waits: queue → task."""


class FairOrder:
    """The waiting runs that are known, and whose turn it is.

    Only the front of each line need be known: `offer` more when `known` runs low.

    Args:
        weights: tenant → its share beside others'; 1 where it is not named. Read at every pick.
    """

    def __init__(self, weights: Mapping[UUID, float]) -> None:
        self._weights = weights
        self._time = 0.0
        self._tenants: dict[UUID, _Tenant] = {}
        self._resting: Heap[UUID] = Heap()
        self._open: dict[str, Heap[UUID]] = {}
        self._runs: set[UUID] = set()

    def offer(self, candidates: Iterable[Candidate]) -> None:
        """Add waiting runs; those already known are left as they are."""
        for candidate in candidates:
            if candidate.run in self._runs:
                continue
            self._runs.add(candidate.run)
            line = candidate.line
            state = self._tenant(line.tenant)
            key = _key(state, line.key)
            waiting = key.lines.setdefault(line, [])
            insort(waiting, candidate)
            task = state.queues.setdefault(line.queue, {}).setdefault(line.task, _Task())
            task.waiting.add(line.key)
            if waiting[0] is candidate:
                task.open.put(line.key, (key.tag, candidate.rank))
            self._open.setdefault(line.queue, Heap()).put(line.tenant, state.tag)
            state.resting.drop(line.key)
            self._resting.drop(line.tenant)

    def known(self, line: Line) -> int:
        """How many waiting runs of the line are known."""
        state = self._tenants.get(line.tenant)
        key = state.keys.get(line.key) if state else None
        return len(key.lines.get(line, ())) if key else 0

    def forget(self, line: Line) -> None:
        """Drop what is known of a line, to be offered anew."""
        if not self.known(line):
            return
        state = self._tenants[line.tenant]
        key = state.keys[line.key]
        self._runs.difference_update(candidate.run for candidate in key.lines[line])
        key.lines[line].clear()
        self._left(state, key, line)
        self._move(line.tenant, line.key)

    def pick(
        self, rooms: MutableMapping[str, int], most: int, cost: Callable[[Line], float], gate: Gate
    ) -> list[Candidate]:
        """Take the next runs, in turn.

        Args:
            rooms: how many more each queue may have released; counted down.
            most: how many in all.
            cost: worker-seconds that a run of the line is expected to take, above zero.
            gate: what limits let through. Who is held back is asked again after `wake`.
        """
        picked: list[Candidate] = []
        while len(picked) < most:
            turns = [
                (*entry, queue)
                for queue, heap in self._open.items()
                if rooms.get(queue, 0) > 0 and (entry := heap.first()) is not None
            ]
            if not turns:
                break
            _, _, tenant, queue = min(turns)
            line = self._next(tenant, queue, gate)
            if line is None:
                self._open[queue].drop(tenant)
                continue
            candidate = self._take(line, cost(line))
            gate.take(candidate)
            rooms[queue] -= 1
            picked.append(candidate)
        return picked

    def charge(self, tenant: UUID, key: str | None, seconds: float) -> None:
        """Count work beside what `pick` has counted: less than nothing where a run took less than was expected.

        Where nobody waits nothing is owed to anybody: all that was counted is forgotten.
        """
        if not self._runs:
            self._time = max([self._time, *(state.tag for state in self._tenants.values())])
            self._tenants.clear()
            self._resting = Heap()
            return
        state = self._tenant(tenant)
        mine = _key(state, key)
        state.tag += seconds / self._weights.get(tenant, 1.0)
        mine.tag += seconds
        self._move(tenant, key)

    def wake(self, tenant: UUID, key: str | None) -> None:
        """A limit of the tenant may have opened, or one of this key of its."""
        state = self._tenants.get(tenant)
        if state is None:
            return
        for queue, tasks in state.queues.items():
            self._open[queue].put(tenant, state.tag)
            for name, task in tasks.items():
                if key in task.waiting:
                    mine = state.keys[key]
                    task.open.put(key, (mine.tag, mine.lines[Line(tenant, queue, name, key)][0].rank))

    def wake_all(self, tenant: UUID) -> None:
        """All limits of the tenant may have opened."""
        state = self._tenants.get(tenant)
        if state is not None:
            for key in {key for tasks in state.queues.values() for task in tasks.values() for key in task.waiting}:
                self.wake(tenant, key)

    def _tenant(self, tenant: UUID) -> _Tenant:
        return self._tenants.setdefault(tenant, _Tenant(self._time))

    def _next(self, tenant: UUID, queue: str, gate: Gate) -> Line | None:
        """The line of the tenant whose turn it is in the queue; None where limits hold all of them back."""
        turns = [
            (first, Line(tenant, queue, name, key))
            for name, task in self._tenants[tenant].queues[queue].items()
            if gate.task(tenant, queue, name)
            for first, key in _first_open(task, Line(tenant, queue, name, None), gate)
        ]
        return min(turns, key=itemgetter(0))[1] if turns else None

    def _take(self, line: Line, cost: float) -> Candidate:
        state = self._tenants[line.tenant]
        key = state.keys[line.key]
        candidate = key.lines[line].pop(0)
        self._runs.discard(candidate.run)
        self._time = max(self._time, state.tag)
        state.tag = self._time + cost / self._weights.get(line.tenant, 1.0)
        state.time = max(state.time, key.tag)
        key.tag = state.time + cost
        self._left(state, key, line)
        self._move(line.tenant, line.key)
        return candidate

    def _left(self, state: _Tenant, key: _Key, line: Line) -> None:
        """Runs have left the line: what holds nothing more goes."""
        if key.lines[line]:
            return
        del key.lines[line]
        tasks = state.queues[line.queue]
        tasks[line.task].waiting.discard(line.key)
        tasks[line.task].open.drop(line.key)
        if not tasks[line.task].waiting:
            del tasks[line.task]
        if not tasks:
            del state.queues[line.queue]
            self._open[line.queue].drop(line.tenant)

    def _move(self, tenant: UUID, name: str | None) -> None:
        """Tags or lines have changed: what stands by them moves, unless it is held back; old rest is forgotten."""
        state = self._tenants[tenant]
        key = state.keys[name]
        for line, waiting in key.lines.items():
            task = state.queues[line.queue][line.task]
            if name in task.open:
                task.open.put(name, (key.tag, waiting[0].rank))
        for queue in state.queues:
            if tenant in self._open[queue]:
                self._open[queue].put(tenant, state.tag)
        if not key.lines:
            state.resting.put(name, key.tag)
        if not state.queues:
            self._resting.put(tenant, state.tag)
        for rested in state.resting.until(state.time):
            del state.keys[rested]
        for over in self._resting.until(self._time):
            del self._tenants[over]


def _key(state: _Tenant, name: str | None) -> _Key:
    return state.keys.setdefault(name, _Key(state.time))


def _first_open(task: _Task, line: Line, gate: Gate) -> Iterator[tuple[Any, str | None]]:
    """The first key that its own limits let through; those before it are left out until they are woken."""
    while (entry := task.open.first()) is not None:
        place, _, key = entry
        if gate.key(line._replace(key=key)):
            yield place, key
            return
        task.open.drop(key)

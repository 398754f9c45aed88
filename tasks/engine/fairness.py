"""Who is next: start-time fair queueing over tenants by weight, then over their concurrency keys. No I/O, no clock.

A tenant's next run has the start tag S, the tenant's finish tag F. The least start tag goes first, and among equals who
joined last: picking it sets v, the virtual time, to S, and moves F to S + cost / weight. Who was idle or held back by a
limit joins at max(v, F), so that nobody saves up a claim, and no later than at the tag of who is next. Who waits always
keeps what it was charged too much. The same holds for the keys of one tenant.

Source: P. Goyal, H. Vin, H. Cheng, "Start-time Fair Queueing", SIGCOMM 1996.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from tasks.engine.gates import Gate
from tasks.engine.heap import Heap
from tasks.engine.lines import Candidate, Line
from tasks.engine.windows import Room

_WOKEN = 1000
"""How many lines a pick wakes, after a tenant's limits have changed."""
_PATIENCE = 100
"""How many lines of a tenant a turn asks for in vain: a pick has to be short, however many are held back."""


# What follows refers to each other directly and is compared by identity: hashing a tenant's id takes longer than all
# else that a pick does with it.


@dataclass(slots=True, eq=False)
class _Tenant:
    """A tenant: its finish tag, its own virtual time, and what of it waits."""

    id: UUID
    tag: float
    held: bool = False
    time: float = 0.0
    keys: dict[str | None, _Key] = field(default_factory=dict)
    resting: Heap[_Key] = field(default_factory=Heap)
    """Keys of which nothing waits, until the virtual time has passed their tags."""
    queues: dict[str, dict[str, _Task]] = field(default_factory=dict)
    """What waits: queue → task."""


@dataclass(slots=True, eq=False)
class _Key:
    """A concurrency key of a tenant: its finish tag, and its lines in which something waits."""

    name: str | None
    tag: float
    held: bool = False
    fronts: list[_Front] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Task:
    """A task of a tenant in a queue."""

    lines: int = 0
    """In how many of its lines something waits."""
    open: Heap[_Front] = field(default_factory=Heap)
    """Those of them that no limit is known to hold back, by tag and rank."""


@dataclass(slots=True, eq=False)
class _Front:
    """What is known of a line: its first runs, by rank, at least one."""

    line: Line
    tenant: _Tenant
    key: _Key
    task: _Task
    waiting: list[Candidate] = field(default_factory=list)


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
        self._resting: Heap[_Tenant] = Heap()
        self._open: dict[str, Heap[_Tenant]] = {}
        self._fronts: dict[Line, _Front] = {}
        self._runs: set[UUID] = set()
        self._with_room: Collection[str] = ()
        """The queues that had room at the last pick."""
        self._waking: dict[_Tenant, list[_Front]] = {}
        """Lines that are to be woken, by and by."""
        self.unfinished = False
        """Whether the last pick has left somebody out for the next one, to be short."""

    def offer(self, candidates: Iterable[Candidate]) -> None:
        """Add waiting runs; those already known are left as they are."""
        for candidate in candidates:
            if candidate.run in self._runs:
                continue
            self._runs.add(candidate.run)
            front = self._fronts.get(candidate.line) or self._begin(candidate.line)
            insort(front.waiting, candidate)
            if front.waiting[0] is candidate:
                self._open_up(front)

    def known(self, line: Line) -> int:
        """How many waiting runs of the line are known."""
        front = self._fronts.get(line)
        return len(front.waiting) if front else 0

    def renew(self, line: Line, candidates: Sequence[Candidate]) -> None:
        """Put these in the place of what is known of the line."""
        front = self._fronts.get(line)
        if front is None:
            self.offer(candidates)
            return
        self._runs.difference_update(candidate.run for candidate in front.waiting)
        self._runs.update(candidate.run for candidate in candidates)
        front.waiting = sorted(candidates)
        if not candidates:
            self._end(front)
        self._move(front.tenant, front.key)

    def pick(self, room: Room, most: int, cost: Callable[[Line], float], gate: Gate) -> list[Candidate]:
        """Take the next runs, in turn.

        Args:
            room: what may be released; it is taken up.
            most: how many runs in all.
            cost: worker-seconds that a run of the line is expected to take, above zero.
            gate: what limits let through. Who is held back is asked again after `wake`.
        """
        picked: list[Candidate] = []
        tired: list[_Tenant] = []
        self._with_room = room.queues
        self._wake_some()
        while len(picked) < most and (tenant := self._turn(room)) is not None:
            patience = [_PATIENCE]
            front = _next(tenant, room, gate, patience)
            if front is None:
                if patience[0] <= 0:
                    tired.append(tenant)
                self._hold(tenant, room)
                continue
            seconds = cost(front.line)
            if room.take(front.line.queue, seconds):
                picked.append(self._take(front, seconds))
                gate.take(picked[-1])
        for tenant in tired:
            tenant.held = False
            for queue in tenant.queues:
                self._open[queue].put(tenant, tenant.tag)
        self.unfinished = bool(tired or self._waking)
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
        state, mine = self._state(tenant, key)
        state.tag += seconds / self._weights.get(tenant, 1.0)
        mine.tag += seconds
        self._move(state, mine)

    def wake(self, tenant: UUID, key: str | None) -> None:
        """A limit of the tenant may have opened, or one of this key of its."""
        state = self._tenants.get(tenant)
        if state is None:
            return
        mine = state.keys.get(key)
        for front in mine.fronts if mine else ():
            self._open_up(front)
        self._join(state)
        for queue in state.queues:
            self._open[queue].put(state, state.tag)

    def wake_all(self, tenant: UUID) -> None:
        """All limits of the tenant may have opened."""
        state = self._tenants.get(tenant)
        if state is not None:
            self._waking[state] = [front for key in state.keys.values() for front in key.fronts]

    def _wake_some(self) -> None:
        """Wake a portion of the lines that are to be woken, of each tenant some."""
        for tenant, fronts in list(self._waking.items()):
            for _ in range(min(len(fronts), max(1, _WOKEN // len(self._waking)))):
                front = fronts.pop()
                if self._fronts.get(front.line) is front:
                    self._open_up(front)
            if not fronts:
                del self._waking[tenant]

    def _state(self, tenant: UUID, key: str | None) -> tuple[_Tenant, _Key]:
        """The tenant and its key, which join at their virtual times if they are new."""
        state = self._tenants.get(tenant)
        if state is None:
            state = self._tenants[tenant] = _Tenant(tenant, self._joining())
        mine = state.keys.get(key)
        if mine is None:
            mine = state.keys[key] = _Key(key, state.time)
        return state, mine

    def _begin(self, line: Line) -> _Front:
        """A line of which nothing has been known."""
        tenant, key = self._state(line.tenant, line.key)
        task = tenant.queues.setdefault(line.queue, {}).setdefault(line.task, _Task())
        front = self._fronts[line] = _Front(line, tenant, key, task)
        key.fronts.append(front)
        task.lines += 1
        tenant.resting.drop(key)
        self._resting.drop(tenant)
        return front

    def _end(self, front: _Front) -> None:
        """Nothing more is known of the line: what holds nothing else goes."""
        line, tenant, task = front.line, front.tenant, front.task
        del self._fronts[line]
        front.key.fronts.remove(front)
        task.lines -= 1
        task.open.drop(front)
        if not task.lines:
            del tenant.queues[line.queue][line.task]
        if not tenant.queues[line.queue]:
            del tenant.queues[line.queue]
            self._open[line.queue].drop(tenant)

    def _open_up(self, front: _Front) -> None:
        """The line may be picked from."""
        tenant, key = front.tenant, front.key
        if key.held:
            key.held, key.tag = False, max(key.tag, tenant.time)
        front.task.open.put(front, (key.tag, front.waiting[0].rank))
        queue = self._open.setdefault(front.line.queue, Heap())
        if tenant not in queue:
            self._join(tenant)
            queue.put(tenant, tenant.tag, first=True)

    def _join(self, tenant: _Tenant) -> None:
        """Who was held back has saved up nothing."""
        if tenant.held:
            tenant.held, tenant.tag = False, max(tenant.tag, self._joining())

    def _joining(self) -> float:
        """The tag of who joins now: the virtual time, unless corrections have taken the next below it."""
        heaps = [self._open[queue] for queue in self._with_room if queue in self._open]
        return min([self._time, *(float(entry[0]) for heap in heaps if (entry := heap.first()))])

    def _turn(self, room: Room) -> _Tenant | None:
        """The tenant whose turn it is, of those with work for queues that have room."""
        best: tuple[Any, int, _Tenant] | None = None
        for queue, heap in self._open.items():
            if room.open(queue):
                entry = heap.first()
                if entry is not None and (best is None or entry[:2] < best[:2]):
                    best = entry
        return None if best is None else best[2]

    def _hold(self, tenant: _Tenant, room: Room) -> None:
        """The tenant is left out, where there is room, until it is woken."""
        tenant.held = True
        for queue in tenant.queues:
            if room.open(queue):
                self._open[queue].drop(tenant)

    def _take(self, front: _Front, cost: float) -> Candidate:
        tenant, key = front.tenant, front.key
        candidate = front.waiting.pop(0)
        self._runs.discard(candidate.run)
        self._time = tenant.tag
        tenant.tag += cost / self._weights.get(tenant.id, 1.0)
        tenant.time = key.tag
        key.tag += cost
        if not front.waiting:
            self._end(front)
        self._move(tenant, key)
        return candidate

    def _move(self, tenant: _Tenant, key: _Key) -> None:
        """Tags or lines have changed: what stands by them moves, unless it is held back; old rest is forgotten."""
        for front in key.fronts:
            front.task.open.move(front, (key.tag, front.waiting[0].rank))
        for queue in tenant.queues:
            self._open[queue].move(tenant, tenant.tag)
        if not key.fronts:
            tenant.resting.put(key, key.tag)
        if not tenant.queues:
            self._resting.put(tenant, tenant.tag)
        if tenant.resting:
            for rested in tenant.resting.until(tenant.time):
                del tenant.keys[rested.name]
        if self._resting:
            for over in self._resting.until(self._time):
                del self._tenants[over.id]


def _next(tenant: _Tenant, room: Room, gate: Gate, patience: list[int]) -> _Front | None:
    """The line of the tenant whose turn it is where there is room; None where limits hold all of them back.

    Args:
        patience: how many lines may be asked for in vain; counted down.
    """
    best: tuple[Any, int, _Front] | None = None
    for queue, tasks in tenant.queues.items():
        if not room.open(queue):
            continue
        for name, task in tasks.items():
            if gate.task(tenant.id, queue, name):
                entry = _first_open(task, gate, patience)
                if entry is not None and (best is None or entry[0] < best[0]):
                    best = entry
    return None if best is None else best[2]


def _first_open(task: _Task, gate: Gate, patience: list[int]) -> tuple[Any, int, _Front] | None:
    """The first line that its key's limits let through; those before it are left out until they are woken."""
    while (entry := task.open.first()) is not None and patience[0] > 0:
        if gate.key(entry[2].line):
            return entry
        task.open.drop(entry[2])
        entry[2].key.held = True
        patience[0] -= 1
    return None

"""The order of releases: nobody lost, nobody doubled, shares by weight, and no room left empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import partial
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tasks.engine.fairness import FairOrder
from tasks.engine.heap import Heap
from tasks.engine.lines import Candidate, Line
from tasks.engine.windows import Room, Space
from tests.support.rooms import room

TENANTS = [UUID(int=number) for number in range(1, 6)]
QUEUES = ("analysis", "mail", "reports")
TASKS = ("x.one", "x.two")
KEYS = (None, "a", "b")
START = datetime(2026, 1, 1, tzinfo=UTC)
ROOMS = st.dictionaries(st.sampled_from(QUEUES), st.integers(0, 30))
LINES = st.builds(
    Line, st.sampled_from(TENANTS), st.sampled_from(QUEUES), st.sampled_from(TASKS), st.sampled_from(KEYS)
)


@dataclass
class Doors:
    """A gate whose doors are shut by hand."""

    shut_tasks: set[tuple[UUID, str, str]] = field(default_factory=set)
    shut_keys: set[tuple[UUID, str | None]] = field(default_factory=set)
    taken: list[Candidate] = field(default_factory=list)

    def task(self, tenant: UUID, queue: str, task: str) -> bool:
        return (tenant, queue, task) not in self.shut_tasks

    def key(self, line: Line) -> bool:
        return (line.tenant, line.key) not in self.shut_keys

    def take(self, candidate: Candidate) -> None:
        self.taken.append(candidate)

    def open(self, line: Line) -> bool:
        """Whether a run of the line may start."""
        return self.task(line.tenant, line.queue, line.task) and self.key(line)


def _candidate(number: int, line: Line, seconds: float = 0) -> Candidate:
    return Candidate(START + timedelta(seconds=seconds), UUID(int=1000 + number), line)


@st.composite
def _candidates(draw: st.DrawFn) -> list[Candidate]:
    wanted = draw(st.lists(st.tuples(LINES, st.integers(0, 50)), max_size=60))
    return [_candidate(number, line, rank) for number, (line, rank) in enumerate(wanted)]


def _order(candidates: Iterable[Candidate], **weights: float) -> FairOrder:
    order = FairOrder({UUID(int=int(name[1:])): weight for name, weight in weights.items()})
    order.offer(candidates)
    return order


def _one(line: Line) -> float:
    return 1.0


@given(_candidates(), ROOMS, st.integers(0, 60))
def test_as_much_is_picked_as_there_is_room_and_work_for(
    candidates: list[Candidate], rooms: dict[str, int], most: int
) -> None:
    waiting = Counter(candidate.line.queue for candidate in candidates)
    picked = _order(candidates).pick(room(rooms), most, _one, Doors())
    assert len(picked) == min(most, sum(min(waiting[queue], room) for queue, room in rooms.items()))
    taken = Counter(candidate.line.queue for candidate in picked)
    assert all(taken[queue] <= rooms.get(queue, 0) for queue in taken)


@given(_candidates(), st.lists(st.integers(1, 9), min_size=1))
def test_everybody_is_picked_once_and_in_the_end(candidates: list[Candidate], portions: list[int]) -> None:
    order = _order(candidates)
    picked: list[Candidate] = []
    for turn in range(len(candidates) + 1):
        picked += order.pick(room(dict.fromkeys(QUEUES, 1000)), portions[turn % len(portions)], _one, Doors())
    assert sorted(picked) == sorted(candidates)
    assert all(order.known(candidate.line) == 0 for candidate in candidates)


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.lists(st.integers(1, 20), min_size=1, max_size=3)), min_size=2, max_size=5
    ),
    st.integers(1, 200),
)
def test_while_tenants_have_work_their_service_by_weight_differs_by_no_more_than_one_run_of_each(
    tenants: list[tuple[int, list[int]]], picks: int
) -> None:
    """The bound that the source proves: |W1/w1 − W2/w2| ≤ l1/w1 + l2/w2, for every pair, at every moment."""
    order = FairOrder({TENANTS[place]: weight for place, (weight, _) in enumerate(tenants)})
    for place in range(len(tenants)):
        line = Line(TENANTS[place], "mail", "x.one", None)
        order.offer(_candidate(1000 * place + number, line, number) for number in range(picks))
    served = [Fraction(0)] * len(tenants)
    for number in range(picks):
        (candidate,) = order.pick(room({"mail": 1}), 1, partial(_length, tenants, number), Doors())
        place = TENANTS.index(candidate.line.tenant)
        served[place] += Fraction(_length(tenants, number, candidate.line), tenants[place][0])
        for one, (weight, lengths) in enumerate(tenants):
            for other, (other_weight, others) in enumerate(tenants):
                bound = Fraction(max(lengths), weight) + Fraction(max(others), other_weight)
                assert abs(served[one] - served[other]) <= bound + Fraction(1, 10**6)


def _length(tenants: list[tuple[int, list[int]]], number: int, line: Line) -> int:
    lengths = tenants[TENANTS.index(line.tenant)][1]
    return lengths[number % len(lengths)]


def test_many_keys_gain_a_tenant_nothing() -> None:
    plain = [_candidate(number, Line(TENANTS[0], "mail", "x.one", None)) for number in range(2000)]
    keyed = [_candidate(5000 + number, Line(TENANTS[1], "mail", "x.one", str(number % 1000))) for number in range(2000)]
    picked = _order(plain + keyed).pick(room({"mail": 1000}), 1000, _one, Doors())
    assert Counter(candidate.line.tenant for candidate in picked) == {TENANTS[0]: 500, TENANTS[1]: 500}


def test_keys_of_a_tenant_take_turns_however_much_one_has_waiting() -> None:
    many = [_candidate(number, Line(TENANTS[0], "mail", "x.one", "a")) for number in range(100)]
    few = [_candidate(200 + number, Line(TENANTS[0], "mail", "x.one", "b"), 60) for number in range(3)]
    picked = _order(many + few).pick(room({"mail": 6}), 6, _one, Doors())
    assert [candidate.line.key for candidate in picked].count("b") == 3


def test_the_oldest_goes_first_in_whichever_queue_it_waits() -> None:
    lines = [Line(TENANTS[0], queue, task, None) for queue in QUEUES for task in TASKS]
    waiting = [_candidate(number, lines[number % len(lines)], number) for number in range(30)]
    assert _order(waiting).pick(room(dict.fromkeys(QUEUES, 30)), 30, _one, Doors()) == waiting


@given(_candidates(), st.sampled_from(QUEUES))
def test_a_full_queue_holds_up_no_other(candidates: list[Candidate], full: str) -> None:
    rooms = {queue: 0 if queue == full else 1000 for queue in QUEUES}
    picked = _order(candidates).pick(room(rooms), 1000, _one, Doors())
    assert sorted(picked) == sorted(candidate for candidate in candidates if candidate.line.queue != full)


def test_one_run_of_a_tenant_does_not_wait_behind_anothers_backlog() -> None:
    order = _order(_candidate(number, Line(TENANTS[0], "mail", "x.one", None)) for number in range(50_000))
    order.pick(room({"mail": 100}), 100, _one, Doors())
    late = _candidate(-1, Line(TENANTS[1], "mail", "x.one", None), 86_400)
    order.offer([late])
    assert late in order.pick(room({"mail": 2}), 2, _one, Doors())


def test_who_was_away_has_saved_up_nothing() -> None:
    line = Line(TENANTS[0], "mail", "x.one", None)
    order = _order(_candidate(number, line) for number in range(1000))
    order.pick(room({"mail": 500}), 500, _one, Doors())
    order.offer(_candidate(2000 + number, Line(TENANTS[1], "mail", "x.one", None)) for number in range(1000))
    picked = order.pick(room({"mail": 100}), 100, _one, Doors())
    assert abs(Counter(candidate.line.tenant for candidate in picked)[TENANTS[1]] - 50) <= 1


def test_what_took_longer_than_expected_is_made_good() -> None:
    order = _order(
        _candidate(1000 * place + number, Line(TENANTS[place], "mail", "x.one", None))
        for place in range(2)
        for number in range(100)
    )
    assert len(order.pick(room({"mail": 2}), 2, _one, Doors())) == 2
    order.charge(TENANTS[0], None, 9.0)
    picked = order.pick(room({"mail": 10}), 10, _one, Doors())
    assert Counter(candidate.line.tenant for candidate in picked)[TENANTS[1]] in (9, 10)
    order.charge(TENANTS[1], None, -10.0)
    assert order.pick(room({"mail": 1}), 1, _one, Doors())[0].line.tenant == TENANTS[1]


def test_where_nobody_waits_nothing_is_owed() -> None:
    order = _order([_candidate(1, Line(TENANTS[0], "mail", "x.one", None))])
    order.pick(room({"mail": 1}), 1, _one, Doors())
    order.charge(TENANTS[0], None, 3600.0)
    order.offer(
        _candidate(1000 * place + number, Line(TENANTS[place], "mail", "x.one", None))
        for place in range(2)
        for number in range(1, 10)
    )
    assert Counter(one.line.tenant for one in order.pick(room({"mail": 10}), 10, _one, Doors())) == {
        TENANTS[0]: 5,
        TENANTS[1]: 5,
    }


def test_who_was_held_back_by_a_limit_has_saved_up_nothing() -> None:
    lines = [Line(tenant, "mail", "x.one", None) for tenant in TENANTS[:2]]
    order = _order(_candidate(1000 * place + number, line) for place, line in enumerate(lines) for number in range(500))
    doors = Doors(shut_tasks={(TENANTS[0], "mail", "x.one")})
    assert len(order.pick(room({"mail": 200}), 200, _one, doors)) == 200
    doors.shut_tasks.clear()
    order.wake(TENANTS[0], None)
    picked = Counter(one.line.tenant for one in order.pick(room({"mail": 100}), 100, _one, doors))
    assert abs(picked[TENANTS[0]] - 50) <= 1


def test_a_quiet_tenant_is_next_whatever_corrections_the_busy_ones_have_got() -> None:
    lines = [Line(tenant, "mail", "x.one", None) for tenant in TENANTS]
    order = _order(
        _candidate(1000 * place + number, line) for place, line in enumerate(lines[1:]) for number in range(900)
    )
    flights: list[Candidate] = []
    for number in range(50):
        flights += order.pick(room({"mail": 10}), 10 - len(flights), _one, Doors())
        ended = flights.pop(0)
        order.charge(ended.line.tenant, None, -0.875)
        order.offer([_candidate(-1 - number, lines[0])])
        [quiet] = order.pick(room({"mail": 1}), 1, _one, Doors())
        assert quiet.line == lines[0]
        order.charge(quiet.line.tenant, None, -1.0)


def test_who_waits_all_the_time_keeps_what_it_was_charged_too_much() -> None:
    """The runs of one tenant take now next to nothing, now twice as long as expected: it gets its half all the same."""
    lines = [Line(tenant, "mail", "x.one", None) for tenant in TENANTS[:3]]
    order = _order(
        _candidate(9000 * place + number, line) for place, line in enumerate(lines) for number in range(3000)
    )
    service = dict.fromkeys(TENANTS[:3], 0.0)
    flights: list[Candidate] = []
    for number in range(6000):
        flights += order.pick(room({"mail": 4 - len(flights)}), 4, _one, Doors())
        ended = flights.pop(0)
        took = 1.0 if ended.line.tenant != TENANTS[0] else (0.1, 1.9)[number * 7919 % 13 % 2]
        service[ended.line.tenant] += took
        order.charge(ended.line.tenant, None, took - 1.0)
    assert max(service.values()) - min(service.values()) <= 4.0, service


class Plain:
    """The same rules over plain lists: what waits, and the tags."""

    def __init__(self) -> None:
        self.time = 0.0
        self.tags: dict[UUID, float] = {}
        self.times: dict[UUID, float] = {}
        self.key_tags: dict[tuple[UUID, str | None], float] = {}
        self.waiting: dict[UUID, Candidate] = {}
        self.with_room: set[str] = set()
        """The queues that had room at the last pick."""

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Something waits: who had nothing waiting joins at the virtual times."""
        for candidate in candidates:
            tenant, key = candidate.line.tenant, (candidate.line.tenant, candidate.line.key)
            if not any(one.line.tenant == tenant for one in self.waiting.values()):
                startable = [one.line for one in self.waiting.values() if one.line.queue in self.with_room]
                next_tag = min([self.time, *(self.tags[line.tenant] for line in startable)])
                self.tags[tenant] = self.tags.get(tenant, next_tag)
            if not any((one.line.tenant, one.line.key) == key for one in self.waiting.values()):
                self.key_tags[key] = self.key_tags.get(key, self.times.get(tenant, 0.0))
            self.waiting[candidate.run] = candidate

    def forget(self) -> None:
        """Who has nothing waiting and whose tag the virtual time has passed is as if new."""
        tenants = {one.line.tenant for one in self.waiting.values()}
        keys = {(one.line.tenant, one.line.key) for one in self.waiting.values()}
        gone = {tenant for tenant, tag in self.tags.items() if tenant not in tenants and tag <= self.time}
        self.tags = {tenant: tag for tenant, tag in self.tags.items() if tenant not in gone}
        self.times = {tenant: time for tenant, time in self.times.items() if tenant not in gone}
        self.key_tags = {
            (tenant, key): tag
            for (tenant, key), tag in self.key_tags.items()
            if tenant not in gone and ((tenant, key) in keys or tag > self.times.get(tenant, 0.0))
        }

    def take(self, candidate: Candidate, cost: float) -> None:
        """Move the tags as the source says."""
        del self.waiting[candidate.run]
        tenant, key = candidate.line.tenant, (candidate.line.tenant, candidate.line.key)
        self.time = self.tags[tenant]
        self.tags[tenant] += cost
        self.times[tenant] = self.key_tags[key]
        self.key_tags[key] += cost
        self.forget()


class Dispatch(RuleBasedStateMachine):
    """Offers, picks, limits and corrections in any order, beside the plain rules."""

    def __init__(self) -> None:
        super().__init__()
        self.order = FairOrder({})
        self.plain = Plain()
        self.doors = Doors()
        self.picked: set[UUID] = set()
        self.number = 0
        self.limited = False

    @initialize(limited=st.booleans())
    def begin(self, limited: bool) -> None:
        """With limits the order is not foretold exactly: who was held back, and when, is the order's own affair."""
        self.limited = limited
        assert self.order.pick(room({"mail": 5}), 5, _one, self.doors) == []

    @rule(line=LINES, rank=st.integers(0, 9), count=st.integers(1, 4))
    def offer(self, line: Line, rank: int, count: int) -> None:
        fresh = [_candidate(self.number + number, line, rank) for number in range(count)]
        self.number += count
        self.order.offer([*fresh, *fresh, *self.plain.waiting.values()])
        self.plain.add(fresh)

    @rule(rooms=ROOMS, most=st.integers(0, 6), cost=st.integers(1, 5))
    def pick(self, rooms: dict[str, int], most: int, cost: int) -> None:
        left = dict(rooms)
        self.plain.with_room = {queue for queue, slots in rooms.items() if slots > 0}
        picked = self.order.pick(room(rooms), most, lambda line: float(cost), self.doors)
        for candidate in picked:
            assert candidate.run not in self.picked
            could = self._could_start(left)
            assert candidate in could
            line = candidate.line
            mine = [one for one in could if one.line.tenant == line.tenant]
            if not self.limited:
                assert self.plain.tags[line.tenant] == min(self.plain.tags[one.line.tenant] for one in could)
                tags = [self.plain.key_tags[(one.line.tenant, one.line.key)] for one in mine]
                assert self.plain.key_tags[(line.tenant, line.key)] == min(tags)
                assert candidate.rank == min(one.rank for one in mine if one.line.key == line.key)
            assert candidate == min(one for one in mine if one.line == line)
            self.plain.take(candidate, cost)
            self.picked.add(candidate.run)
            left[line.queue] -= 1
        assert len(picked) == most or not self._could_start(left)
        assert set(self.doors.taken) >= set(picked)

    def _could_start(self, rooms: dict[str, int]) -> list[Candidate]:
        return [
            one for one in self.plain.waiting.values() if rooms.get(one.line.queue, 0) > 0 and self.doors.open(one.line)
        ]

    @rule(line=LINES)
    def read_anew(self, line: Line) -> None:
        self.order.renew(line, [one for one in self.plain.waiting.values() if one.line == line])

    @rule(line=LINES, most=st.integers(0, 3))
    def lose(self, line: Line, most: int) -> None:
        """Some of a line have gone without the order's knowledge."""
        mine = sorted(one for one in self.plain.waiting.values() if one.line == line)
        for one in mine[:most]:
            del self.plain.waiting[one.run]
        self.order.renew(line, mine[most:])
        self.plain.forget()

    @rule(line=LINES, whole=st.booleans())
    def shut(self, line: Line, whole: bool) -> None:
        if not self.limited:
            return
        if whole:
            self.doors.shut_tasks.add((line.tenant, line.queue, line.task))
        else:
            self.doors.shut_keys.add((line.tenant, line.key))

    @rule(line=LINES)
    def open(self, line: Line) -> None:
        self.doors.shut_tasks.discard((line.tenant, line.queue, line.task))
        self.doors.shut_keys.discard((line.tenant, line.key))
        self.order.wake(line.tenant, line.key)

    @rule(line=LINES, seconds=st.integers(-5, 50))
    def correct(self, line: Line, seconds: int) -> None:
        """Of those of whom something waits, whose tags are therefore kept."""
        if any(one.line.tenant == line.tenant and one.line.key == line.key for one in self.plain.waiting.values()):
            self.order.charge(line.tenant, line.key, float(seconds))
            self.plain.tags[line.tenant] += seconds
            self.plain.key_tags[(line.tenant, line.key)] += seconds

    @invariant()
    def what_waits_is_known(self) -> None:
        known = Counter(candidate.line for candidate in self.plain.waiting.values())
        assert all(self.order.known(line) == count for line, count in known.items())


TestDispatch = Dispatch.TestCase


class Moves(RuleBasedStateMachine):
    """A heap beside a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.heap: Heap[int] = Heap()
        self.plain: dict[int, int] = {}

    @rule(item=st.integers(0, 5), key=st.integers(0, 9))
    def put(self, item: int, key: int) -> None:
        for _ in range(40):
            self.heap.put(item, key)
        self.plain[item] = key

    @rule(item=st.integers(0, 5))
    def drop(self, item: int) -> None:
        self.heap.drop(item)
        self.plain.pop(item, None)

    @rule(key=st.integers(0, 9))
    def until(self, key: int) -> None:
        out = list(self.heap.until(key))
        assert sorted(out) == sorted(item for item, place in self.plain.items() if place <= key)
        for item in out:
            del self.plain[item]

    @invariant()
    def the_least_is_first(self) -> None:
        first = self.heap.first()
        assert (None if first is None else first[0]) == min(self.plain.values(), default=None)
        assert set(self.plain) == {item for item in range(6) if item in self.heap}


TestMoves = Moves.TestCase


def test_a_pick_is_short_however_many_lines_limits_hold_back() -> None:
    """As when a tenant changes a limit under which it has 20,000 keys: others are picked meanwhile, all are asked."""
    keys = [f"k{number}" for number in range(20_000)]
    order = _order(_candidate(number, Line(TENANTS[0], "mail", "x.one", key)) for number, key in enumerate(keys))
    doors = Patient(shut_keys={(TENANTS[0], key) for key in keys})
    _pick_to_the_end(order, doors)
    doors.shut_keys.discard((TENANTS[0], "k5"))
    order.wake_all(TENANTS[0])
    order.offer([_candidate(-1, Line(TENANTS[1], "mail", "x.one", None))])
    [picked] = order.pick(room({"mail": 5}), 5, _one, doors)
    assert picked.line.tenant == TENANTS[1]
    assert [candidate.line.key for candidate in _pick_to_the_end(order, doors)] == ["k5"]


class Patient(Doors):
    """Counts how often it is asked for a key."""

    asked = 0

    def key(self, line: Line) -> bool:
        self.asked += 1
        return super().key(line)


def _pick_to_the_end(order: FairOrder, doors: Patient) -> list[Candidate]:
    """Pick until nobody is left out; no pick asks for more than a few hundred keys."""
    found: list[Candidate] = []
    while True:
        doors.asked = 0
        found += order.pick(room({"mail": 5}), 5, _one, doors)
        assert doors.asked <= 300
        if not order.unfinished:
            return found


def test_work_for_a_queue_without_room_gives_nobody_a_claim() -> None:
    stuck, busy, late = (
        Line(TENANTS[place], queue, "x.one", None) for place, queue in enumerate(("reports", "mail", "mail"))
    )
    order = _order([_candidate(-1, stuck), *(_candidate(1000 + number, busy) for number in range(2000))])
    assert len(order.pick(room({"mail": 1000, "reports": 0}), 1000, _one, Doors())) == 1000
    order.offer(_candidate(5000 + number, late) for number in range(1000))
    picked = Counter(one.line.tenant for one in order.pick(room({"mail": 100, "reports": 0}), 100, _one, Doors()))
    assert abs(picked[TENANTS[1]] - picked[TENANTS[2]]) <= 1


def test_a_run_too_long_to_wait_for_a_slot_is_not_overtaken_in_its_queue_and_holds_up_no_other() -> None:
    long = _candidate(0, Line(TENANTS[0], "mail", "x.long", None))
    behind = _candidate(1, Line(TENANTS[1], "mail", "x.one", None), 1)
    elsewhere = _candidate(2, Line(TENANTS[2], "reports", "x.one", None), 2)
    order = _order([behind, elsewhere, long])
    whole = Space(1, ahead=10, seconds=1.0)
    free = {"mail": Space(0, ahead=10, seconds=0.5), "reports": Space(1)}

    def seconds(line: Line) -> float:
        return 9.0 if line.task == "x.long" else 0.01

    assert order.pick(Room(whole, free), 10, seconds, Doors()) == [elsewhere]
    assert order.pick(room({"mail": 2}), 10, seconds, Doors()) == [long, behind]

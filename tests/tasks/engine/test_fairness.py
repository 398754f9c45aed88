"""The order of releases: nobody lost, nobody doubled, everybody in turn, and no room left empty."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tasks.engine.fairness import Candidate, FairOrder

TENANTS = [UUID(int=number) for number in range(1, 6)]
QUEUES = ("analysis", "mail", "reports")
START = datetime(2026, 1, 1, tzinfo=UTC)


@st.composite
def _candidates(draw: st.DrawFn) -> list[Candidate]:
    wanted = draw(
        st.lists(st.tuples(st.sampled_from(TENANTS), st.sampled_from(QUEUES), st.integers(0, 50)), max_size=60)
    )
    return [
        Candidate(START + timedelta(seconds=rank), UUID(int=1000 + number), tenant, queue, "x.y", None)
        for number, (tenant, queue, rank) in enumerate(wanted)
    ]


def _order(candidates: list[Candidate]) -> FairOrder:
    order = FairOrder()
    order.offer(candidates)
    return order


ROOMS = st.dictionaries(st.sampled_from(QUEUES), st.integers(0, 30))


@given(_candidates(), ROOMS, st.integers(0, 60))
def test_as_much_is_picked_as_there_is_room_and_work_for(
    candidates: list[Candidate], rooms: dict[str, int], most: int
) -> None:
    waiting = Counter(candidate.queue for candidate in candidates)
    left = dict(rooms)
    picked = _order(candidates).pick(left, most)
    assert len(picked) == min(most, sum(min(waiting[queue], room) for queue, room in rooms.items()))
    taken = Counter(candidate.queue for candidate in picked)
    assert {queue: rooms[queue] - taken[queue] for queue in rooms} == left
    assert all(room >= 0 for room in left.values())


@given(_candidates(), ROOMS, st.lists(st.integers(1, 9), min_size=1))
def test_everybody_is_picked_once_and_in_the_end(
    candidates: list[Candidate], rooms: dict[str, int], portions: list[int]
) -> None:
    order = _order(candidates)
    picked: list[Candidate] = []
    for turn in range(len(candidates) + 1):
        picked += order.pick(dict.fromkeys(QUEUES, 1000), portions[turn % len(portions)])
    assert sorted(picked) == sorted(candidates)
    assert all(order.known(tenant, queue) == 0 for tenant in TENANTS for queue in QUEUES)


@given(_candidates(), st.integers(1, 60))
def test_between_two_picks_of_a_tenant_no_other_with_work_is_passed_over_or_served_twice(
    candidates: list[Candidate], most: int
) -> None:
    picked = _order(candidates).pick(dict.fromkeys(QUEUES, 1000), most)
    waiting = Counter(candidate.tenant for candidate in candidates)
    last: dict[UUID, tuple[int, set[UUID]]] = {}
    for place, candidate in enumerate(picked):
        waiting[candidate.tenant] -= 1
        if candidate.tenant in last:
            before, had_work = last[candidate.tenant]
            between = [other.tenant for other in picked[before + 1 : place]]
            assert sorted(between) == sorted(had_work)
        others = {tenant for tenant, left in waiting.items() if left and tenant != candidate.tenant}
        last[candidate.tenant] = (place, others)


@given(_candidates(), st.integers(1, 60))
def test_inside_a_tenant_the_earliest_rank_comes_first(candidates: list[Candidate], most: int) -> None:
    picked = _order(candidates).pick(dict.fromkeys(QUEUES, 1000), most)
    for tenant in TENANTS:
        mine = [candidate for candidate in picked if candidate.tenant == tenant]
        assert mine == sorted(candidate for candidate in candidates if candidate.tenant == tenant)[: len(mine)]


@given(_candidates(), st.sampled_from(QUEUES))
def test_a_full_queue_holds_up_no_other(candidates: list[Candidate], full: str) -> None:
    rooms = {queue: 0 if queue == full else 1000 for queue in QUEUES}
    picked = _order(candidates).pick(rooms, 1000)
    assert sorted(picked) == sorted(candidate for candidate in candidates if candidate.queue != full)


def test_one_run_of_a_tenant_does_not_wait_behind_anothers_backlog() -> None:
    backlog = [Candidate(START, UUID(int=1000 + number), TENANTS[0], "mail", "x.y", None) for number in range(50_000)]
    order = _order(backlog)
    order.pick({"mail": 100}, 100)
    late = Candidate(START + timedelta(days=1), UUID(int=1), TENANTS[1], "mail", "x.y", None)
    order.offer([late])
    assert late in order.pick({"mail": 2}, 2)


class Dispatch(RuleBasedStateMachine):
    """Offers, picks and forgets in any order, beside a plain model of what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.order = FairOrder()
        self.waiting: dict[UUID, Candidate] = {}
        self.picked: set[UUID] = set()
        self.number = 0

    @initialize()
    def begin(self) -> None:
        assert self.order.pick({"mail": 5}, 5) == []

    @rule(
        tenant=st.sampled_from(TENANTS), queue=st.sampled_from(QUEUES), rank=st.integers(0, 9), count=st.integers(1, 4)
    )
    def offer(self, tenant: UUID, queue: str, rank: int, count: int) -> None:
        fresh = []
        for _ in range(count):
            self.number += 1
            fresh.append(
                Candidate(START + timedelta(seconds=rank), UUID(int=self.number), tenant, queue, "x.y", str(rank))
            )
        self.order.offer([*fresh, *fresh, *self.waiting.values()])
        self.waiting |= {candidate.run: candidate for candidate in fresh}

    @rule(rooms=ROOMS, most=st.integers(0, 10))
    def pick(self, rooms: dict[str, int], most: int) -> None:
        for candidate in self.order.pick(rooms, most):
            assert candidate.run not in self.picked
            assert self.waiting.pop(candidate.run) == candidate
            self.picked.add(candidate.run)

    @rule(tenant=st.sampled_from(TENANTS), queue=st.sampled_from(QUEUES))
    def read_anew(self, tenant: UUID, queue: str) -> None:
        self.order.forget(tenant, queue)
        assert self.order.known(tenant, queue) == 0
        mine = [one for one in self.waiting.values() if (one.tenant, one.queue) == (tenant, queue)]
        self.order.offer(mine)

    @invariant()
    def what_waits_is_known(self) -> None:
        known = Counter((candidate.tenant, candidate.queue) for candidate in self.waiting.values())
        for tenant in TENANTS:
            for queue in QUEUES:
                assert self.order.known(tenant, queue) == known[(tenant, queue)]


TestDispatch = Dispatch.TestCase

"""Caps are never exceeded, rates neither exceeded nor wasted, and only what a limit names is held back."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.engine.admission import EACH, Admission, Limit, LimitKind, Terms
from tasks.engine.fairness import FairOrder
from tasks.engine.lines import Candidate, Line
from tests.support.rooms import room

A, B = UUID(int=1), UUID(int=2)
START = datetime(2026, 1, 1, tzinfo=UTC)
SLACK = 1e-6


def _line(tenant: UUID = A, queue: str = "mail", task: str = "x.one", key: str | None = None) -> Line:
    return Line(tenant, queue, task, key)


def _run(number: int, line: Line) -> Candidate:
    return Candidate(START, UUID(int=100 + number), line)


def _limit(kind: LimitKind = LimitKind.CONCURRENCY, amount: float = 1, **named: object) -> Limit:
    return Limit(UUID(int=9), kind, amount, **named)  # type: ignore[arg-type]


def _lets(limits: Admission, line: Line) -> bool:
    """Whether a run may start, once what is not known of the rates has been read: nothing has been saved of them."""
    _ask(limits, line)
    limits.restore(dict.fromkeys(limits.unknown, 0.0))
    return _ask(limits, line)


def _ask(limits: Admission, line: Line) -> bool:
    return limits.task(line.tenant, line.queue, line.task) and limits.key(line)


@pytest.mark.parametrize(
    ("limit", "held", "free"),
    [
        (_limit(), [_line(), _line(queue="reports", task="x.two", key="k")], [_line(B)]),
        (_limit(task="x.one"), [_line(), _line(key="k")], [_line(task="x.two"), _line(B)]),
        (_limit(queue="mail"), [_line(), _line(task="x.two")], [_line(queue="reports"), _line(B)]),
        (_limit(key="k"), [_line(key="k"), _line(key="k", task="x.two")], [_line(), _line(key="other")]),
        (_limit(key=EACH), [_line(key="k"), _line(key="k", queue="reports")], [_line(), _line(key="other")]),
        (_limit(task="x.one", key="k"), [_line(key="k")], [_line(key="k", task="x.two"), _line()]),
    ],
)
@pytest.mark.parametrize("kind", [LimitKind.CONCURRENCY, LimitKind.RATE])
def test_a_limit_holds_back_what_it_names_and_nothing_else(
    limit: Limit, held: list[Line], free: list[Line], kind: LimitKind
) -> None:
    limits = Admission()
    limits.agree(A, Terms([_limit(kind, task=limit.task, queue=limit.queue, key=limit.key)]))
    for line in [*held, *free]:
        assert _lets(limits, line)
    limits.take(_run(0, held[0]))
    assert not any(_lets(limits, line) for line in held)
    assert all(_lets(limits, line) for line in free)
    limits.untake(_run(0, held[0]))
    assert all(_lets(limits, line) for line in held)


def test_all_limits_must_agree() -> None:
    limits = Admission()
    wide = Limit(UUID(int=1), LimitKind.CONCURRENCY, 2)
    narrow = Limit(UUID(int=2), LimitKind.CONCURRENCY, 1, task="x.one")
    limits.agree(A, Terms([wide, narrow]))
    limits.take(_run(0, _line()))
    assert not _lets(limits, _line())
    assert _lets(limits, _line(task="x.two"))
    limits.take(_run(1, _line(task="x.two")))
    assert not _lets(limits, _line(task="x.two"))
    limits.agree(A, Terms([narrow]))
    assert _lets(limits, _line(task="x.two"))
    assert not _lets(limits, _line())


@given(
    st.integers(1, 50),
    st.sampled_from([1.0, 60.0, 3600.0]),
    st.integers(1, 20),
    st.lists(st.floats(0, 100), min_size=1, max_size=80),
)
def test_in_no_time_do_more_runs_start_than_rate_and_burst_allow(
    amount: int, per: float, burst: int, pauses: list[float]
) -> None:
    limits = Admission()
    limits.agree(A, Terms([_limit(LimitKind.RATE, amount, per_seconds=per, burst=float(burst))]))
    limits.now = 1e9
    starts: list[float] = []
    for pause in pauses:
        limits.now += pause
        if _lets(limits, _line()):
            limits.take(_run(len(starts), _line()))
            starts.append(limits.now)
        else:
            opens = limits.next_opening()
            assert opens is not None
            assert limits.now < opens <= limits.now + per / amount + SLACK
    for first, begin in enumerate(starts):
        for last in range(first, len(starts)):
            assert last - first + 1 <= burst + (starts[last] - begin) * amount / per + SLACK


@given(st.integers(1, 50), st.integers(1, 20))
def test_a_rate_is_used_to_the_full_by_who_comes_when_it_opens(amount: int, burst: int) -> None:
    limits = Admission()
    limits.agree(A, Terms([_limit(LimitKind.RATE, amount, burst=float(burst))]))
    limits.now = begin = 1e6
    for number in range(burst + 100):
        if not _lets(limits, _line()):
            opens = limits.next_opening()
            assert opens is not None
            limits.now = opens + SLACK
            assert list(limits.opened()) == [(A, None)]
            assert _lets(limits, _line())
        limits.take(_run(number, _line()))
    assert limits.now - begin <= 100 / amount + 200 * SLACK


def test_a_rate_goes_on_where_another_leader_has_left_it() -> None:
    before, after = Admission(), Admission()
    for limits in (before, after):
        limits.agree(A, Terms([_limit(LimitKind.RATE, 1, per_seconds=60.0)]))
        limits.now = 1000.0
    before.take(_run(0, _line()))
    assert not _ask(after, _line()), "nothing is known yet"
    after.restore(before.arrivals([_line()]))
    after.now = 1059.0
    assert not _lets(after, _line())
    after.now = 1060.0
    assert _lets(after, _line())


def test_a_rate_that_is_made_faster_does_not_wait_out_the_old_one() -> None:
    limits = Admission()
    limits.agree(A, Terms([_limit(LimitKind.RATE, 1, per_seconds=3600.0)]))
    limits.now = 1000.0
    limits.take(_run(0, _line()))
    limits.agree(A, Terms([_limit(LimitKind.RATE, 10)]))
    limits.now = 1000.2
    assert _lets(limits, _line())


@given(st.integers(1, 4), st.integers(1, 3), st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), max_size=40))
def test_no_cap_is_exceeded_and_none_is_wasted(whole: int, each: int, rounds: list[tuple[int, int]]) -> None:
    """The order and the limits together: at every moment as much runs as the caps and the room let."""
    limits = Admission()
    every = Limit(UUID(int=1), LimitKind.CONCURRENCY, whole)
    limits.agree(A, Terms([every, Limit(UUID(int=2), LimitKind.CONCURRENCY, each, key=EACH)]))
    order = FairOrder({})
    lines = [_line(key="a"), _line(key="b"), _line(key="c", task="x.two"), _line(B)]
    order.offer(_run(100 * place + number, line) for place, line in enumerate(lines) for number in range(60))
    running: list[Line] = []
    for most, ends in rounds:
        for _ in range(min(ends, len(running))):
            line = running.pop(0)
            limits.vacate(line)
            order.wake(line.tenant, line.key)
        running += [candidate.line for candidate in order.pick(room({"mail": most}), most, lambda line: 1.0, limits)]
        assert sum(line.tenant == A for line in running) <= whole
        for line in lines[:3]:
            assert running.count(line) <= each
        if most and order.known(lines[3]):
            free = order.pick(room({"mail": 1}), 1, lambda line: 1.0, limits)
            assert free, "B is under no limit"
            running += [candidate.line for candidate in free]


def test_a_count_can_be_taken_anew() -> None:
    limits = Admission()
    limits.agree(A, Terms([_limit(amount=2)]))
    limits.recount([_line(), _line(), _line(B)])
    assert not _lets(limits, _line())
    limits.recount([_line()])
    assert _lets(limits, _line())


def test_a_rate_that_is_not_known_lets_nothing_through_and_says_who_waits_for_it() -> None:
    limits = Admission()
    each = _limit(LimitKind.RATE, 1, key=EACH)
    limits.agree(A, Terms([each]))
    limits.now = 1000.0
    for _ in range(2):
        assert not _ask(limits, _line(key="k"))
    assert limits.unknown == {(A, each.id, "k"): "k"}
    assert _lets(limits, _line(key="k"))
    assert not limits.unknown
    assert _ask(limits, _line())


def test_a_rate_is_asked_for_before_its_turn_comes() -> None:
    limits = Admission()
    each = _limit(LimitKind.RATE, 1, key=EACH)
    limits.agree(A, Terms([each]))
    limits.expect(_line(key="k"))
    assert limits.unknown == {(A, each.id, "k"): "k"}
    limits.restore({(A, each.id, "k"): 0.0})
    limits.expect(_line(key="k"))
    assert not limits.unknown


def test_what_was_saved_of_a_slower_rate_holds_for_no_longer_than_the_faster_one_asks() -> None:
    limits = Admission()
    limits.agree(A, Terms([_limit(LimitKind.RATE, 10)]))
    limits.now = 1000.0
    limits.restore({(A, UUID(int=9), None): 90_000.0})
    limits.now = 1000.2
    assert _ask(limits, _line())


def test_a_slow_rate_of_one_task_does_not_hide_when_that_of_another_opens() -> None:
    limits = Admission()
    slow = Limit(UUID(int=1), LimitKind.RATE, 1, 100.0, task="x.two")
    fast = Limit(UUID(int=2), LimitKind.RATE, 1, 1.0, task="x.one")
    limits.agree(A, Terms([fast, slow]))
    limits.now = 1000.0
    for task in ("x.one", "x.two"):
        assert _lets(limits, _line(task=task))
        limits.take(_run(1, _line(task=task)))
        assert not _lets(limits, _line(task=task))
    assert limits.next_opening() == 1001.0
    limits.now = 1001.0
    assert list(limits.opened()) == [(A, None)]
    assert _lets(limits, _line(task="x.one"))

"""How much is released: every slot filled, little ahead of them, and nothing that cannot start soon."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.engine.windows import Room, Space, Window

BUFFER = 0.05
SECONDS = st.sampled_from([0.0001, 0.001, 0.005, 0.02, 0.05, 0.1, 1.0, 300.0])
STEPS = st.lists(st.one_of(SECONDS, st.integers(0, 20)), max_size=120)


def _holding(number: int) -> tuple[UUID, int]:
    return UUID(int=number), 1


@given(st.integers(0, 6), STEPS)
def test_a_window_counts_as_a_plain_list_does(slots: int, steps: list[float | int]) -> None:
    """A number of seconds adds such a run, a whole number ends the run at that place."""
    window = Window(slots, BUFFER)
    plain: list[tuple[int, float]] = []
    started: list[tuple[int, float]] = []
    for number, step in enumerate(steps):
        if isinstance(step, float):
            window.add(_holding(number), step)
            plain.append((number, step))
        elif step < len(plain):
            ended = plain.pop(step)
            window.drop(_holding(ended[0]))
            window.drop(_holding(ended[0]))
        started = [one for one in started if one in plain]
        started += [one for one in plain if one not in started][: slots - len(started)]
        ahead = [seconds for one in plain if one not in started for seconds in (one[1],)]
        space = window.space(1.0)
        assert space.free == slots - len(started)
        startable = BUFFER * (space.free + sum(min(1.0, BUFFER / seconds) for _, seconds in started))
        if space.open:
            assert space.ahead == 64 * slots - len(ahead)
            assert space.seconds == pytest.approx(startable - sum(ahead), abs=1e-6)
        else:
            assert sum(ahead) >= startable / 2 - 1e-6


@given(st.integers(1, 6), st.lists(SECONDS, min_size=1, max_size=200))
def test_no_slot_stays_free_and_no_more_waits_than_starts_soon(slots: int, costs: list[float]) -> None:
    window = Window(slots, BUFFER)
    released: list[float] = []
    room = Room(window.space(1.0), {"mail": window.space(1.0)})
    for number, seconds in enumerate(costs):
        if not room.take("mail", seconds):
            assert not room.open("mail")
            break
        window.add(_holding(number), seconds)
        released.append(seconds)
    assert len(released) >= min(slots, len(costs))
    assert sum(released[slots:]) <= slots * BUFFER + 1e-9


def test_runs_that_take_long_are_not_released_behind_one_another() -> None:
    window = Window(4, BUFFER)
    for number in range(4):
        window.add(_holding(number), 1.0)
    assert not window.space(1.0).fits(1.0)
    assert window.space(1.0).fits(0.005)


def test_short_runs_are_released_ahead_of_their_slots() -> None:
    window = Window(4, BUFFER)
    released = 0
    for seconds in (0.005, 0.001):
        space = window.space(1.0)
        while space.fits(seconds):
            space.take(seconds)
            window.add(_holding(released), seconds)
            released += 1
    assert released == pytest.approx(4 + 4 * BUFFER / 0.005, abs=1)


def test_what_is_ahead_is_filled_up_when_half_of_it_is_left() -> None:
    window = Window(2, BUFFER)
    for number in range(2 + 20):
        window.add(_holding(number), 0.005)
    waiting = 20
    while not window.space(1.0).open:
        window.drop(_holding(20 - waiting))
        waiting -= 1
    assert waiting == 10


def test_without_a_share_of_the_buffer_there_is_a_run_for_each_slot() -> None:
    window = Window(2, BUFFER)
    for number in range(2):
        assert window.space(0.0).fits(0.001)
        window.add(_holding(number), 0.001)
    assert not window.space(0.0).fits(0.001)


def test_queues_of_a_pool_share_its_slots_and_keep_to_their_own() -> None:
    room = Room(Space(3), {"mail": Space(3), "reports": Space(1)})
    assert set(room.queues) == {"mail", "reports"}
    assert room.take("reports", 1.0)
    assert not room.open("reports")
    assert room.take("mail", 1.0)
    assert room.take("mail", 1.0)
    assert not room.open("mail")
    assert not room.queues
    assert not room.open("unknown")

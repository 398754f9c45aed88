"""Effects outside happen at most once, whoever asks for them, twice at the same time, or dies in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from tasks.engine import effects, runs
from tasks.engine.effects import Door, NotDone, Unconfirmed
from tasks.engine.ledger import Ledger
from tasks.engine.outcomes import Busy, Cancel, Fenced
from tenants import ids
from tenants.context import Principal
from tests.support.hands import Hands
from tests.support.installations import Installation, eventually


@pytest.fixture
def key() -> str:
    return "mail"


@pytest.fixture
def new_door(hands: Hands, tenant: Principal) -> Iterator[Callable[[], Door]]:
    """Makes the door of an attempt at work, on a connection of its own; all of them share their effects."""
    ledgers: list[Ledger] = []
    origin = ids.new()

    def make() -> Door:
        run, fence = hands.running(tenant)
        ledgers.append(Ledger(hands.installation.addresses.app, hands.engine, application="tests"))
        return Door(ledgers[-1], tenant.tenant, run, fence, origin)

    yield make
    for ledger in ledgers:
        ledger.close()


class Outside:
    """A provider that counts."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def __call__(self, idempotency_key: str) -> Any:
        self.keys.append(idempotency_key)
        return {"done": len(self.keys)}


def _dies(idempotency_key: str) -> Any:
    raise KeyboardInterrupt


def _begun(door: Door, key: str) -> None:
    """The attempt dies inside the call."""
    with pytest.raises(KeyboardInterrupt):
        effects.once(door, key, _dies)


def test_it_is_done_once_and_its_answer_is_kept(new_door: Callable[[], Door], key: str) -> None:
    outside = Outside()
    first = new_door()
    assert [effects.once(door, key, outside) for door in (first, first, new_door())] == [{"done": 1}] * 3
    assert len(outside.keys) == 1


def test_what_is_known_not_to_have_happened_is_done_later(new_door: Callable[[], Door], key: str) -> None:
    def refused(idempotency_key: str) -> Any:
        raise NotDone from ConnectionRefusedError()

    outside = Outside()
    door = new_door()
    with pytest.raises(ConnectionRefusedError):
        effects.once(door, key, refused)
    assert effects.once(door, key, outside) == {"done": 1}


def test_after_a_death_inside_the_call_nobody_does_it_again(
    new_door: Callable[[], Door], hands: Hands, key: str
) -> None:
    outside = Outside()
    dead, later = new_door(), new_door()
    _begun(dead, key)
    hands.expire(dead.run)
    for _ in range(2):
        with pytest.raises(Unconfirmed, match="effect 'mail' was begun"):
            effects.once(later, key, outside)
    assert outside.keys == []


@pytest.mark.parametrize("found", [None, {"done": 7}])
def test_after_a_death_inside_the_call_the_provider_is_asked(
    new_door: Callable[[], Door], hands: Hands, key: str, found: Any
) -> None:
    outside, asked = Outside(), Outside()
    dead, later = new_door(), new_door()
    _begun(dead, key)
    hands.expire(dead.run)

    def look_up(idempotency_key: str) -> Any:
        asked(idempotency_key)
        return found

    assert effects.once(later, key, outside, look_up) == (found or {"done": 1})
    assert len(outside.keys) == (found is None)
    assert len(set(asked.keys + outside.keys)) == 1


@pytest.mark.parametrize("found", [None, {"done": 7}])
def test_a_provider_that_knows_the_key_again_is_called_again(
    new_door: Callable[[], Door], hands: Hands, key: str, found: Any
) -> None:
    """Whether it can be asked too or not; what the asking finds comes first."""
    first, again = Outside(), Outside()

    def call(idempotency_key: str) -> Any:
        first(idempotency_key)
        raise KeyboardInterrupt

    dead, later = new_door(), new_door()
    with pytest.raises(KeyboardInterrupt):
        effects.once(dead, key, call)
    hands.expire(dead.run)
    answer = effects.once(later, key, again, (lambda _: found) if found else None, repeatable=True)
    assert answer == (found or {"done": 1})
    assert again.keys == ([] if found else first.keys)


def test_once_a_cancel_has_been_accepted_nothing_begins_outside(
    new_door: Callable[[], Door], installation: Installation, tenant: Principal, key: str
) -> None:
    outside = Outside()
    door, other = new_door(), new_door()
    installation.write(tenant, runs.cancel, door.run)
    with pytest.raises(Cancel):
        effects.once(door, key, outside)
    assert outside.keys == []
    assert effects.once(other, key, outside) == {"done": 1}
    assert effects.once(door, key, outside) == {"done": 1}


def test_a_replay_waits_while_another_that_lives_is_about_to_do_it(new_door: Callable[[], Door], key: str) -> None:
    outside = Outside()
    first, second = new_door(), new_door()
    _begun(first, key)
    with pytest.raises(Busy):
        effects.once(second, key, outside, outside)
    assert outside.keys == []


def test_many_replays_at_the_same_time_do_it_once(new_door: Callable[[], Door], key: str) -> None:
    doors = [new_door() for _ in range(6)]
    together = threading.Barrier(len(doors))
    outside = Outside()

    def ask(door: Door) -> Any:
        together.wait(10)
        try:
            return effects.once(door, key, outside)
        except Busy:
            return None

    with ThreadPoolExecutor(len(doors)) as pool:
        answers = list(pool.map(ask, doors))
    assert len(outside.keys) == 1
    assert all(answer in (None, {"done": 1}) for answer in answers)
    assert {"done": 1} in answers


def test_who_has_lost_the_lease_does_nothing(new_door: Callable[[], Door], hands: Hands, key: str) -> None:
    outside = Outside()
    door = new_door()
    hands.expire(door.run)
    with pytest.raises(Fenced):
        effects.once(door, key, outside)
    assert outside.keys == []


def test_an_answer_that_comes_after_the_lease_is_lost_is_not_taken_for_anothers(
    new_door: Callable[[], Door], hands: Hands, key: str
) -> None:
    late, other = new_door(), new_door()

    def call(idempotency_key: str) -> Any:
        hands.expire(late.run)
        assert effects.once(other, key, Outside(), lambda _: {"done": 2}) == {"done": 2}
        assert hands.renew(late.run, late.fence)[0] == "gone"
        return {"done": 1}

    with pytest.raises(Fenced):
        effects.once(late, key, call)
    assert effects.once(other, key, Outside()) == {"done": 2}


def test_a_row_that_is_forgotten_while_another_asks_for_it_is_made_anew(
    installation: Installation, new_door: Callable[[], Door], key: str
) -> None:
    """It is there for the insert and gone for the look: between the two its maker has learnt that nothing happened."""
    first, second = new_door(), new_door()
    named, outside = f"{first.effects_of}:{key}", Outside()
    first.ledger.call(
        "SELECT * FROM begin_effect(%s, %s, %s, %s, %s)", first.tenant, first.run, first.fence, named, ids.new()
    )
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
    with closing(psycopg2.connect(installation.addresses.owner)) as third, third.cursor() as cursor:
        cursor.execute("SELECT 1 FROM effects WHERE key = %s FOR UPDATE", (named,))
        with ThreadPoolExecutor(2) as pool:
            forgotten = pool.submit(
                first.ledger.call, "SELECT forget_effect(%s, %s, %s, %s)", first.tenant, first.run, first.fence, named
            )
            eventually(lambda: installation.rows(waiting, "%forget_effect%"))
            done = pool.submit(effects.once, second, key, outside, lambda _: None)
            eventually(lambda: installation.rows(waiting, "%begin_effect%"))
            third.commit()
            forgotten.result()
            assert done.result() == {"done": 1}
    assert effects.once(second, key, outside) == {"done": 1}
    assert len(outside.keys) == 1

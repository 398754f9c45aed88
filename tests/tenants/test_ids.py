"""Identifiers go out and come back unchanged, and whatever else comes in names nothing."""

from __future__ import annotations

import time
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tenants import ids
from tenants.errors import NotFound

KINDS = st.from_regex(r"[a-z]{2,8}", fullmatch=True)


@given(KINDS, st.uuids())
def test_what_is_shown_is_read_back(kind: str, value: UUID) -> None:
    shown = ids.show(kind, value)
    assert ids.read(kind, shown) == value
    assert shown.isascii()
    assert len(shown) == len(kind) + 27


@given(st.uuids(), st.uuids())
def test_the_outside_form_sorts_as_the_id_does(one: UUID, other: UUID) -> None:
    assert (ids.show("run", one) < ids.show("run", other)) == (one < other)


@given(st.text(max_size=60))
def test_anything_else_is_not_found(text: str) -> None:
    with pytest.raises(NotFound):
        ids.read("run", text)


@given(st.uuids(), st.integers(0, 29), st.characters())
def test_one_other_character_makes_another_id_or_none(value: UUID, place: int, character: str) -> None:
    shown = ids.show("run", value)
    altered = shown[:place] + character + shown[place + 1 :]
    assume(altered != shown)
    try:
        assert ids.read("run", altered) != value
    except NotFound:
        return
    assert ids.show("run", ids.read("run", altered)) == altered


@pytest.mark.parametrize("kind", ["key", "ru", "runs", "", "RUN", "run_"])
def test_an_id_of_another_kind_is_not_found(kind: str) -> None:
    with pytest.raises(NotFound):
        ids.read("run", ids.show(kind, ids.new()))


def test_new_ids_are_uuids_of_version_7_that_carry_their_time() -> None:
    before = time.time_ns() // 1_000_000
    made = [ids.new() for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    assert len(set(made)) == 1000
    for value in made:
        assert (value.version, value.variant) == (7, "specified in RFC 4122")
        assert before <= value.int >> 80 <= after


def test_ids_made_later_sort_later() -> None:
    first = ids.new()
    moment = first.int >> 80
    later = ids.new()
    while later.int >> 80 == moment:
        later = ids.new()
    assert first < later

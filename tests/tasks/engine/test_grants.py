"""A grant says what was signed, or it says nothing."""

from __future__ import annotations

import time
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import SecretStr

from tasks.engine import grants
from tasks.engine.grants import BadGrant, Grant

RING = {"k1": SecretStr("an-old-key-0123456789"), "k2": SecretStr("the-newest-key-0123456789")}
NAMES = st.from_regex(r"[a-z_]{1,20}(\.[a-z_]{1,20})?", fullmatch=True)
GRANTS = st.builds(
    Grant,
    tenant=st.uuids(),
    run=st.uuids(),
    fence=st.integers(0, 2**62),
    task=NAMES,
    queue=NAMES,
    body=st.text().map(grants.digest),
    expires=st.integers(0, 2**40),
)
GRANT = Grant(UUID(int=1), UUID(int=2), 3, "diagnostics.echo", "diagnostics", grants.digest("body"), 2**40)


@given(GRANTS)
def test_what_was_signed_is_read_back(grant: Grant) -> None:
    assert grants.read(RING, grants.sign(RING, grant)) == grant


@given(GRANTS, st.data())
def test_any_other_character_at_any_place_is_refused(grant: Grant, data: st.DataObject) -> None:
    text = grants.sign(RING, grant)
    place = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.characters(exclude_characters=text[place]))
    with pytest.raises(BadGrant):
        grants.read(RING, text[:place] + character + text[place + 1 :])


def test_every_single_bit_matters() -> None:
    signed = grants.sign(RING, GRANT).encode()
    for place in range(len(signed)):
        for bit in range(7):
            altered = bytearray(signed)
            altered[place] ^= 1 << bit
            with pytest.raises(BadGrant):
                grants.read(RING, altered.decode("ascii"))


@given(GRANTS, st.integers(0, 400), st.integers(0, 400))
def test_a_part_of_a_grant_is_none(grant: Grant, start: int, end: int) -> None:
    text = grants.sign(RING, grant)
    part = text[start : len(text) - end]
    assume(part != text)
    with pytest.raises(BadGrant):
        grants.read(RING, part)


@given(GRANTS, GRANTS)
def test_the_seal_of_one_grant_closes_no_other(one: Grant, other: Grant) -> None:
    assume(one != other)
    fields, _, _ = grants.sign(RING, one).rpartition("|")
    _, _, seal = grants.sign(RING, other).rpartition("|")
    with pytest.raises(BadGrant) as refused:
        grants.read(RING, f"{fields}|{seal}")
    assert refused.value.reason == "signature"


@given(st.text(max_size=1200) | st.integers() | st.binary() | st.lists(st.text(max_size=5)))
def test_anything_else_is_refused(text: object) -> None:
    with pytest.raises(BadGrant) as refused:
        grants.read(RING, text)
    assert refused.value.reason in {"malformed", "signature"}


def test_no_grant_is_told_apart() -> None:
    with pytest.raises(BadGrant) as refused:
        grants.read(RING, None)
    assert refused.value.reason == "missing"


def test_the_newest_key_signs_and_older_ones_still_verify() -> None:
    old = {"k1": RING["k1"]}
    assert grants.read(RING, grants.sign(old, GRANT)) == GRANT
    with pytest.raises(BadGrant):
        grants.read(old, grants.sign(RING, GRANT))


@pytest.mark.parametrize("ring", [{}, {"k2": SecretStr("another-key-of-that-name")}, {"k2": SecretStr("")}])
def test_without_the_key_nothing_is_believed(ring: dict[str, SecretStr]) -> None:
    with pytest.raises(BadGrant):
        grants.read(ring, grants.sign(RING, GRANT))


def test_a_grant_ends() -> None:
    assert not grants.expired(replace(GRANT, expires=int(time.time()) + 60))
    assert grants.expired(replace(GRANT, expires=int(time.time()) - 1))

"""Encryption: it opens in its place, under its key, whole, and nowhere else."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from tenants import encryption
from tenants.errors import Misconfigured

OLD = {"k1": SecretStr("the first key of a ring, 0123456789")}
RING = {**OLD, "k2": SecretStr("the second key of a ring, 0123456789")}
DATA = b"sk_live_of_a_provider"


def test_what_was_encrypted_opens_in_its_place() -> None:
    key, sealed = encryption.encrypt(RING, DATA, "tenant", "name")
    assert key == "k2"
    assert DATA not in sealed
    assert encryption.decrypt(RING, key, sealed, "tenant", "name") == DATA
    assert encryption.encrypt(RING, DATA, "tenant", "name")[1] != sealed


@pytest.mark.parametrize("place", [("other", "name"), ("tenant", "other"), ("tenant",), ("tenant", "name", ""), ()])
def test_it_opens_in_no_other_place(place: tuple[str, ...]) -> None:
    key, sealed = encryption.encrypt(RING, DATA, "tenant", "name")
    assert encryption.decrypt(RING, key, sealed, *place) is None


@pytest.mark.parametrize("key", ["k1", "k3", ""])
def test_it_opens_under_no_other_key(key: str) -> None:
    _, sealed = encryption.encrypt(RING, DATA, "tenant", "name")
    assert encryption.decrypt(RING, key, sealed, "tenant", "name") is None
    assert encryption.decrypt({key: RING["k2"]}, key, sealed, "tenant", "name") is None


def test_no_bit_of_it_can_be_changed() -> None:
    key, sealed = encryption.encrypt(RING, DATA, "tenant", "name")
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        assert encryption.decrypt(RING, key, bytes(changed), "tenant", "name") is None
    for length in range(len(sealed)):
        assert encryption.decrypt(RING, key, sealed[:length], "tenant", "name") is None


def test_the_newest_key_encrypts_and_older_ones_still_open() -> None:
    key, sealed = encryption.encrypt(OLD, DATA, "tenant", "name")
    assert encryption.decrypt(RING, key, sealed, "tenant", "name") == DATA


@pytest.mark.parametrize("ring", [{}, {"k1": SecretStr("")}, {"k1": SecretStr("short")}])
def test_nothing_is_encrypted_without_a_key(ring: dict[str, SecretStr]) -> None:
    with pytest.raises(Misconfigured):
        encryption.encrypt(ring, DATA, "tenant", "name")
    assert encryption.decrypt({"k1": SecretStr("")}, "k1", bytes(40), "tenant", "name") is None

"""Signatures and access tokens: nothing is believed that was not signed by us, for us, and for now."""

from __future__ import annotations

import base64
import hmac
import json
import time
from typing import Any

import pytest
import time_machine
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tenants import ids, signing
from tenants.errors import Misconfigured, Unauthenticated
from tenants.settings import Auth

SECRET = "a-secret-for-tests-0123456789abcdef"
OTHER = "another-secret-for-tests-0123456789"
AUTH = Auth(token_keys={"k1": SecretStr(OTHER), "k2": SecretStr(SECRET)}, access_token_seconds=900)
RING = AUTH.token_keys
TENANT, SESSION = ids.new(), ids.new()


def _token(header: dict[str, Any] | None = None, claims: dict[str, Any] | None = None, key: str = SECRET) -> str:
    now = int(time.time())
    base = {
        "iss": "tenantry",
        "aud": "tenantry-api",
        "iat": now,
        "nbf": now,
        "exp": now + 900,
        "tid": ids.show("ten", TENANT),
        "sid": ids.show("ses", SESSION),
    }
    parts = [
        {name: value for name, value in part.items() if value is not None}
        for part in ({"alg": "HS256", "kid": "k2", **(header or {})}, {**base, **(claims or {})})
    ]
    text = ".".join(_encoded(json.dumps(part).encode()) for part in parts)
    digest = "sha512" if parts[0]["alg"] == "HS512" else "sha256"
    return f"{text}.{_encoded(hmac.digest(key.encode(), text.encode(), digest))}"


def _unsigned(header: dict[str, Any]) -> str:
    parts = [header, json.loads(base64.urlsafe_b64decode(_token().split(".")[1] + "=="))]
    return ".".join(_encoded(json.dumps(part).encode()) for part in parts) + "."


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_a_token_says_what_it_was_issued_for() -> None:
    read = signing.read_access(AUTH, signing.issue(AUTH, TENANT, SESSION))
    assert (read.tenant, read.session) == (TENANT, SESSION)
    assert 890 < read.expires - time.time() <= 900
    assert signing.read_access(AUTH, _token()).session == SESSION


def test_a_token_of_an_older_key_of_the_ring_is_good() -> None:
    older = Auth(token_keys={"k1": SecretStr(OTHER)})
    assert signing.read_access(AUTH, signing.issue(older, TENANT, SESSION)).tenant == TENANT


@pytest.mark.parametrize(
    "forge",
    [
        lambda: "",
        lambda: "x",
        lambda: "a.b.c",
        lambda: _token()[:-3] + "AAA",
        lambda: _token(key=OTHER),
        lambda: _token({"kid": "k9"}),
        lambda: _token({"kid": None}),
        lambda: _token({"kid": "k" * 10_000}),
        lambda: _token({"alg": "HS512"}),
        lambda: _token({"crit": ["unknown"], "unknown": 1}),
        lambda: _unsigned({"alg": "none"}),
        lambda: _unsigned({"alg": "HS256", "kid": "k2"}),
        lambda: _token(claims={"iss": "elsewhere"}),
        lambda: _token(claims={"aud": "something-else"}),
        lambda: _token(claims={"nbf": int(time.time()) + 3600}),
        lambda: _token(claims={"exp": None}),
        lambda: _token(claims={"nbf": None}),
        lambda: _token(claims={"iss": None}),
        lambda: _token(claims={"aud": None}),
        lambda: _token(claims={"tid": None}),
        lambda: _token(claims={"sid": "run_nonsense"}),
        lambda: _token(claims={"tid": ids.show("run", TENANT)}),
        lambda: _token(claims={"exp": "soon"}),
        lambda: _token(claims={"exp": 1e400}),
        lambda: _token(claims={"exp": 1, "aud": "something-else"}),
        lambda: json.dumps({"payload": "e30", "signatures": []}),
    ],
)
def test_a_forged_token_is_refused(forge: Any) -> None:
    with pytest.raises(Unauthenticated) as refused:
        signing.read_access(AUTH, forge())
    assert refused.value.reason == "invalid"


def test_a_token_ends_exactly_at_its_time() -> None:
    with time_machine.travel("2026-11-20T10:00:00Z", tick=False) as clock:
        token = signing.issue(AUTH, TENANT, SESSION)
        clock.shift(899)
        signing.read_access(AUTH, token)
        for later in (1, 15, 3600):
            clock.shift(later)
            with pytest.raises(Unauthenticated) as refused:
                signing.read_access(AUTH, token)
            assert refused.value.reason == "expired"


def test_without_keys_nothing_is_signed_and_nothing_believed() -> None:
    token = signing.issue(AUTH, TENANT, SESSION)
    for ring in ({}, {"k2": SecretStr("")}):
        empty = Auth(token_keys=ring)
        with pytest.raises(Misconfigured):
            signing.issue(empty, TENANT, SESSION)
        with pytest.raises(Unauthenticated):
            signing.read_access(empty, token)
        assert not signing.verify(ring, "k2", b"data", "")


def test_the_newest_key_signs_and_all_verify() -> None:
    key, mac = signing.sign(RING, b"data")
    assert key == "k2"
    assert signing.verify(RING, key, b"data", mac)
    older = signing.sign({"k1": SecretStr(OTHER)}, b"data")
    assert signing.verify(RING, *_between(older, b"data"))
    assert not signing.verify({"k1": SecretStr(OTHER)}, key, b"data", mac)


@given(st.binary(max_size=200), st.integers(0, 10_000), st.integers(1, 255))
def test_a_sealed_text_opens_unchanged_or_not_at_all(data: bytes, place: int, change: int) -> None:
    sealed = signing.seal(RING, data)
    assert signing.unseal(RING, sealed) == data
    altered = bytearray(sealed.encode())
    altered[place % len(altered)] ^= change
    assert signing.unseal(RING, altered.decode("latin-1")) is None


def test_a_short_pepper_is_refused() -> None:
    with pytest.raises(Misconfigured):
        signing.digest(SecretStr("short"), "text")


def _between(signed: tuple[str, str], data: bytes) -> tuple[str, bytes, str]:
    return signed[0], data, signed[1]

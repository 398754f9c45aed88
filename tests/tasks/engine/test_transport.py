"""The guard at the queue: only what the dispatcher signed gets past it, and nothing gets it out of step."""

from __future__ import annotations

import base64
import math
import time
from datetime import UTC
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import SecretStr

from tasks.engine import grants, messages, publish
from tasks.engine.grants import BadGrant
from tasks.engine.lines import Candidate, Line
from tasks.engine.messages import Release
from tenants import ids

RING = {"k1": SecretStr("a-key-for-tests-0123456789")}
RELEASE = Release(UUID(int=1), UUID(int=2), "diagnostics.echo", "diagnostics", 3)
REASONS = {"size", "json", "shape", "missing", "malformed", "signature", "mismatch", "expired"}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=15,
)


def _message() -> bytes:
    return messages.encode(RELEASE, RING, time.time() + 60)


def _refusal(element: bytes, queue: str = "diagnostics") -> str:
    with pytest.raises(BadGrant) as refused:
        messages.decode(RING, element, queue)
    return refused.value.reason


def _paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, part in inner for path in [(*above, key), *_paths(part, (*above, key))]]


def _replaced(payload: Any, path: tuple[Any, ...], value: Any) -> bytes:
    place = payload
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return orjson.dumps(payload)


PATHS = _paths(orjson.loads(_message()))


def test_what_the_dispatcher_sends_gets_through() -> None:
    admitted = messages.decode(RING, _message(), "diagnostics")
    assert admitted["headers"]["id"] == ids.show("run", RELEASE.run)
    args, kwargs, _ = orjson.loads(base64.b64decode(admitted["body"]))
    assert (args, kwargs) == ([ids.show("run", RELEASE.run)], {})


def test_in_another_queue_it_is_refused() -> None:
    assert _refusal(_message(), "sales") == "mismatch"


def test_after_its_time_it_is_refused() -> None:
    element = messages.encode(RELEASE, RING, time.time() - 5)
    assert _refusal(element) == "expired"
    assert messages.decode(RING, element, "diagnostics", skew=-10)
    with pytest.raises(BadGrant):
        messages.decode(RING, _message(), "diagnostics", skew=3600)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(element: bytes) -> None:
    assert _refusal(element) in REASONS


@given(JSON)
def test_no_json_raises_anything_else(value: object) -> None:
    assert _refusal(orjson.dumps(value)) in REASONS


@given(st.sampled_from(PATHS), JSON)
def test_no_value_anywhere_in_a_message_raises_anything_else(path: tuple[Any, ...], value: object) -> None:
    element = _replaced(orjson.loads(_message()), path, value)
    reason, admitted = _outcome(element)
    assert reason in REASONS or _signed(admitted) == _signed(orjson.loads(_message()))


def _outcome(element: bytes) -> tuple[str, dict[str, Any]]:
    """The reason of the refusal, or the message that gets through."""
    try:
        return "", messages.decode(RING, element, "diagnostics")
    except BadGrant as refused:
        return refused.reason, {}


def _signed(message: dict[str, Any]) -> dict[str, Any]:
    """The message without what differs from one to the next."""
    properties = {**message["properties"], "delivery_tag": None}
    headers = {**message["headers"], grants.HEADER: None}
    return {**message, "headers": headers, "properties": properties}


SIGNED = [("body",), ("headers", "task"), ("headers", "id"), ("headers", "root_id"), ("headers", grants.HEADER)]


@pytest.mark.parametrize("path", SIGNED, ids=lambda path: path[-1])
def test_one_altered_byte_of_what_was_signed_is_refused(path: tuple[str, ...]) -> None:
    original = orjson.loads(_message())
    text = original["body"] if path == ("body",) else original["headers"][path[-1]]
    for place, character in enumerate(text):
        other = text[:place] + ("A" if character != "A" else "B") + text[place + 1 :]
        assert _refusal(_replaced(orjson.loads(_message()), path, other)) in REASONS - {"json", "size"}


@pytest.mark.parametrize("name", ["eta", "expires", "group", "shadow", "parent_id"])
@given(value=JSON)
def test_no_other_order_to_celery_gets_through(name: str, value: object) -> None:
    assume(value is not None)
    assert _refusal(_replaced(orjson.loads(_message()), ("headers", name), value)) == "mismatch"


@given(st.lists(JSON, max_size=4))
def test_the_body_cannot_bring_arguments_or_callbacks(args: list[object]) -> None:
    body = base64.b64encode(orjson.dumps([args, {}, {"callbacks": [1]}])).decode()
    assert _refusal(_replaced(orjson.loads(_message()), ("body",), body)) == "mismatch"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_whatever_is_missing_nothing_breaks(path: tuple[Any, ...]) -> None:
    payload = orjson.loads(_message())
    place = payload
    for part in path[:-1]:
        place = place[part]
    del place[path[-1]]
    reason, _ = _outcome(orjson.dumps(payload))
    assert reason in REASONS or path[0] == "properties"


def test_a_message_that_kombu_put_back_gets_through() -> None:
    element = _replaced(orjson.loads(_message()), ("headers", "redelivered"), True)
    assert _signed(messages.decode(RING, element, "diagnostics")) == _signed(orjson.loads(_message()))


def test_a_huge_element_is_not_even_parsed() -> None:
    assert _refusal(b"[" * (64 * 1024 + 1)) == "size"
    assert _refusal(b"[" * (64 * 1024)) == "json"


@given(st.text(max_size=2000))
def test_no_sound_of_a_bell_is_mistaken(text: str) -> None:
    assert publish.heard(text.encode("utf-8", "replace")) is None


TEXTS = st.text(max_size=20).filter(str.isprintable)
LINES = st.builds(Line, tenant=st.uuids(), queue=TEXTS, task=TEXTS, key=st.none() | TEXTS)


@given(
    st.builds(publish.Bell, line=LINES)
    | st.builds(
        lambda line, run, rank: publish.Bell(line, Candidate(rank, run, line)),
        LINES,
        st.uuids(),
        st.datetimes(timezones=st.just(UTC)),
    )
    | st.builds(publish.Ended, run=st.uuids(), fence=st.integers(0, 2**62), seconds=st.floats(0, 1e6))
)
def test_a_bell_is_heard_as_it_was_rung(bell: publish.Bell | publish.Ended) -> None:
    assert publish.heard(bell.encode()) == bell


@given(JSON)
def test_what_is_no_bell_is_not_heard(value: object) -> None:
    assume(not (isinstance(value, list) and len(value) in (3, 4, 6)))
    assert publish.heard(orjson.dumps(value)) is None


@given(st.lists(JSON | st.just(UUID(int=7).hex), min_size=3, max_size=6))
def test_what_is_heard_can_be_counted_with(values: list[object]) -> None:
    match publish.heard(orjson.dumps(values)):
        case publish.Bell(line, candidate):
            assert candidate is None or candidate.rank.tzinfo is UTC
            assert isinstance(line.tenant, UUID)
            assert all(isinstance(name, str) for name in line[1:3])
            assert isinstance(line.key, str | None)
        case publish.Ended(_, fence, seconds):
            assert isinstance(fence, int)
            assert math.isfinite(seconds)
            assert seconds >= 0


@pytest.mark.parametrize(
    "forged",
    [
        [UUID(int=7).hex, "mail", "x.one", "a\0b"],
        [UUID(int=7).hex, "mail\0", "x.one", None, UUID(int=8).hex, "2026-11-20T09:30:00+00:00"],
        [UUID(int=7).hex, 1, 1e300],
    ],
)
def test_a_bell_of_what_can_not_be_is_not_heard(forged: list[object]) -> None:
    assert publish.heard(orjson.dumps(forged)) is None

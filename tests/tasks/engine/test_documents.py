"""What PostgreSQL can't keep is told before it is tried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import psycopg2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.engine import documents
from tests.support.installations import Installation
from tests.support.logins import Login

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-(2**53), 2**53) | st.text(st.characters()) | st.just("\0"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def login(installation: Installation) -> Iterator[Login]:
    opened = Login(installation.addresses.app)
    yield opened
    opened.close()


@given(value=JSON)
@example(value="\0")
@example(value="\\u0000")
@example(value="\\\\u0000")
@example(value="\\\0")
@example(value={"\0": 1})
@example(value="\ud800")
@example(value=2**64)
@example(value=float("nan"))
def test_what_is_encoded_can_be_stored_and_nothing_storable_is_refused(login: Login, value: Any) -> None:
    try:
        encoded = documents.encode(value)
    except ValueError:
        with pytest.raises((psycopg2.DataError, UnicodeEncodeError, TypeError)):
            login.rows("SELECT %s::jsonb", _plainly(value))
    else:
        assert login.value("SELECT %s::jsonb", encoded.decode()) == orjson.loads(encoded)


def _plainly(value: Any) -> str:
    return orjson.dumps(value).decode()


def test_what_is_nested_too_deeply_is_told() -> None:
    value: Any = 1
    for _ in range(2000):
        value = [value]
    with pytest.raises(ValueError, match="can't be written as JSON"):
        documents.encode(value)


@given(st.text(st.characters()))
def test_readable_text_can_be_stored_and_is_left_alone_where_it_can(login: Login, text: str) -> None:
    readable = documents.readable(text)
    assert login.value("SELECT %s::text", readable) == readable
    if "\0" not in text and text.isprintable():
        assert readable == text

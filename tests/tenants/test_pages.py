"""Pages: every row exactly once, in order, both ways, whatever the sizes; and cursors that lead nowhere else."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from tasks.engine.models import RunEvent
from tasks.families.diagnostics import service
from tasks.families.diagnostics.models import Mark
from tenants import db, ids, pages
from tenants.context import Principal
from tenants.errors import InvalidInput
from tenants.pages import Page
from tests.support.installations import Installation

ROWS = 31
SIZES = st.lists(st.integers(2, 20), min_size=1, max_size=6)
in_a_database = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def owner(installation: Installation) -> Principal:
    """A tenant with some marks."""
    made = installation.tenant("pages", "diagnostics")

    def fill(session: Session) -> None:
        for number in range(ROWS):
            service.mark(session, "page", str(number), ids.new(), 1)

    installation.write(made, fill)
    return made


@pytest.fixture(scope="module")
def reader(installation: Installation, owner: Principal) -> Iterator[Session]:
    """A session in that tenant."""
    engine = db.sync_engine(installation.addresses.app, pool_size=1)
    with db.open_session(engine, owner) as opened:
        yield opened
    engine.dispose()


@pytest.fixture
def read(reader: Session) -> Callable[..., Page[Mark]]:
    """Reads a page of the marks."""
    marks = select(Mark).where(Mark.key == "page")
    return lambda **options: pages.read(reader, marks, Mark.id, "mark", **options)


@pytest.fixture
def in_order(read: Callable[..., Page[Mark]]) -> list[UUID]:
    return [row.id for row in read(first=100).items]


@in_a_database
@given(sizes=SIZES)
def test_forwards_every_row_comes_exactly_once(
    read: Callable[..., Page[Mark]], in_order: list[UUID], sizes: list[int]
) -> None:
    seen: list[UUID] = []
    after = None
    for turn in range(ROWS + 1):
        page = read(first=sizes[turn % len(sizes)], after=after)
        assert page.has_previous == (after is not None)
        seen += [row.id for row in page.items]
        if not page.has_next:
            break
        after = page.cursors[-1]
    assert seen == in_order


@in_a_database
@given(sizes=SIZES)
def test_backwards_every_row_comes_exactly_once(
    read: Callable[..., Page[Mark]], in_order: list[UUID], sizes: list[int]
) -> None:
    seen: list[UUID] = []
    before = None
    for turn in range(ROWS + 1):
        page = read(last=sizes[turn % len(sizes)], before=before)
        assert page.has_next == (before is not None)
        seen = [row.id for row in page.items] + seen
        if not page.has_previous:
            break
        before = page.cursors[0]
    assert seen == in_order


@in_a_database
@given(one=st.integers(0, ROWS - 1), other=st.integers(0, ROWS - 1), size=st.integers(1, 20))
def test_between_two_cursors_stand_the_rows_between_them(
    read: Callable[..., Page[Mark]], in_order: list[UUID], one: int, other: int, size: int
) -> None:
    after, before = (pages.encode("mark", in_order[place]) for place in (one, other))
    between = in_order[one + 1 : other] if one < other else []
    assert [row.id for row in read(first=size, after=after, before=before).items] == between[:size]
    assert [row.id for row in read(last=size, after=after, before=before).items] == between[-size:]


def test_twenty_rows_when_nothing_is_said(read: Callable[..., Page[Mark]], in_order: list[UUID]) -> None:
    assert [row.id for row in read().items] == in_order[:20]
    assert in_order == sorted(in_order, reverse=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"first": 0}, "first"),
        ({"first": -1}, "first"),
        ({"first": 101}, "first"),
        ({"last": 0}, "last"),
        ({"last": 10**9}, "last"),
        ({"first": 1, "last": 1}, "last"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(
    read: Callable[..., Page[Mark]], options: dict[str, int], named: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        read(**options)
    assert [issue.path for issue in refused.value.issues] == [(named,)]


def _cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


HOSTILE = [
    "", "=", "====", "a", "\0", "é", "💥", "../..", "%27", "x" * 10_000,
    _cursor("mark"), _cursor("mark:"), _cursor("mark:5"), _cursor("mark:-5"), _cursor("mark:1_0"), _cursor("mark:٣"),
    _cursor("mark: 5"), _cursor(f"mark:{10**40}"), _cursor("mark:" + "g" * 32), _cursor("mark:" + "1" * 32 + "0"),
    _cursor("mark:" + "-" * 32), _cursor("other:" + "0" * 32), _cursor("MARK:" + "0" * 32),
    _cursor("mark:" + "0" * 32) + "=",
]  # fmt: skip


@pytest.mark.parametrize("place", ["after", "before"])
@pytest.mark.parametrize("cursor", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_cursor_is_refused_by_name(read: Callable[..., Page[Mark]], place: str, cursor: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read(**{place: cursor})
    assert [issue.path for issue in refused.value.issues] == [(place,)]


@in_a_database
@given(cursor=st.text(max_size=80) | st.binary(max_size=60).map(lambda data: _cursor(data.decode("latin-1"))))
def test_no_text_at_all_breaks_a_page(read: Callable[..., Page[Mark]], cursor: str) -> None:
    with pytest.raises(InvalidInput):
        read(after=cursor)


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**63, 2**200])
def test_a_number_no_row_can_have_is_refused(session: Session, value: int) -> None:
    with pytest.raises(InvalidInput):
        pages.read(session, select(RunEvent), RunEvent.sequence, "event", after=pages.encode("event", value))


def test_an_id_is_no_number(session: Session) -> None:
    with pytest.raises(InvalidInput):
        pages.read(session, select(RunEvent), RunEvent.sequence, "event", after=pages.encode("event", ids.new()))


@given(st.uuids() | st.integers(0, 2**31 - 1))
def test_a_cursor_says_what_it_was_made_of(value: UUID | int) -> None:
    assert pages.decode("run", pages.encode("run", value), "after") == value

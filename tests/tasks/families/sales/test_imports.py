"""Dirty files come in whole, once, and in little memory."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tasks.families.sales.models import ImportRemark, Order, OrderImport, OrderLine, Product
from tasks.families.sales.service import imports, preferences
from tenants.context import Principal
from tenants.errors import Conflict, InvalidInput
from tests.support.installations import Installation
from tests.tasks.families.sales.conftest import AS_OF, HEADER, load, text_of

UTC_ZONE = ZoneInfo("UTC")


def one_row(row: str) -> imports.Batch:
    (batch,) = imports.read(text_of(row), UTC_ZONE, AS_OF)
    return batch


def test_every_row_of_the_real_file_is_kept_or_refused_with_a_reason(
    installation: Installation, shop: Principal, retail_rows: list[dict[str, str]]
) -> None:
    found = installation.write(shop, lambda session: session.scalars(select(OrderImport)).one())
    remarks = installation.write(shop, lambda session: session.scalars(select(ImportRemark)).all())

    assert found.kept + found.refused == len(retail_rows) == 50_046
    assert found.kept == sum(1 for row in retail_rows if row["InvoiceDate"])
    assert Counter((remark.kept, remark.reason) for remark in remarks) == {
        (False, "it has no date"): 18_676,
        (False, "its quantity is not positive, and it is no cancellation"): 85,
        (True, "its price is zero"): 5,
    }
    for remark in remarks:
        row = retail_rows[remark.row_number - 1]
        assert remark.reason != "it has no date" or not row["InvoiceDate"]
        assert remark.reason != "its price is zero" or Decimal(row["UnitPrice"]) == 0


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",A1,Thing,1,2011-01-05,2,7,Norway", "it has no InvoiceNo"),
        ("1,,Thing,1,2011-01-05,2,7,Norway", "it has no StockCode"),
        ("1,A1,Thing,1,2011-01-05,2,7,", "it has no Country"),
        ("1,A1,Thing,one,2011-01-05,2,7,Norway", "its quantity is no whole number"),
        ("1,A1,Thing,1.5,2011-01-05,2,7,Norway", "its quantity is no whole number"),
        ("1,A1,Thing,99999999999,2011-01-05,2,7,Norway", "its quantity is out of range"),
        ("1,A1,Thing,0,2011-01-05,2,7,Norway", "its quantity is not positive, and it is no cancellation"),
        ("C1,A1,Thing,1,2011-01-05,2,7,Norway", "it is a cancellation, and its quantity is not negative"),
        ("1,A1,Thing,1,2011-01-05,free,7,Norway", "its price is no number"),
        ("1,A1,Thing,1,2011-01-05,NaN,7,Norway", "its price is negative, too high, or finer than four decimals"),
        ("1,A1,Thing,1,2011-01-05,-2,7,Norway", "its price is negative, too high, or finer than four decimals"),
        ("1,A1,Thing,1,2011-01-05,0.00001,7,Norway", "its price is negative, too high, or finer than four decimals"),
        ("1,A1,Thing,1,2011-01-05,1e30,7,Norway", "its price is negative, too high, or finer than four decimals"),
        ("1,A1,Thing,1,,2,7,Norway", "it has no date"),
        ("1,A1,Thing,1,05/01/2011,2,7,Norway", "its date is not in the form of ISO 8601"),
        ("1,A1,Thing,1,1066-10-14,2,7,Norway", "its date is before 1990 or in the future"),
        ("1,A1,Thing,1,2011-02-05,2,7,Norway", "its date is before 1990 or in the future"),
        ("1,A1,Thing,1,2011-01-05,2,7", "it has more or fewer columns than the header"),
        ("1,A1,Thing,1,2011-01-05,2,7,Norway,more", "it has more or fewer columns than the header"),
        (f"1,A1,{'x' * 201},1,2011-01-05,2,7,Norway", "a value is longer than 200 characters or unreadable"),
        ("1,A1,a\0b,1,2011-01-05,2,7,Norway", "a value is longer than 200 characters or unreadable"),
    ],
)
def test_a_row_is_refused_with_its_number_and_reason(row: str, reason: str) -> None:
    batch = one_row(row)

    assert batch.lines == []
    assert batch.remarks == [imports.Remark(1, False, reason)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("C1,A1,Thing,-1,2011-01-05,2,7,Norway", "a cancellation"),
        ("1,A1,Thing,1,2011-01-05,2,,Norway", "no customer: a guest's"),
        ("1,A1,Thing,1,2011-01-05,0,,Norway", "no customer: a guest's; its price is zero"),
    ],
)
def test_an_odd_row_is_kept_with_a_remark(row: str, reason: str) -> None:
    batch = one_row(row)

    assert len(batch.lines) == 1
    assert batch.remarks == [imports.Remark(1, True, reason)]


def test_postage_and_fees_are_no_goods() -> None:
    assert not one_row("1,POST,POSTAGE,1,2011-01-05,18,7,Norway").lines[0].stocked
    assert one_row("1,85123A,HOLDER,1,2011-01-05,18,7,Norway").lines[0].stocked


def test_a_date_without_a_time_is_noon_of_the_tenants_day() -> None:
    (batch,) = imports.read(text_of("1,A1,T,1,2011-01-05,2,7,X"), ZoneInfo("Asia/Tokyo"), AS_OF)

    assert batch.lines[0].placed_at == datetime(2011, 1, 5, 3, tzinfo=UTC)


@pytest.mark.parametrize("content", [["InvoiceNo,Quantity", "1,2"], [], [HEADER, '"' + "x" * 200_000]])
def test_what_is_no_file_of_orders_is_refused(content: list[str]) -> None:
    with pytest.raises(InvalidInput):
        list(imports.read(content, UTC_ZONE, AS_OF))


def test_importing_the_same_file_again_changes_nothing(session: Session) -> None:
    rows = text_of("1,A1,Thing,1,2011-01-05,2,7,Norway", "1,A1,Thing,1,2011-01-05,2,7,Norway", "2,B,,3,2011-01-06,1,,X")

    def held() -> list[tuple[object, ...]]:
        columns = (OrderLine.number, OrderLine.line, OrderLine.placed_at, OrderLine.sku, OrderLine.amount)
        return [tuple(row) for row in session.execute(select(*columns).order_by(*columns))]

    load(session, rows)
    once = held()
    load(session, rows)

    assert held() == once
    assert len(once) == 3
    assert session.scalar(select(func.count()).select_from(Order)) == 2


def test_an_order_that_comes_again_is_replaced_even_on_another_day(session: Session) -> None:
    load(session, text_of("1,A1,Thing,1,2011-01-05,2,7,Norway", "1,B,Thing,1,2011-01-05,2,7,Norway"))
    load(session, text_of("1,A1,Thing,5,2010-12-06,3,7,Norway"))

    line = session.scalars(select(OrderLine)).one()

    assert (line.placed_at, line.amount) == (datetime(2010, 12, 6, 12, tzinfo=UTC), Decimal(15))
    assert session.scalars(select(Order)).one().placed_at == line.placed_at


def test_lines_of_an_order_may_stand_apart_but_not_contradict(session: Session) -> None:
    rows = text_of(
        "1,A1,Thing,1,2011-01-05,2,7,Norway",
        "2,A1,Thing,1,2011-01-05,2,8,Norway",
        "1,B1,,1,2011-01-05,2,7,Norway",
        "1,B1,,1,2011-01-06,2,7,Norway",
        "1,B1,,1,2011-01-05,2,9,Norway",
    )

    import_id = load(session, rows, size=2)

    assert sorted(session.scalars(select(OrderLine.line))) == [1, 2, 3]
    assert {remark.row_number: remark.reason for remark in session.scalars(select(ImportRemark))} == {
        4: "its date or customer differs from its order's",
        5: "its date or customer differs from its order's",
    }
    found = session.get(OrderImport, (session.info["principal"].tenant, import_id))
    assert found is not None
    assert (found.kept, found.refused) == (3, 2)


def test_a_blank_description_does_not_wipe_the_known_one(session: Session) -> None:
    load(session, text_of("1,A1,Thing,1,2011-01-05,2,7,Norway"))
    load(session, text_of("2,A1,,1,2011-01-05,2,7,Norway"))

    assert session.scalars(select(Product.description)).one() == "Thing"


def test_amounts_of_two_currencies_are_never_mixed(session: Session) -> None:
    imports.begin(session, "a.csv", "GBP")
    load(session, text_of("1,A1,Thing,1,2011-01-05,2,7,Norway"))

    with pytest.raises(Conflict):
        imports.begin(session, "b.csv", "USD")

    assert preferences.read(session).currency == "GBP"
    assert session.scalar(select(func.count()).select_from(OrderImport)) == 2


def test_memory_does_not_grow_with_the_file() -> None:
    def rows(count: int) -> Iterator[str]:
        yield HEADER
        for number in range(count):
            yield f"{number},A{number % 100},A thing with a name,1,2011-01-05,2.50,{number % 1000},United Kingdom"

    def peak(count: int) -> int:
        tracemalloc.start()
        kept = sum(len(batch.lines) for batch in imports.read(rows(count), UTC_ZONE, AS_OF, size=1_000))
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept == count
        return highest

    peak(1_000)
    assert peak(40_000) < 1.3 * peak(4_000)

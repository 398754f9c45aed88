"""Every sales task, run by a real dispatcher and a real worker."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pypdf import PdfReader
from python_calamine import CalamineWorkbook
from redis import Redis
from sqlalchemy import select

from tasks.engine import switches
from tasks.engine.models import Run
from tasks.families.sales.models import OrderImport
from tasks.families.sales.service import dashboard, files, orders, samples, stock
from tenants import names, system
from tenants.context import Principal
from tests.support import mailbox
from tests.support.installations import Installation, eventually
from tests.support.mailbox import Mailbox
from tests.tasks.families.sales.conftest import AS_OF, RETAIL, load, refresh, text_of

ANA, BEN = "ana@shop.example", "ben@shop.example"
MOMENT = AS_OF.isoformat()


@pytest.fixture(scope="module")
def mails() -> Iterator[Mailbox]:
    with mailbox.opened() as box:
        yield box


@pytest.fixture(scope="module", autouse=True)
def _processes(installation: Installation, mails: Mailbox) -> Iterator[None]:
    installation.environment["TENANTRY_MAIL__URL"] = mails.url
    installation.start_dispatcher()
    installation.start_worker()
    installation.lead()
    yield
    installation.stop()


def succeed(installation: Installation, tenant: Principal, task: str, **args: Any) -> Run:
    run = installation.trigger(tenant, f"sales.{task}", args)
    ended = installation.ended(tenant, run)
    assert ended.state == "SUCCEEDED", ended.error
    return ended


def upload(installation: Installation, tenant: Principal, name: str, content: bytes) -> None:
    path = installation.folder / "objects" / names.object_path(tenant.tenant, "uploads", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def stored(installation: Installation, tenant: Principal, name: str) -> bytes:
    (found,) = [file for file in installation.write(tenant, files.recent) if file.name == name]
    assert found.path.startswith(str(tenant.tenant))
    content = (installation.folder / "objects" / found.path).read_bytes()
    assert len(content) == found.size
    return content


def progress(installation: Installation, run: UUID) -> list[tuple[Any, ...]]:
    return installation.rows("SELECT current, total, message FROM run_progress WHERE run_id = %s", str(run))


def test_refreshing_all_shows_its_progress_and_the_figures(installation: Installation, shop: Principal) -> None:
    before = installation.write(shop, dashboard.read)
    ended = succeed(installation, shop, "refresh_all_materialized_views", as_of=MOMENT)

    assert ended.result == {
        "as_of": MOMENT,
        "rows": {
            "hours": 1, "days": 25, "countries": 112, "products": 17_211, "segments": 974, "lifetime values": 974,
        },
    }  # fmt: skip
    assert progress(installation, ended.id) == [(6, 6, "lifetime values")]
    after = installation.write(shop, dashboard.read)
    assert after.model_copy(update={"refreshed_at": before.refreshed_at}) == before
    assert after.refreshed_at is not None
    assert before.refreshed_at is not None
    assert after.refreshed_at > before.refreshed_at


@pytest.mark.parametrize(
    ("task", "views"),
    [
        ("refresh_realtime_materialized_views", {"hours"}),
        ("refresh_daily_materialized_views", {"days", "countries", "products"}),
        ("update_customer_segments", {"segments"}),
        ("update_customer_lifetime_values", {"lifetime values"}),
    ],
)
def test_the_other_refreshes_replace_their_views(
    installation: Installation, tenant: Principal, task: str, views: set[str]
) -> None:
    installation.write(tenant, load, text_of("1,A1,Thing,2,2011-01-09,3.50,7,Norway"))
    ended = succeed(installation, tenant, task, as_of=MOMENT)

    assert ended.result == {"as_of": MOMENT, "rows": dict.fromkeys(views, 1)}


def test_an_upload_is_imported_and_its_oddities_reported(installation: Installation, tenant: Principal) -> None:
    upload(installation, tenant, "order_lines.csv.gz", RETAIL.read_bytes())

    ended = succeed(installation, tenant, "import_orders", file="order_lines.csv.gz", currency="GBP")

    assert ended.result is not None
    assert re.fullmatch(r"imp_\w{26}", ended.result["import"])
    assert (ended.result["kept"], ended.result["refused"]) == (31_285, 18_761)
    assert ended.result["last"] == "2011-01-09T12:00:00+00:00"
    installation.write(tenant, refresh)
    found = installation.write(tenant, dashboard.read, days=90)
    assert (found.currency, found.totals.revenue) == ("GBP", Decimal("686054.09"))


def test_an_import_that_was_torn_goes_on_after_the_last_batch_it_kept(
    installation: Installation, tenant: Principal
) -> None:
    """The second half of a packed file is damaged: the run fails; mended, its retry reads on."""
    rows = "\n".join(text_of(*(f"{n},A{n % 7},Thing,1,2011-01-05,2.50,{n % 50},Norway" for n in range(1, 20_001))))
    whole = gzip.compress(rows.encode())
    upload(installation, tenant, "torn.csv.gz", whole[: len(whole) * 3 // 4])
    run = installation.trigger(tenant, "sales.import_orders", {"file": "torn.csv.gz"})
    steps = "SELECT step FROM run_steps WHERE run_id = %s AND step LIKE 'rows-%%'"

    def count(table: str) -> int:
        return int(installation.rows(f"SELECT count(*) FROM {table} WHERE tenant_id = %s", str(tenant.tenant))[0][0])

    wait = "SELECT 1 FROM runs WHERE id = %s AND attempt >= 1 AND state = 'SCHEDULED'"
    eventually(lambda: installation.rows(wait, str(run)))
    kept = len(installation.rows(steps, str(run)))
    assert 0 < kept < 4
    assert count("sales_order_lines") == kept * 5_000

    upload(installation, tenant, "torn.csv.gz", whole)
    ended = installation.ended(tenant, run)

    assert ended.state == "SUCCEEDED", ended.error
    assert ended.attempt > 1
    assert ended.result is not None
    assert (ended.result["kept"], ended.result["refused"]) == (20_000, 0)
    assert len(installation.rows(steps, str(run))) == 4
    assert (count("sales_order_lines"), count("sales_imports")) == (20_000, 1)


@pytest.mark.parametrize("file", ["missing.csv", "wrong.csv"])
def test_a_file_that_can_never_be_imported_fails_at_once(
    installation: Installation, tenant: Principal, file: str
) -> None:
    upload(installation, tenant, "wrong.csv", b"a,b\n1,2\n")
    ended = installation.ended(tenant, installation.trigger(tenant, "sales.import_orders", {"file": file}))

    assert (ended.state, ended.attempt) == ("FAILED", 1)
    assert installation.rows("SELECT 1 FROM sales_orders WHERE tenant_id = %s", str(tenant.tenant)) == []


def test_a_monthly_report_is_stored_and_mailed_once_to_each(
    installation: Installation, shop: Principal, mails: Mailbox
) -> None:
    ended = succeed(installation, shop, "generate_monthly_report", month="2010-12", recipients=[ANA, BEN], as_of=MOMENT)

    document = stored(installation, shop, "sales-in-december-2010.pdf")
    text = " ".join(PdfReader(io.BytesIO(document)).pages[0].extract_text().split())
    assert "Sales in December 2010" in text
    assert "572,713.89" in text
    assert ended.result is not None
    assert ended.result["mails"] == 2
    for address in (ANA, BEN):
        (letter,) = [mail for mail in mails.to(address) if "December" in mail["Subject"]]
        (attachment,) = letter.iter_attachments()
        assert attachment.get_content() == document
        assert attachment.get_filename() == "sales-in-december-2010.pdf"


def test_a_weekly_report_covers_the_last_whole_week(
    installation: Installation, shop: Principal, mails: Mailbox
) -> None:
    succeed(installation, shop, "weekly_performance_report", recipients=[ANA], as_of="2011-01-11T08:00:00Z")

    text = PdfReader(io.BytesIO(stored(installation, shop, "sales-in-week-1-of-2011.pdf"))).pages[0].extract_text()
    assert "3 January 2011 to 9 January 2011" in " ".join(text.split())
    assert any("week 1 of 2011" in mail["Subject"] for mail in mails.to(ANA))


def test_a_retry_never_mails_twice(installation: Installation, tenant: Principal, mails: Mailbox) -> None:
    """The second recipient is refused for the moment: the first, who has been served, is not served again."""
    first, second = "first@shop.example", "second@shop.example"
    mails.replies.extend(["", "450 come back later"])
    run = installation.trigger(tenant, "sales.send_daily_summary", {"as_of": MOMENT, "recipients": [first, second]})
    ended = installation.ended(tenant, run)

    assert (ended.state, ended.attempt) == ("SUCCEEDED", 2)
    assert (len(mails.to(first)), len(mails.to(second))) == (1, 1)


def test_a_recipient_refused_for_good_fails_the_run(
    installation: Installation, tenant: Principal, mails: Mailbox
) -> None:
    mails.replies.append("550 nobody here")
    run = installation.trigger(tenant, "sales.send_daily_summary", {"recipients": ["no@shop.example"]})
    ended = installation.ended(tenant, run)

    assert (ended.state, ended.attempt) == ("FAILED", 1)
    assert mails.to("no@shop.example") == []


def test_the_daily_summary_tells_of_yesterday(installation: Installation, shop: Principal, mails: Mailbox) -> None:
    ended = succeed(installation, shop, "send_daily_summary", recipients=["day@shop.example"], as_of=MOMENT)

    (letter,) = mails.to("day@shop.example")
    assert ended.result == {
        "day": "2011-01-09", "revenue": "14253.1300", "currency": "EUR", "orders": 44, "mails": 1,
    }  # fmt: skip
    assert letter["Subject"] == "shop: EUR 14,253.13 on 2011-01-09"
    assert "Orders               44 (the day before: 0)" in letter.get_content()


def test_low_stock_is_told_once_for_each_fall(installation: Installation, tenant: Principal, mails: Mailbox) -> None:
    to = "stock@shop.example"
    installation.write(tenant, load, text_of("1,A1,Lamp,1,2011-01-05,2,7,X", "1,B1,Mug,1,2011-01-05,2,7,X"))

    def check(*counts: stock.Count) -> Any:
        installation.write(tenant, stock.record, counts)
        return succeed(installation, tenant, "check_low_stock_products", recipients=[to]).result

    assert check(stock.Count("A1", 3, 10), stock.Count("B1", 10, 10)) == {"low": 1, "new": ["A1"], "mails": 1}
    assert check(stock.Count("A1", 2, 10)) == {"low": 1, "new": [], "mails": 0}
    assert check(stock.Count("A1", 20, 10), stock.Count("B1", 9, 10)) == {"low": 1, "new": ["B1"], "mails": 1}
    assert check(stock.Count("A1", 9, 10)) == {"low": 2, "new": ["A1"], "mails": 1}
    assert [mail["Subject"].split(": ")[1] for mail in mails.to(to)] == ["1 product low on stock"] * 3
    assert "Lamp" in mails.to(to)[2].get_content().split("Still below it:")[0]
    assert "Mug" in mails.to(to)[2].get_content().split("Still below it:")[1]


@pytest.mark.parametrize("form", ["csv", "json", "xlsx"])
def test_an_export_holds_the_figures_and_no_formula(installation: Installation, tenant: Principal, form: str) -> None:
    installation.write(
        tenant,
        load,
        text_of(
            '1,A1,"=HYPERLINK(""http://evil.example"")",2,2011-01-05,3.505,7,Norway',
            "C2,A1,,-1,2011-01-06,3.505,7,Norway",
            "3,A1,,9,2011-01-07,1,7,Norway",
        ),
    )
    ended = succeed(
        installation, tenant, "export_analytics_data",
        start_date="2011-01-05", end_date="2011-01-06", export_format=form,
    )  # fmt: skip
    content = stored(installation, tenant, f"sales-2011-01-05-2011-01-06.{form}")

    formula = '=HYPERLINK("http://evil.example")'
    expected = [
        ("2011-01-05", "Norway", "A1", formula, 1, 2, Decimal("7.01"), Decimal("0.00"), "EUR"),
        ("2011-01-06", "Norway", "A1", formula, 0, 0, Decimal("0.00"), Decimal("3.51"), "EUR"),
    ]
    assert ended.result is not None
    assert ended.result["rows"] == 2
    if form == "csv":
        rows = list(csv.reader(io.StringIO(content.decode())))[1:]
        assert [row[3] for row in rows] == [f"'{formula}"] * 2
        assert [[*row[:3], *row[4:]] for row in rows] == [
            [str(cell) for i, cell in enumerate(r) if i != 3] for r in expected
        ]
    elif form == "json":
        assert [tuple(row.values()) for row in json.loads(content, parse_float=Decimal)] == [
            tuple(str(cell) if isinstance(cell, Decimal) else cell for cell in row) for row in expected
        ]
    else:
        table = CalamineWorkbook.from_filelike(io.BytesIO(content)).get_sheet_by_index(0).to_python()[1:]
        assert [(str(row[0]), *row[1:4]) for row in table] == [row[:4] for row in expected]
        assert [row[6] for row in table] == [7.01, 0.0]


def test_a_warm_cache_holds_what_the_dashboard_says(
    installation: Installation, shop: Principal, redis_url: str
) -> None:
    ended = succeed(installation, shop, "warm_dashboard_cache")

    assert ended.result is not None
    assert ended.result["warmed"] == 3
    version = installation.write(shop, dashboard.version)
    with Redis.from_url(redis_url, decode_responses=True) as client:
        key = names.cache(shop.tenant, "sales", dashboard.cache_name(version, 30, None))
        kept = client.get(key)
        assert 0 < client.ttl(key) <= 300
    assert isinstance(kept, str)
    assert dashboard.parse(kept) == installation.write(shop, dashboard.read, days=30)


def test_old_orders_and_expired_files_are_removed(installation: Installation, tenant: Principal) -> None:
    installation.write(tenant, load, text_of("1,A1,T,1,2008-12-05,3,7,X", "2,A1,T,1,2009-02-05,3,7,X"))
    upload(installation, tenant, "old.pdf", b"old")
    path = names.object_path(tenant.tenant, "uploads", "old.pdf")
    installation.write(
        tenant, files.record, name="old.pdf", path=path, media_type="application/pdf", size=3, now=AS_OF, days=7
    )

    removed = succeed(installation, tenant, "clean_old_order_partitions", as_of=MOMENT).result
    assert installation.write(tenant, lambda session: session.scalars(select(OrderImport)).one().kept) == 2
    forgotten = succeed(installation, tenant, "clean_old_order_partitions", as_of="2100-01-01T00:00:00Z").result
    kept = succeed(installation, tenant, "clean_expired_files", as_of="2011-01-16T00:00:00Z").result
    gone = succeed(installation, tenant, "clean_expired_files", as_of="2011-01-17T00:00:00Z").result

    assert removed == {"before": "2009-01-01T00:00:00+00:00", "removed": 1, "imports": 0}
    assert forgotten == {"before": "2098-01-01T00:00:00+00:00", "removed": 1, "imports": 1}
    assert (kept, gone) == ({"removed": 0}, {"removed": 1})
    assert not (installation.folder / "objects" / path).exists()
    assert installation.write(tenant, files.recent) == []


def test_empty_months_are_dropped_by_an_operators_run(installation: Installation, tenant: Principal) -> None:
    installation.write(tenant, orders.open_months, {datetime(1999, 5, 1, tzinfo=UTC)})
    operator = system.acting(installation.settings, system.OPERATORS, "tests")
    installation.write(operator, switches.enable, "sales")
    installation.start_worker("o1", "-Q", "operator")

    ended = succeed(installation, operator, "drop_empty_order_partitions", as_of="1999-06-01T00:00:00Z")

    assert ended.result == {"dropped": 1}


def test_the_made_up_shop_is_the_same_for_the_same_seed_and_has_low_stock(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    now = datetime(2026, 5, 4, 12, tzinfo=UTC)
    for owner in (tenant, other_tenant):
        installation.write(owner, load, samples.orders(now, count=300).splitlines(), now=now)
        installation.write(owner, stock.record, samples.counts())
        installation.write(owner, refresh, now)
    mine, theirs = (installation.write(owner, dashboard.read, days=120) for owner in (tenant, other_tenant))

    assert mine.model_copy(update={"refreshed_at": None}) == theirs.model_copy(update={"refreshed_at": None})
    assert mine.totals.orders + len(mine.segments) > 250
    assert len(installation.write(tenant, stock.low)) == 6
    assert len(mine.hourly) > 5

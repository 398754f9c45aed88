"""Sales over GraphQL, as a real API serves them."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from tasks.engine.models import Run
from tasks.families.sales.service import dashboard, samples, stock
from tasks.gateways import cache
from tenants import ids
from tenants.context import Principal
from tests.support import apis
from tests.support.apis import Api
from tests.support.installations import Installation
from tests.tasks.families.sales.conftest import AS_OF, load, refresh, text_of

DASHBOARD = """
    query ($days: Int! = 30, $asOf: DateTime) { salesDashboard(days: $days, asOf: $asOf) {
        currency revenue cancelled orders units averageOrder firstDay lastDay newCustomers
        byDay { day revenue } byCountry { country revenue orders } topProducts { sku description }
        hourly { hour } segments { segment customers }
    } }
"""


@pytest.fixture(scope="module")
def api(installation: Installation) -> Iterator[Api]:
    with apis.running(installation) as started:
        yield started


def test_the_dashboard_is_typed_and_rounded(api: Api, installation: Installation, shop: Principal) -> None:
    found = api.caller(shop, "sales:read").ask(DASHBOARD, days=7, asOf=AS_OF.isoformat())["salesDashboard"]

    assert (found["firstDay"], found["lastDay"], found["currency"]) == ("2011-01-03", "2011-01-09", "EUR")
    assert [day["day"] for day in found["byDay"]] == [f"2011-01-0{day}" for day in range(3, 10)]
    assert sum(Decimal(day["revenue"]) for day in found["byDay"]) == Decimal(found["revenue"])
    assert found["averageOrder"] == str((Decimal(found["revenue"]) / found["orders"]).quantize(Decimal("0.01")))
    assert found["byCountry"][0]["country"] == "United Kingdom"
    assert len(found["topProducts"]) == 10
    assert sum(segment["customers"] for segment in found["segments"]) == 974


def test_a_tenant_without_orders_sees_nothing_of_anothers(api: Api, shop: Principal, tenant: Principal) -> None:
    found = api.caller(tenant, "sales:read").ask(DASHBOARD)["salesDashboard"]

    assert (found["revenue"], found["orders"], found["byCountry"], found["segments"]) == ("0.00", 0, [], [])
    assert api.caller(tenant).ask('{ salesCustomer(reference: "17850") { country } }') == {"salesCustomer": None}
    assert api.caller(shop).ask('{ salesCustomer(reference: "17850") { country segment currency } }') == {
        "salesCustomer": {"country": "United Kingdom", "segment": "cannot lose", "currency": "EUR"}
    }


def test_who_may_not_read_sales_is_told_so(api: Api, shop: Principal) -> None:
    assert api.caller(shop, "runs:read").fail(DASHBOARD) == "FORBIDDEN"
    assert api.stranger().fail(DASHBOARD) == "UNAUTHENTICATED"


@pytest.mark.parametrize("days", [0, -1, 367])
def test_a_window_has_a_size(api: Api, shop: Principal, days: int) -> None:
    assert api.caller(shop).fail(DASHBOARD, days=days) == "BAD_USER_INPUT"


def test_a_warm_answer_is_served_until_the_next_refresh(
    api: Api, installation: Installation, tenant: Principal
) -> None:
    installation.write(tenant, load, text_of("1,A1,Thing,2,2011-01-09,3.50,7,Norway"))
    installation.write(tenant, refresh)
    version = installation.write(tenant, dashboard.version)
    answer = installation.write(tenant, dashboard.read_text).replace("7.0000", "8.0000")
    cache.put(installation.settings, tenant.tenant, "sales", dashboard.cache_name(version, 30, None), answer, 60)
    caller = api.caller(tenant)

    assert caller.ask(DASHBOARD)["salesDashboard"]["revenue"] == "8.00"
    assert caller.ask(DASHBOARD, days=31)["salesDashboard"]["revenue"] == "7.00"
    installation.write(tenant, refresh)
    assert caller.ask(DASHBOARD)["salesDashboard"]["revenue"] == "7.00"
    assert cache.rates(installation.settings, tenant.tenant, "sales") == cache.Rates(hits=1, misses=2)


def test_typed_triggers_make_runs_with_checked_arguments(
    api: Api, installation: Installation, tenant: Principal
) -> None:
    caller = api.caller(tenant, "sales:write", "runs:read")
    accepted = caller.ask(
        'mutation { exportSales(startDate: "2011-01-01", endDate: "2011-01-31", format: XLSX)'
        " { success run { taskName args } problem { message } } }"
    )["exportSales"]

    assert accepted == {
        "success": True,
        "problem": None,
        "run": {
            "taskName": "sales.export_analytics_data",
            "args": {"start_date": "2011-01-01", "end_date": "2011-01-31", "export_format": "xlsx"},
        },
    }
    for views, task in (("ALL", "refresh_all_materialized_views"), ("SEGMENTS", "update_customer_segments")):
        found = caller.ask(f"mutation {{ refreshSales(views: {views}) {{ run {{ taskName args }} }} }}")
        assert found["refreshSales"]["run"] == {"taskName": f"sales.{task}", "args": {}}


def test_a_wrong_argument_starts_nothing(api: Api, installation: Installation, tenant: Principal) -> None:
    caller = api.caller(tenant)
    refused = caller.ask(
        'mutation { exportSales(startDate: "2011-02-01", endDate: "2011-01-31") { success problem { code message } } }'
    )["exportSales"]
    forbidden = api.caller(tenant, "sales:read").ask("mutation { refreshSales { success problem { code } } }")

    assert (refused["success"], refused["problem"]["code"]) == (False, "BAD_USER_INPUT")
    assert "end_date is before start_date" in refused["problem"]["message"]
    assert forbidden["refreshSales"] == {"success": False, "problem": {"code": "FORBIDDEN"}}
    assert installation.rows(f"SELECT count(*) FROM {Run.__tablename__} WHERE tenant_id = %s", str(tenant.tenant)) == [
        (0,)
    ]


def test_stock_is_noted_whole_or_not_at_all(api: Api, installation: Installation, tenant: Principal) -> None:
    installation.write(tenant, load, text_of("1,A1,Lamp,1,2011-01-05,2,7,X"))
    caller = api.caller(tenant)
    note = "mutation ($counts: [SalesStockInput!]!) { recordSalesStock(counts: $counts) { success problem { code } } }"
    low = "{ salesLowStock { sku description stock reorderPoint } }"

    known = {"sku": "A1", "stock": 3, "reorderPoint": 9}
    unknown = caller.ask(note, counts=[known, {**known, "sku": "B"}])
    negative = caller.ask(note, counts=[{**known, "stock": -1}])

    assert unknown["recordSalesStock"] == {"success": False, "problem": {"code": "NOT_FOUND"}}
    assert negative["recordSalesStock"] == {"success": False, "problem": {"code": "BAD_USER_INPUT"}}
    assert caller.ask(low) == {"salesLowStock": []}
    assert caller.ask(note, counts=[known])["recordSalesStock"]["success"]
    assert caller.ask(low) == {"salesLowStock": [{**known, "description": "Lamp"}]}


def test_settings_keep_one_currency(api: Api, installation: Installation, tenant: Principal) -> None:
    caller = api.caller(tenant)
    change = """mutation ($currency: String, $months: Int) {
        updateSalesSettings(currency: $currency, retentionMonths: $months) {
            settings { currency retentionMonths } problem { code } } }"""

    assert caller.ask(change, currency="GBP")["updateSalesSettings"]["settings"] == {
        "currency": "GBP", "retentionMonths": 24,
    }  # fmt: skip
    installation.write(tenant, load, text_of("1,A1,Lamp,1,2011-01-05,2,7,X"))
    assert caller.ask(change, currency="USD")["updateSalesSettings"]["problem"] == {"code": "CONFLICT"}
    for wrong in ({"currency": "pounds"}, {"months": 0}, {"months": 601}):
        assert caller.ask(change, **wrong)["updateSalesSettings"]["problem"] == {"code": "BAD_USER_INPUT"}
    assert caller.ask("{ salesSettings { currency retentionMonths } }")["salesSettings"] == {
        "currency": "GBP", "retentionMonths": 24,
    }  # fmt: skip


def test_an_imports_remarks_are_read_page_by_page_by_its_tenant_only(
    api: Api, installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    import_id = installation.write(tenant, load, text_of(*(f"{n},A1,Lamp,1,,2,7,X" for n in range(3))))
    ask = """query ($id: ID!, $after: String) { salesImport(id: $id) { source kept refused
        remarks(first: 2, after: $after) { nodes { rowNumber kept reason } pageInfo { hasNextPage endCursor } } } }"""
    caller = api.caller(tenant)

    first = caller.ask(ask, id=ids.show("imp", import_id))["salesImport"]
    rest = caller.ask(ask, id=ids.show("imp", import_id), after=first["remarks"]["pageInfo"]["endCursor"])[
        "salesImport"
    ]

    assert (first["source"], first["kept"], first["refused"]) == ("order_lines.csv", 0, 3)
    assert [row["rowNumber"] for row in first["remarks"]["nodes"] + rest["remarks"]["nodes"]] == [1, 2, 3]
    assert first["remarks"]["nodes"][0] == {"rowNumber": 1, "kept": False, "reason": "it has no date"}
    assert (first["remarks"]["pageInfo"]["hasNextPage"], rest["remarks"]["pageInfo"]["hasNextPage"]) == (True, False)
    assert api.caller(other_tenant).ask(ask, id=ids.show("imp", import_id)) == {"salesImport": None}
    assert caller.ask(ask, id="imp_nonsense") == {"salesImport": None}


def test_the_best_customers_come_first(api: Api, installation: Installation, tenant: Principal) -> None:
    installation.write(tenant, load, samples.orders(AS_OF, count=200).splitlines())
    installation.write(tenant, stock.record, samples.counts())
    installation.write(tenant, refresh, AS_OF)
    caller = api.caller(tenant)

    best = caller.ask("{ salesBestCustomers(first: 5) { predicted segment } }")["salesBestCustomers"]
    champions = caller.ask('{ salesBestCustomers(segment: "champions") { segment } }')["salesBestCustomers"]

    values = [Decimal(row["predicted"]) for row in best]
    assert values == sorted(values, reverse=True)
    assert len(values) == 5
    assert {row["segment"] for row in champions} == {"champions"}
    assert caller.fail("{ salesBestCustomers(first: 101) { segment } }") == "BAD_USER_INPUT"
    assert (
        len(installation.write(tenant, stock.low)) == len(caller.ask("{ salesLowStock { sku } }")["salesLowStock"]) > 0
    )

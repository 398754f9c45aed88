"""Budgets and rates on a real server: who uses up too much is told to wait, and nobody else notices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import redis
import redis.asyncio
from websockets.exceptions import InvalidStatus

from api.embedded import free_port
from api.limits import Budgets
from tasks.engine import erasure
from tenants.context import Principal
from tests.support import apis, proxy, streams
from tests.support.apis import Api, Caller
from tests.support.installations import Installation, eventually

DEAR = "{ runs(first: 100) { nodes { id } } }"
DEAR_POINTS = 111
ECHO = 'mutation($a: JSON) { triggerBackgroundTask(taskName: "echo", args: $a) { success } }'
CHEAP = "{ viewer { kind } }"
SMALL = {"TENANTRY_API__BUDGET_POINTS": "400", "TENANTRY_API__BUDGET_POINTS_PER_SECOND": "20"}
RARE = {
    "TENANTRY_API__CALLER_REQUESTS_PER_SECOND": "1",
    "TENANTRY_API__ADDRESS_REQUESTS_PER_SECOND": "4",
    "TENANTRY_API__ADDRESS_LOGINS_PER_SECOND": "0.5",
}


@pytest.fixture(scope="module")
def frugal(installation: Installation) -> Iterator[Api]:
    """An API with small budgets."""
    with apis.running(installation, "frugal", **SMALL) as started:
        yield started


def _spend(caller: Caller) -> None:
    """Ask until the budget does not suffice."""
    for _ in range(100):
        if "errors" in caller.post("{ " + "".join(f"a{n}: viewer {{ kind }} " for n in range(30)) + "}").json():
            return
    raise AssertionError("the budget never ends")


def test_an_answer_tells_what_it_cost(frugal: Api, tenant: Principal) -> None:
    frugal.caller(tenant).ask(DEAR)  # It costs more when it is new.
    answer = frugal.caller(tenant).post(DEAR)
    status = answer.json()["extensions"]["cost"]
    assert (status["requested"], status["actual"]) == (DEAR_POINTS, 1)
    left = status["throttleStatus"].pop("currentlyAvailable")
    assert 399 <= left <= 400
    assert status["throttleStatus"] == {"maximumAvailable": 400, "restoreRate": 20}


def test_who_has_spent_all_waits_and_nobody_else_does(frugal: Api, tenant: Principal, other_tenant: Principal) -> None:
    spender, colleague, other = frugal.caller(tenant), frugal.caller(tenant), frugal.caller(other_tenant)
    _spend(spender)
    refused = spender.post(DEAR)
    assert refused.status_code == 429
    [error] = refused.json()["errors"]
    assert error["extensions"]["code"] == "RATE_LIMITED"
    assert 0 < error["extensions"]["retryAfterSeconds"] <= int(refused.headers["retry-after"])
    cost = refused.json()["extensions"]["cost"]
    assert cost["requested"] == DEAR_POINTS
    assert cost["throttleStatus"]["currentlyAvailable"] < DEAR_POINTS
    assert colleague.ask(DEAR)
    assert other.ask(DEAR)
    assert eventually(lambda: spender.post(DEAR).status_code == 200)


def test_a_budget_holds_on_sockets_too(frugal: Api, tenant: Principal) -> None:
    caller = frugal.caller(tenant)
    _spend(caller)
    with streams.socket(caller) as socket:
        socket.subscribe(DEAR)
        answer = socket.receive()
        assert (answer["type"], answer["payload"][0]["extensions"]["code"]) == ("error", "RATE_LIMITED")


def test_what_is_refused_is_charged(frugal: Api, tenant: Principal) -> None:
    caller = frugal.caller(tenant)
    attack = "{ " + " ".join(f"a{n}: __typename" for n in range(500)) + " }"
    answers = [caller.post(attack).json()["errors"][0]["extensions"]["code"] for _ in range(20)]
    assert answers[0] == "GRAPHQL_VALIDATION_FAILED"
    assert answers[-1] == "RATE_LIMITED"


def test_what_is_large_costs_more(frugal: Api, tenant: Principal) -> None:
    def left(size: int) -> float:
        answer = frugal.caller(tenant).post(CHEAP, {"unused": "x" * size})
        available: float = answer.json()["extensions"]["cost"]["throttleStatus"]["currentlyAvailable"]
        return available

    frugal.caller(tenant).ask(CHEAP)
    assert left(10) - left(200_000) > 300
    assert left(10) - left(10_000) < 50
    spender = frugal.caller(tenant)
    _spend(spender)
    assert [spender.post(CHEAP, {"unused": "x" * 200_000}).status_code for _ in range(2)][-1] == 429


def test_large_arguments_cost_by_their_size_and_nothing_where_nobody_asks(frugal: Api, tenant: Principal) -> None:
    args = {"value": [f"part {number}" for number in range(4000)]}
    frugal.caller(tenant).ask(ECHO, a=args)

    def left(query: str) -> float:
        frugal.caller(tenant).ask(query)  # It costs more when it is new.
        answer = frugal.caller(tenant).post(query).json()
        assert "errors" not in answer, answer
        assert answer["data"]["runs"]["nodes"][0].get("args", args) == args
        available: float = answer["extensions"]["cost"]["throttleStatus"]["currentlyAvailable"]
        return available

    assert 150 < left("{ runs(first: 1) { nodes { id } } }") - left("{ runs(first: 1) { nodes { args } } }") < 250
    shown = [frugal.caller(tenant)] * 2 + [frugal.caller(tenant)]
    again = "{ " + " ".join(f"a{n}: runs(first: 1) {{ nodes {{ args }} }}" for n in range(5)) + " }"
    answers = [caller.post(again).json() for caller in shown]
    assert all(answer["errors"][0]["extensions"]["code"] == "RATE_LIMITED" for answer in answers)


def test_processes_agree_on_what_is_left(frugal: Api, tenant: Principal, installation: Installation) -> None:
    with apis.running(installation, "second", **SMALL) as second:
        here = frugal.caller(tenant)
        there = Caller(second.url, second.client, here.credential)
        assert there.post(CHEAP).status_code == 200
        _spend(here)
        spent = eventually(
            lambda: there.post(CHEAP).json()["extensions"]["cost"]["throttleStatus"]["currentlyAvailable"] < 300
        )
        assert spent


@pytest.mark.parametrize("outage", ["dead", "frozen"])
def test_without_redis_each_process_counts_for_itself(
    installation: Installation, tenant: Principal, outage: str
) -> None:
    with (
        proxy.to(installation.redis_url) as between,
        apis.running(installation, "alone", REDIS_URL=between.through(installation.redis_url), **SMALL) as alone,
    ):
        caller = alone.caller(tenant)
        caller.ask(CHEAP)
        if outage == "frozen":
            between.freeze()
        else:
            between.target = ("127.0.0.1", free_port())
            between.cut()
        _spend(caller)
        assert caller.post(DEAR).status_code == 429
        assert eventually(lambda: caller.post(DEAR).status_code == 200)
    assert "Traceback" not in installation.log("alone")


@pytest.fixture
def rare(installation: Installation) -> Iterator[Api]:
    """An API that takes few requests."""
    with apis.running(installation, "rare", **RARE) as started:
        yield started


def test_a_caller_who_asks_too_often_waits(rare: Api, tenant: Principal) -> None:
    often, seldom = rare.caller(tenant), rare.caller(tenant)
    answers = [often.post(CHEAP) for _ in range(15)]
    assert answers[0].status_code == 200
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert answers[-1].json()["errors"][0]["extensions"]["code"] == "RATE_LIMITED"
    assert seldom.post(CHEAP).status_code == 200


def test_an_address_that_asks_too_often_waits_before_anybody_looks_at_it(rare: Api) -> None:
    def log_in() -> int:
        answer = rare.client.post(f"{rare.url}/auth/login", content=b"x")
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
        return answer.status_code

    assert [log_in() for _ in range(8)].count(400) == 5
    stranger = rare.stranger()
    assert 429 in {stranger.post("{ __typename }").status_code for _ in range(60)}
    with pytest.raises(InvalidStatus) as refused, streams.socket(stranger, begun=False):
        pass
    assert refused.value.response.status_code == 429
    assert rare.client.get(f"{rare.url}/health/live").status_code == 200


async def test_nothing_is_told_of_a_tenant_that_has_been_erased(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    client = redis.asyncio.Redis.from_url(installation.redis_url)
    budgets = Budgets("points", 100, 1, client)
    for each in (tenant, other_tenant):
        budgets.caller(each).pour(5)
    with closing(redis.Redis.from_url(installation.redis_url)) as operators:
        erasure.erase(operators, tenant.tenant)
        await budgets.close()
        await client.aclose()
        assert list(erasure.left(operators, tenant.tenant)) == []
        assert len(list(erasure.left(operators, other_tenant.tenant))) == 1

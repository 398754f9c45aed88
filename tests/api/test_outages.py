"""What callers see while PostgreSQL or Redis is away, and how soon it is over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx2
import psycopg2
import pytest
import redis

from api import embedded
from api.embedded import Servers
from tenants.context import Principal
from tests.support import apis, proxy, streams
from tests.support.apis import Api, Caller
from tests.support.installations import Installation, eventually
from tests.support.proxy import Proxy

TRIGGER = 'mutation { triggerBackgroundTask(taskName: "echo", args: {value: 1}) { success taskId } }'
PATIENCE_SECONDS = 0.3


@pytest.fixture
def redis_proxy(installation: Installation) -> Iterator[Proxy]:
    """Redis behind a proxy."""
    with proxy.to(installation.redis_url) as between:
        yield between


@pytest.fixture
def postgres_proxy(installation: Installation) -> Iterator[Proxy]:
    """PostgreSQL behind a proxy."""
    with proxy.to(installation.addresses.app) as between:
        yield between


def _slowest_trigger(caller: Caller, times: int = 20) -> float:
    slowest = 0.0
    for _ in range(times):
        started = time.perf_counter()
        assert caller.ask(TRIGGER)["triggerBackgroundTask"]["success"] is True
        slowest = max(slowest, time.perf_counter() - started)
    return slowest


@pytest.mark.parametrize("outage", ["dead", "frozen"])
def test_a_mutation_does_not_wait_for_redis(
    installation: Installation, tenant: Principal, redis_proxy: Proxy, outage: str
) -> None:
    with apis.running(installation, "redisless", REDIS_URL=redis_proxy.through(installation.redis_url)) as api:
        caller = api.caller(tenant)
        caller.ask(TRIGGER)
        if outage == "dead":
            _take_away(redis_proxy)
        else:
            redis_proxy.freeze()
        assert _slowest_trigger(caller) < PATIENCE_SECONDS
        readiness = api.client.get(f"{api.url}/health/ready")
        assert readiness.status_code == 503
        assert readiness.json()["checks"]["redis"]["ok"] is False
        assert readiness.json()["checks"]["postgres"]["ok"] is True


def test_a_subscription_hears_of_changes_without_redis(
    installation: Installation, tenant: Principal, redis_proxy: Proxy
) -> None:
    with apis.running(installation, "deaf", REDIS_URL=redis_proxy.through(installation.redis_url)) as api:
        caller = api.caller(tenant)
        run = caller.ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
        with streams.socket(caller) as socket:
            socket.subscribe(streams.UPDATES, id=run)
            updates = socket.updates("taskUpdates")
            next(updates)
            _take_away(redis_proxy)
            caller.ask("mutation($i: ID!) { cancelRun(id: $i) { success } }", i=run)
            assert [update["state"] for update in updates] == ["CANCELLED"]


def test_without_postgresql_callers_are_told_to_come_back_and_find_it_back_soon(
    installation: Installation, tenant: Principal, postgres_proxy: Proxy
) -> None:
    address = postgres_proxy.through(installation.addresses.app)
    with apis.running(installation, "dataless", DATABASE_URL=address) as api:
        caller = api.caller(tenant)
        caller.ask(TRIGGER)
        there = _take_away(postgres_proxy)
        for answer in (caller.post(TRIGGER), caller.post("{ runs { totalCount } }"), _log_in(api)):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["errors"][0]["extensions"]["code"] == "UNAVAILABLE"
            assert "postgres" not in answer.text
        assert api.client.get(f"{api.url}/health/live").status_code == 200
        assert api.client.get(f"{api.url}/health/ready").json()["checks"]["postgres"]["ok"] is False
        postgres_proxy.target = there
        back = time.monotonic()
        eventually(lambda: caller.post(TRIGGER).status_code == 200, 5)
        assert time.monotonic() - back < 5
        assert "Traceback" not in api.installation.log(api.name)


def test_without_postgresql_an_open_socket_stays_and_says_so(
    installation: Installation, tenant: Principal, postgres_proxy: Proxy
) -> None:
    address = postgres_proxy.through(installation.addresses.app)
    with apis.running(installation, "absent", DATABASE_URL=address, TENANTRY_AUTH__CACHE_SECONDS="0") as api:
        with streams.socket(api.caller(tenant)) as socket:
            there = _take_away(postgres_proxy)
            socket.subscribe("{ viewer { kind } }")
            answer = socket.receive()
            assert (answer["type"], answer["payload"][0]["extensions"]["code"]) == ("error", "UNAVAILABLE")
            postgres_proxy.target = there
            socket.subscribe("{ viewer { kind } }")
            assert socket.receive()["payload"]["data"] == {"viewer": {"kind": "API_KEY"}}
        assert "Traceback" not in api.installation.log(api.name)


@pytest.mark.parametrize("limit", ["statement_timeout", "lock_timeout"])
def test_a_statement_that_takes_too_long_is_answered_like_an_absent_database(
    installation: Installation, tenant: Principal, servers: Servers, limit: str
) -> None:
    seconds = 0.3 if limit == "statement_timeout" else 30
    if limit == "lock_timeout":
        [(name,)] = installation.rows("SELECT current_database()")
        with closing(psycopg2.connect(servers.admin_url)) as admin, admin, admin.cursor() as cursor:
            cursor.execute(f"ALTER ROLE tenantry_app IN DATABASE {name} SET lock_timeout = '300ms'")
    with apis.running(installation, f"impatient-{limit}", TENANTRY_DATABASE__STATEMENT_SECONDS=str(seconds)) as api:
        caller = api.caller(tenant)
        run = caller.ask(TRIGGER)["triggerBackgroundTask"]["taskId"]
        with closing(psycopg2.connect(installation.addresses.owner)) as owner, owner.cursor() as cursor:
            cursor.execute("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")
            for query in (TRIGGER, "{ runs { totalCount } }"):
                answer = caller.post(query)
                assert answer.status_code == 503
                assert answer.json()["errors"][0]["extensions"] == {"code": "UNAVAILABLE", "retryAfterSeconds": 1}
        assert caller.ask("query($i: ID!) { run(id: $i) { state } }", i=run)["run"]["state"] == "QUEUED"
        assert "Traceback" not in api.installation.log(api.name)


@pytest.mark.parametrize("query", [TRIGGER, "{ runs { totalCount } }"], ids=["alone", "in a session"])
def test_over_half_open_lines_to_postgresql_callers_are_told_to_come_back_once(
    installation: Installation, tenant: Principal, postgres_proxy: Proxy, query: str
) -> None:
    """Each connection of the pool is dead; the first caller to meet one waits, and the others find new ones."""
    environment = {
        "DATABASE_URL": postgres_proxy.through(installation.addresses.app),
        "TENANTRY_DATABASE__STATEMENT_SECONDS": "0.3",
        "TENANTRY_AUTH__CACHE_SECONDS": "5",
    }
    with apis.running(installation, "half-open", **environment) as api, ThreadPoolExecutor(4) as pool:
        caller = api.caller(tenant)
        caller.ask(query)
        postgres_proxy.slow(0.2)  # So that each of them has a connection of its own.
        assert {answer.status_code for answer in pool.map(caller.post, [query] * 4)} == {200}
        postgres_proxy.slow(0)
        assert postgres_proxy.connections > 2
        postgres_proxy.swallow()
        started = time.monotonic()
        answer = caller.post(query)
        assert answer.status_code == 503
        assert answer.json()["errors"][0]["extensions"] == {"code": "UNAVAILABLE", "retryAfterSeconds": 1}
        assert [caller.post(query).status_code for _ in range(4)] == [200] * 4
        assert time.monotonic() - started < 4
        assert "Traceback" not in api.installation.log(api.name)


def test_readiness_names_what_is_missing(installation: Installation) -> None:
    with apis.running(installation, "lonely") as api:
        answer = api.client.get(f"{api.url}/health/ready")
        assert answer.status_code == 503
        checks = answer.json()["checks"]
        assert {name: check["ok"] for name, check in checks.items()} == {
            "postgres": True,
            "redis": True,
            "dispatcher": False,
            "workers": False,
        }
        assert "celery -A tasks.worker beat" in checks["dispatcher"]["problem"]


def test_however_many_ask_whether_all_is_well_it_is_looked_up_once_a_second(api: Api) -> None:
    with closing(redis.Redis.from_url(api.installation.redis_url)) as client, ThreadPoolExecutor(8) as pool:

        def looked_up() -> int:
            statistics: Any = client.info("commandstats")
            return int(statistics.get("cmdstat_ping", {"calls": 0})["calls"])

        before, started = looked_up(), time.monotonic()
        asked = [pool.submit(api.client.get, f"{api.url}/health/ready") for _ in range(200)]
        answers = {(answer.result().status_code, answer.result().text) for answer in asked}
        assert len(answers) <= 2 + time.monotonic() - started
        assert 1 <= looked_up() - before <= 2 + time.monotonic() - started


def _take_away(between: Proxy) -> tuple[str, int]:
    """Reset every connection and refuse new ones; where the server was."""
    there, between.target = between.target, ("127.0.0.1", embedded.free_port())
    between.cut()
    return there


def _log_in(api: Api) -> httpx2.Response:
    who = {"tenant": "a", "email": "b@example.org", "password": "a password"}
    return api.client.post(f"{api.url}/auth/login", json=who)

"""Answers kept in Redis."""

from __future__ import annotations

from redis import Redis

from tasks.gateways import cache
from tenants import names
from tenants.context import Principal
from tests.support.installations import Installation


def test_an_answer_is_kept_for_its_tenant_and_its_time(
    installation: Installation, tenant: Principal, other_tenant: Principal, redis_url: str
) -> None:
    cache.put(installation.settings, tenant.tenant, "sales", "q", "answer", 60)

    with Redis.from_url(redis_url, decode_responses=True) as client:
        key = names.cache(tenant.tenant, "sales", "q")
        assert client.get(key) == "answer"
        assert 0 < client.ttl(key) <= 60
        assert client.get(names.cache(other_tenant.tenant, "sales", "q")) is None


def test_rates_are_none_before_the_first_question(installation: Installation, tenant: Principal) -> None:
    assert cache.rates(installation.settings, tenant.tenant, "sales") == cache.Rates(0, 0)
    assert cache.Rates(0, 0).hit_rate is None
    assert cache.Rates(3, 1).hit_rate == 0.75

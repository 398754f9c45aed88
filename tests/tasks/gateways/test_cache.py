"""Answers kept in Redis."""

from __future__ import annotations

import socket

from redis import Redis

from tasks.gateways import cache
from tenants import names
from tenants.context import Principal
from tenants.settings import Redis as RedisSettings
from tests.support.installations import Installation


def test_an_answer_is_kept_for_its_tenant_and_its_time(
    installation: Installation, tenant: Principal, other_tenant: Principal, redis_url: str
) -> None:
    settings = installation.settings
    cache.put(settings, tenant.tenant, "sales", "q", "answer", 60)

    assert cache.get(settings, tenant.tenant, "sales", "q") == "answer"
    assert cache.get(settings, other_tenant.tenant, "sales", "q") is None
    assert cache.get(settings, tenant.tenant, "sales", "another") is None
    assert cache.rates(settings, tenant.tenant, "sales") == cache.Rates(hits=1, misses=1)
    assert cache.rates(settings, other_tenant.tenant, "sales") == cache.Rates(hits=0, misses=1)
    with Redis.from_url(redis_url) as client:
        assert 0 < client.ttl(names.cache(tenant.tenant, "sales", "q")) <= 60


def test_a_cache_that_is_away_is_no_error(installation: Installation, tenant: Principal) -> None:
    """A listener that accepts and never answers: as a frozen Redis does."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        address = RedisSettings(url=f"redis://127.0.0.1:{frozen.getsockname()[1]}/0")
        settings = installation.settings.model_copy(update={"redis": address})
        unavailable = cache.REQUESTS.labels("sales", "unavailable")
        before = unavailable._value.get()

        assert cache.get(settings, tenant.tenant, "sales", "q") is None

        assert unavailable._value.get() == before + 1


def test_rates_are_none_before_the_first_question(installation: Installation, tenant: Principal) -> None:
    assert cache.rates(installation.settings, tenant.tenant, "sales") == cache.Rates(0, 0)
    assert cache.Rates(0, 0).hit_rate is None
    assert cache.Rates(3, 1).hit_rate == 0.75

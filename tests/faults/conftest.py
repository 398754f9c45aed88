"""Every row has a database and processes of its own, with leases short enough to be lost within seconds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api.embedded import Servers
from tenants.context import Principal
from tenants.roles import Addresses
from tests.conftest import installed
from tests.support import proxy, subscribers
from tests.support.installations import Installation
from tests.support.proxy import Proxy
from tests.support.subscribers import Subscriber

LEASE_SECONDS = 2.0
QUICKLY = {
    "TENANTRY_ENGINE__LEASE_SECONDS": str(LEASE_SECONDS),
    "TENANTRY_ENGINE__RENEW_SECONDS": "0.4",
    "TENANTRY_ENGINE__UNCLAIMED_SECONDS": "1.5",
    "TENANTRY_ENGINE__LEADERSHIP_SECONDS": "1.5",
    "TENANTRY_ENGINE__LEADERSHIP_RENEW_SECONDS": "0.4",
    "TENANTRY_ENGINE__SWEEP_SECONDS": "0.2",
}


@pytest.fixture
def installation(servers: Servers, template: Addresses, tmp_path: Path) -> Iterator[Installation]:
    """An installation for one row."""
    with installed(servers, template, tmp_path) as made:
        made.environment.update(QUICKLY)
        yield made


@pytest.fixture
def subscriber(installation: Installation) -> Iterator[Subscriber]:
    """Follows every tenant through the row."""
    with subscribers.to(installation) as made:
        yield made


@pytest.fixture
def new_tenant(installation: Installation, subscriber: Subscriber) -> Callable[..., Principal]:
    """Makes tenants with the families named, and has them followed."""
    numbers = itertools.count(1)

    def make(*families: str) -> Principal:
        made = installation.tenant(f"t{next(numbers)}", *families)
        subscriber.follow(made)
        return made

    return make


@pytest.fixture
def database_proxy(servers: Servers) -> Iterator[Proxy]:
    """A way to PostgreSQL that can fail."""
    with proxy.to(servers.admin_url) as made:
        yield made


@pytest.fixture
def redis_proxy(servers: Servers) -> Iterator[Proxy]:
    """A way to Redis that can fail."""
    with proxy.to(servers.redis_url) as made:
        yield made

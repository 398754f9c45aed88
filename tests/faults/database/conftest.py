"""The rows of PostgreSQL have one of each module's own: they stop it, fill it and lock it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api.embedded import Servers
from tenants.roles import Addresses
from tests.conftest import migrated
from tests.faults import servers as own
from tests.faults.servers import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A PostgreSQL of this module's own."""
    with own.postgres_server() as made:
        yield made


@pytest.fixture(scope="module")
def servers(servers: Servers, server: Server) -> Servers:
    """The module's PostgreSQL, and the Redis of all."""
    return Servers(server.address, servers.redis_url, ())


@pytest.fixture(scope="module")
def template(servers: Servers) -> Addresses:
    """A migrated database on the module's PostgreSQL."""
    return migrated(servers)

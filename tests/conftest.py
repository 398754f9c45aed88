"""Fixtures that everything shares: real servers, and databases cloned from a migrated one."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import hypothesis  # Compiling it after greenlets have run ends Python 3.11 with a SystemError.
import psycopg2
import psycopg2.extras
import pytest
import redis
from psycopg2 import sql
from sqlalchemy.orm import Session

from api import embedded
from api.embedded import Servers
from tenants import db, roles
from tenants.context import Principal
from tenants.roles import Addresses, Passwords
from tests.support import forkserver
from tests.support.folders import ROOT
from tests.support.hands import Hands
from tests.support.installations import Installation
from tests.support.tiers import Tier

_PASSWORDS = Passwords(owner="owner-for-tests", app="app-for-tests", system="system-for-tests")
_TEMPLATE = "tenantry_template"
_numbers = itertools.count(1)
os.environ["TENANTRY_DIAGNOSTICS"] = "true"
hypothesis.settings.register_profile("tenantry", deadline=None)
hypothesis.settings.load_profile("tenantry")
signal.signal(signal.SIGTERM, signal.default_int_handler)  # As after Ctrl-C, fixtures end what they started.


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the tests that have a long form take."""
    parser.addoption(
        "--tier", type=Tier, choices=list(Tier), default=Tier.QUICK, help="quick, as CI runs them, or full"
    )


@pytest.fixture(scope="session")
def tier(pytestconfig: pytest.Config) -> Tier:
    """`tier(short, long)`: which form of a test is asked for."""
    chosen: Tier = pytestconfig.getoption("--tier")
    return chosen


@pytest.fixture(scope="session", autouse=True)
def _forkserver() -> Iterator[None]:
    """What processes are started from ends with the tests."""
    yield
    forkserver.stop()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """PostgreSQL and Redis for this test process."""
    with embedded.start(tmp_path_factory.mktemp("servers"), durable=False) as running:
        yield running


@pytest.fixture(scope="session")
def template(servers: Servers) -> Addresses:
    """A migrated database that others are cloned from."""
    return migrated(servers)


def migrated(servers: Servers) -> Addresses:
    """A migrated database on these servers, for `installed` to clone."""
    addresses = roles.create(servers.admin_url, _PASSWORDS, database=_TEMPLATE)
    subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_OWNER_URL": addresses.owner},
        check=True,
        capture_output=True,
    )
    return addresses


@contextmanager
def installed(servers: Servers, template: Addresses, folder: Path) -> Iterator[Installation]:
    """A fresh installation on the servers, where nothing of an earlier one waits in a queue."""
    with closing(redis.Redis.from_url(servers.redis_url)) as client:
        client.flushall()
    name = f"tenantry_{os.getpid()}_{next(_numbers)}"
    with closing(psycopg2.connect(servers.admin_url)) as admin:
        admin.autocommit = True
        with admin.cursor() as cursor:
            cursor.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}").format(
                    sql.Identifier(name), sql.Identifier(_TEMPLATE), sql.Identifier(roles.OWNER)
                )
            )
    addresses = Addresses(
        app=roles.address(servers.admin_url, roles.APP, _PASSWORDS.app, name),
        system=roles.address(servers.admin_url, roles.SYSTEM, _PASSWORDS.system, name),
        owner=roles.address(servers.admin_url, roles.OWNER, _PASSWORDS.owner, name),
    )
    made = Installation(addresses, servers.redis_url, folder)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def installation(
    servers: Servers, template: Addresses, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """An installation for one module."""
    with installed(servers, template, tmp_path_factory.mktemp("installation")) as made:
        yield made


@pytest.fixture(scope="module")
def database(installation: Installation) -> Addresses:
    """The addresses of the module's database."""
    return installation.addresses


@pytest.fixture
def new_tenant(installation: Installation) -> Callable[..., Principal]:
    """Makes tenants with the families named."""
    return lambda *families: installation.tenant(f"t{next(_numbers)}", *families)


@pytest.fixture
def tenant(new_tenant: Callable[..., Principal]) -> Principal:
    """A tenant with the diagnostics and sales families."""
    return new_tenant("diagnostics", "sales")


@pytest.fixture
def slug(installation: Installation, tenant: Principal) -> str:
    """What the tenant is called."""
    return installation.slug(tenant)


@pytest.fixture
def other_tenant(new_tenant: Callable[..., Principal]) -> Principal:
    """Another one."""
    return new_tenant("diagnostics", "sales")


@pytest.fixture(scope="module")
def hands(installation: Installation) -> Iterator[Hands]:
    """Moves the installation's runs by hand."""
    made = Hands(installation)
    yield made
    made.close()


@pytest.fixture
def session(installation: Installation, tenant: Principal) -> Iterator[Session]:
    """A session of the app login inside the tenant, rolled back at the end."""
    engine = db.sync_engine(installation.addresses.app, pool_size=1)
    with db.open_session(engine, tenant) as opened:
        yield opened
        opened.rollback()
    engine.dispose()


@pytest.fixture(scope="session")
def redis_url(servers: Servers) -> str:
    """The administrator's address of Redis."""
    return servers.redis_url


@pytest.fixture(autouse=True)
def _no_thread_left_to_fail_in_silence() -> Iterator[None]:
    """An exception in a thread fails the test."""
    failures: list[threading.ExceptHookArgs] = []
    before = threading.excepthook
    threading.excepthook = failures.append
    yield
    threading.excepthook = before
    assert not failures, failures[0]


psycopg2.extras.register_uuid()  # type: ignore[no-untyped-call]

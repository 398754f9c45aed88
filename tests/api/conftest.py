"""A running API for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenants.context import Principal
from tests.support import apis
from tests.support.apis import Api
from tests.support.installations import Installation
from tests.support.people import People


@pytest.fixture(scope="module")
def api(installation: Installation) -> Iterator[Api]:
    """An API process on the module's installation."""
    with apis.running(installation) as started:
        yield started


@pytest.fixture
def people(api: Api, tenant: Principal) -> People:
    """The people of the tenant."""
    return People(api, tenant)

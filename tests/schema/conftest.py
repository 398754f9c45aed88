"""The schema without a server: contexts of callers who never reach the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from pydantic import SecretStr

from schema.context import Context
from tasks.engine.streams import Hub
from tenants import ids
from tenants.buckets import Bucket
from tenants.context import ActorKind, Principal, Scope
from tenants.settings import Auth, Settings


class NoDatabase:
    """Stands where the database does, and fails whoever asks it."""

    async def call(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("the database was asked")


@pytest.fixture
def new_context() -> Callable[..., Context]:
    """Makes the context of a caller with these scopes: a key's, a member's, an operator's or a stranger's."""

    async def after_commit(_: list[object]) -> None:
        raise AssertionError("something was committed")

    def make(*scopes: str, stranger: bool = False, **options: Any) -> Context:
        role = options.pop("role", None)
        kind = options.pop("kind", ActorKind.API_KEY if role is None else ActorKind.USER)
        principal = Principal(ids.new(), kind, "tests", frozenset(scopes), role)
        budget = options.pop("budget", None) or Bucket(1e6, 1e6)
        context = Context(
            request_id="request-of-a-test",
            settings=Settings(auth=Auth(key_pepper=SecretStr("a-pepper-for-tests-0123456789"))),
            hub=cast("Hub", None),
            scope=None if stranger else Scope(principal, cast("Any", NoDatabase()), after_commit),
            **options,
        )
        context.budget = budget
        return context

    return make

"""The API process: put together, started, stopped."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from api import health, metrics
from api.accounts import Accounts
from api.auth import Authenticator
from api.documents import Documents
from api.graphql import View
from api.health import Readiness
from api.limits import Limits
from api.logins import Logins
from api.middleware import Envelope
from api.oidc import Oidc
from api.proofs import Proofs
from api.static import FOLDER
from tasks import registry
from tasks.engine import publish
from tasks.engine.publish import Bells
from tasks.engine.streams import Hub
from tenants import log, roles, settings
from tenants.db import AsyncDatabase
from tenants.errors import Misconfigured
from tenants.settings import Settings

_YOUNG_OBJECTS = 20_000
"""How many make the collector look for cycles. A few requests at once make Python's own 700 many times a second."""


def create() -> Starlette:
    """The application, for `uvicorn --factory api.app:create`.

    Raises:
        SystemExit: the configuration is wrong, or the database can't be reached; the message is one sentence.
    """
    try:
        current = settings.load()
        _check(current)
        _check_login(current)
        application = assemble(current)
    except Misconfigured as error:
        raise SystemExit(error.message) from None
    log.configure(current)
    _take_over_logs()
    return application


def assemble(current: Settings) -> Starlette:
    """The application with these settings.

    Raises:
        Misconfigured: a file that they name can't be read.
    """
    database = AsyncDatabase(current.database)
    bells = Bells(current)
    hub = Hub(current)
    authenticator = Authenticator(current, database, bells.ring)
    client = publish.connect_async(current.redis.api_address, timeout_seconds=current.redis.timeout_seconds)
    stopping = asyncio.Event()
    limits = Limits(current.api, client)
    proofs = Proofs(limits.failures)
    documents = Documents(current.api)
    view = View(current, authenticator, hub, limits, documents, stopping)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        with _told_to_stop(stopping):
            hub.start()
            gc.collect()
            gc.freeze()
            gc.set_threshold(_YOUNG_OBJECTS)
            yield
        stopping.set()
        await hub.close()
        await authenticator.close()
        proofs.close()
        await bells.close()
        await limits.close()
        await client.aclose()
        await database.close()

    return Starlette(
        routes=[
            Route("/graphql", view, methods=["GET", "POST"]),
            WebSocketRoute("/graphql", view),
            Route("/health/live", health.live),
            Route("/health/ready", Readiness(authenticator, client).show),
            Route("/metrics", metrics.show),
            *Logins(current, authenticator, proofs).routes(),
            *Accounts(current, authenticator, proofs).routes(),
            *Oidc(current, authenticator, limits.failures).routes(),
            *_pages(current),
        ],
        middleware=[Middleware(Envelope, settings=current.api, limits=limits), *_cors(current)],
        lifespan=lifespan,
    )


def _check(current: Settings) -> None:
    if not current.database.url:
        raise Misconfigured("DATABASE_URL is not set: the API needs the login tenantry_app.")
    if not current.auth.token_keys:
        raise Misconfigured("TENANTRY_AUTH__TOKEN_KEYS is not set: people could not log in.")
    unknown = sorted(set(current.auth.sign_up_families) - set(registry.offered()))
    if unknown:
        raise Misconfigured(f"TENANTRY_AUTH__SIGN_UP_FAMILIES: there is no family {unknown[0]!r}.")
    if not current.auth.link_keys:
        raise Misconfigured("TENANTRY_AUTH__LINK_KEYS is not set: links in mails could not be verified.")
    if not current.auth.credential_keys:
        raise Misconfigured("TENANTRY_AUTH__CREDENTIAL_KEYS is not set: tenants' credentials could not be kept.")
    if not current.auth.key_pepper.get_secret_value():
        raise Misconfigured("TENANTRY_AUTH__KEY_PEPPER is not set: API keys could not be verified.")


def _check_login(current: Settings) -> None:
    try:
        roles.check(current.database.url)
    except DBAPIError as error:
        reason = str(error.orig).strip().partition("\n")[0]
        raise Misconfigured(f"The database of DATABASE_URL can't be used: {reason}") from None


def _take_over_logs() -> None:
    """The server's own lines in our form; none for each request: those of GET would show what was asked."""
    for name in ("uvicorn", "uvicorn.error"):
        server = logging.getLogger(name)
        server.handlers.clear()
        server.propagate = True
    logging.getLogger("uvicorn.access").disabled = True


def _pages(current: Settings) -> list[Mount]:
    """What the page for browsers is made of, where there is one."""
    return [Mount("/static", StaticFiles(directory=FOLDER))] if current.environment == "development" else []


def _cors(current: Settings) -> list[Middleware]:
    if not current.api.allowed_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=current.api.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            max_age=600,
        )
    ]


@contextmanager
def _told_to_stop(stopping: asyncio.Event) -> Iterator[None]:
    """Hear SIGTERM and SIGINT beside the server, which waits for open streams to end before it ends the lifespan."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def hear(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stopping.set)
        if callable(before[number]):
            before[number](number, frame)

    for number in before:
        signal.signal(number, hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The doors to PostgreSQL: sessions that stand in exactly one tenant, and the declarative base of every model."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast
from uuid import UUID
from weakref import WeakValueDictionary

import asyncpg
from sqlalchemy import Connection, Engine, ExceptionContext, Executable, MetaData, create_engine, event, text
from sqlalchemy.dialects.postgresql import UUID as PgUUID
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.exc import DBAPIError, DisconnectionError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, SessionTransaction, mapped_column
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import await_, greenlet_spawn

from tenants import postgres
from tenants.errors import TenantErased, Unavailable
from tenants.settings import Database as Address

if TYPE_CHECKING:
    from tenants.context import Principal

CURRENT_TENANT = "nullif(current_setting('app.tenant_id', true), '')::uuid"
"""The tenant a transaction stands in. `nullif`, because a reused connection reads the unset value as ''."""

_ENTER = text(
    "SELECT enter_tenant(CAST(:tenant AS uuid)), set_config('application_name', :application, true),"
    " set_config('transaction_read_only', :read_only, true),"
    " set_config('idle_in_transaction_session_timeout', :idle, true)"
)
_IDLE_SECONDS = 30
_LATE_SECONDS = 1.0
"""How much later than PostgreSQL's own limit an answer may come; then the line is held for dead."""
GONE = "TN007"
"""The tenant is being erased, or has been."""
_SHARES = 4
"""A tenant may hold one in so many of the pool's connections at once."""
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class Base(DeclarativeBase):
    """Base of every model."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class TenantRow:
    """Mixin of every tenant's table: the key begins with the tenant, whom the session names and domain code never."""

    tenant_id: Mapped[UUID] = mapped_column(
        PgUUID(as_uuid=True), primary_key=True, server_default=text(CURRENT_TENANT), sort_order=-1
    )


class TenantSession(Session):
    """A session that stands in the tenant of its principal from its first statement on."""


class SingleStatement(Session):
    """Stands for the session in a service of a single statement. All it can do is to `fetch`, in autocommit.

    Args:
        engine: over asyncpg.
        info: as that of a session.
    """

    def __init__(self, engine: Engine, info: dict[str, Any]) -> None:  # Without all that a unit of work needs.
        self.engine = engine
        self.info = info


@event.listens_for(TenantSession, "after_begin")
def _enter(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    info = session.info
    values = {
        "tenant": str(info["principal"].tenant),
        "application": info.get("application", "tenantry"),
        "read_only": "on" if info.get("read_only") else "off",
        "idle": f"{info.get('idle_seconds', _IDLE_SECONDS):.0f}s",
    }
    try:
        connection.execute(_ENTER, values)
    except DBAPIError as error:
        if sqlstate(error) == GONE:
            raise TenantErased from error
        raise


def single_statement(service: F) -> F:
    """Mark a service that is one `fetch` of a SQL function which enters the tenant itself: in autocommit, one trip."""
    service.single_statement = True  # type: ignore[attr-defined]
    return service


def fetch(
    session: Session, statement: Executable, values: Mapping[str, object] = MappingProxyType({})
) -> Sequence[Mapping[str, Any]]:
    """The rows of a statement that stands in no session's unit of work.

    In a service of a single statement it goes straight to the driver, which costs a tenth of the way through the ORM.

    Args:
        statement: what it is compiled to is kept, for those that are made once.
        values: of its parameters, by name.

    Raises:
        DBAPIError: the database refused it, or was lost.
    """
    if not isinstance(session, SingleStatement):
        return cast("Sequence[Mapping[str, Any]]", session.execute(statement, values).mappings().all())
    query, names, constants = _compiled(statement)
    given = {**constants, **values}
    connection = session.engine.raw_connection()
    driver: Any = connection.driver_connection
    try:
        return cast("Sequence[Mapping[str, Any]]", await_(driver.fetch(query, *[given[name] for name in names])))
    except BaseException as error:
        if isinstance(error, TimeoutError):
            driver.terminate()
        lost = driver.is_closed()
        if lost or not isinstance(error, Exception):  # Who cancels leaves it in the middle of an answer.
            connection.invalidate()
        if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError):
            raise DBAPIError(query, None, error, connection_invalidated=lost) from error
        raise
    finally:
        connection.close()


def notify(session: Session, notice: object) -> None:
    """Leave a notice to be sent, best effort, once the session's transaction has been committed."""
    session.info.setdefault("notices", []).append(notice)


def notices(session: Session) -> list[object]:
    """The notices that services left in this session."""
    return cast("list[object]", session.info.get("notices", []))


def open_session(
    engine: Engine, principal: Principal, *, application: str = "tenantry", idle_seconds: float = _IDLE_SECONDS
) -> TenantSession:
    """A synchronous session inside the principal's tenant, for workers and commands.

    Args:
        application: the name PostgreSQL shows for the connection while the transaction is open.
        idle_seconds: how long the transaction may stay idle before PostgreSQL ends it.
    """
    info = {"principal": principal, "application": application, "idle_seconds": idle_seconds}
    return TenantSession(engine, info=info, expire_on_commit=False)


def stay_idle(session: TenantSession, seconds: float) -> None:
    """Let the session's transactions, this one and those to come, stay idle for so long."""
    session.info["idle_seconds"] = seconds
    if session.in_transaction():
        session.execute(
            text("SELECT set_config('idle_in_transaction_session_timeout', :idle, true)"), {"idle": f"{seconds:.0f}s"}
        )


def sync_engine(address: str, *, pool_size: int = 2, application: str = "tenantry") -> Engine:
    """An engine over psycopg2.

    Args:
        address: a `postgresql://` address.
        pool_size: connections kept open.
        application: the connections' name in PostgreSQL.
    """
    return create_engine(
        address.replace("postgresql://", "postgresql+psycopg2://", 1),
        pool_size=pool_size,
        max_overflow=0,
        pool_pre_ping=True,
        hide_parameters=True,
        isolation_level="READ COMMITTED",
        connect_args={"application_name": application, "connection_factory": postgres.Connection, **postgres.LINE},
    )


class _Places(asyncio.Semaphore):
    """So many at once; who would wait for longer than it may is refused."""

    def __init__(self, places: int, *, wait_seconds: float) -> None:
        super().__init__(places)
        self._wait_seconds = wait_seconds

    async def acquire(self) -> Literal[True]:
        if not self.locked():  # The usual case is spared the timer.
            return await super().acquire()
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await super().acquire()
        except TimeoutError:
            raise Unavailable("The database is busy: try again in a second.", retry_after_seconds=1) from None


class AsyncDatabase:
    """The API's door: a bounded pool over asyncpg, one short session for each service call.

    However much a tenant asks for at once, it holds a share of the pool, and each of its statements ends in time.
    """

    def __init__(self, address: Address) -> None:
        self.engine: AsyncEngine = create_async_engine(
            address.url.replace("postgresql://", "postgresql+asyncpg://", 1),
            pool_size=address.pool_size,
            max_overflow=0,  # A connection beyond the pool would be opened and closed for each call.
            pool_timeout=address.pool_wait_seconds,
            hide_parameters=True,
            isolation_level="READ COMMITTED",
            # Of the connection and not of the transaction: a single statement has no other before it to set this.
            connect_args={
                "timeout": 5,
                "command_timeout": address.statement_seconds + _LATE_SECONDS,
                "server_settings": {
                    "application_name": "tenantry-api",
                    "statement_timeout": f"{address.statement_seconds * 1000:.0f}",
                    "jit": "off",  # It compiles for longer than any of these statements runs.
                },
            },
        )
        event.listen(self.engine.sync_engine, "checkout", self._refuse_dead)
        event.listen(self.engine.sync_engine, "handle_error", _end_silent)
        self._silent_seconds = address.statement_seconds + _LATE_SECONDS
        self._sound_since = -math.inf
        self._make_places = partial(_Places, wait_seconds=address.pool_wait_seconds)
        self._places = self._make_places(address.pool_size)
        self._share = max(1, address.pool_size // _SHARES)
        self._shares: WeakValueDictionary[UUID, _Places] = WeakValueDictionary()

    async def call(
        self,
        principal: Principal | None,
        service: Callable[..., T],
        args: Sequence[Any],
        values: Mapping[str, Any],
        *,
        read_only: bool = False,
    ) -> tuple[T, list[object]]:
        """What a service returns, and the notices it left, in a session of its own that commits when it ends well.

        Args:
            principal: whose tenant it stands in; None for a look-up by one function, before a tenant is known.
            args, values: what the service takes after the session.

        Raises:
            Unavailable: the database can't be reached, no connection came free in time, or a statement took too long.
            TenantErased: the tenant is being erased, or has been.
        """
        # Who has used up its share of the pool queues by itself. Forgotten once nobody holds it or waits for it.
        share = None if principal is None else self._shares.setdefault(principal.tenant, self._make_places(self._share))
        async with share or nullcontext(), self._places:
            try:
                return await greenlet_spawn(self._call, principal, service, args, values, read_only)
            except Exception as error:
                if isinstance(error, TimeoutError):
                    self._sound_since = time.monotonic() - self._silent_seconds
                if problem := _problem(error):
                    raise Unavailable(f"{problem}: try again in a second.", retry_after_seconds=1) from error
                raise

    def _call(
        self,
        principal: Principal | None,
        service: Callable[..., T],
        args: Sequence[Any],
        values: Mapping[str, Any],
        read_only: bool,
    ) -> tuple[T, list[object]]:
        engine = self.engine.sync_engine
        info: dict[str, Any] = {"principal": principal, "read_only": read_only}
        if hasattr(service, "single_statement"):
            alone = SingleStatement(engine, info)
            return service(alone, *args, **values), notices(alone)
        with TenantSession(engine, info=info, expire_on_commit=False) as session:
            result = service(session, *args, **values)
            session.commit()
            return result, notices(session)

    def _refuse_dead(self, adapted: Any, record: ConnectionPoolEntry, _: Any) -> None:
        """Have a connection replaced that was closed from the other side, and all as old; or as old as a silent one."""
        driver = adapted.driver_connection
        if driver.is_closed():
            raise InvalidatePoolError
        if record.info.setdefault("opened", time.monotonic()) < self._sound_since:
            driver.terminate()
            raise DisconnectionError

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


@lru_cache(maxsize=64)
def _compiled(statement: Executable) -> tuple[str, Sequence[str], Mapping[str, Any]]:
    """A statement as asyncpg takes it, the names of its parameters in their order, and the values it holds itself."""
    compiled: Any = cast("Any", statement).compile(dialect=cast("Any", asyncpg_dialect)())
    return compiled.string, tuple(compiled.positiontup), compiled.params


def _end_silent(context: ExceptionContext) -> None:
    """A connection that gave no answer in time is not asked again, not even to roll back."""
    if isinstance(context.original_exception, TimeoutError) and context.connection is not None:
        driver: Any = context.connection.connection.driver_connection
        driver.terminate()
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False  # It would ask each of the others to say good-bye.


def sqlstate(error: Exception) -> str:
    """The code with which PostgreSQL refused a statement, over either driver; nothing for any other error."""
    return getattr(cause := getattr(error, "orig", error), "sqlstate", None) or getattr(cause, "pgcode", None) or ""


def _problem(error: Exception) -> str | None:
    """What a caller is told of an error that is not its statement's fault; None for one that is."""
    state = sqlstate(error)
    if state in _TOOK_TOO_LONG:
        return "This took the database too long"
    invalidated = isinstance(error, DBAPIError) and error.connection_invalidated
    if invalidated or isinstance(error, (OSError, PoolTimeout)) or state[:2] == "08" or state in _OUTAGES:
        return "The database can't be reached"
    return None


_TOOK_TOO_LONG = {"55P03", "57014"}
"""A lock could not be had in time; the statement took too long."""
_OUTAGES = {"53300", "57P01", "57P02", "57P03"}
"""Too many connections; the server is stopping, has crashed, or is starting. Source: PostgreSQL, appendix A."""

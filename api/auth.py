"""Access tokens and API keys: the only place that makes a caller out of one, and that notices when one ends."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Concatenate, Final, ParamSpec, TypeVar
from uuid import UUID

import structlog
from sqlalchemy.orm import Session
from starlette.requests import HTTPConnection

from api import metrics
from tasks import registry
from tenants import addresses, audit, ids, keys, logins, member_roles, signing, system
from tenants.context import ActorKind, Principal, Scope
from tenants.db import AsyncDatabase
from tenants.errors import Unauthenticated, Unavailable
from tenants.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")
log = structlog.get_logger(__name__)

_REMEMBERED: Final = 10_000
_WATCH_SECONDS: Final = 1.0
_TOLD_SECONDS: Final = 60.0
_LONGEST: Final = 4096


@dataclass(frozen=True, slots=True)
class Verified:
    """What an access token or an API key stands for, once it has been verified.

    Args:
        principal: the caller.
        suspended: whether the caller's tenant is suspended.
        expires: Unix time in seconds of its end; None for never.
    """

    principal: Principal
    suspended: bool
    expires: float | None


class Authenticator:
    """Verifies access tokens and API keys; what it found holds for a few seconds.

    Args:
        settings: of this installation.
        database: where sessions and keys are.
        after_commit: what a scope does with the notices of a commit.
    """

    def __init__(
        self, settings: Settings, database: AsyncDatabase, after_commit: Callable[[list[object]], Awaitable[None]]
    ) -> None:
        self._settings = settings
        self._database = database
        self._after_commit = after_commit
        self._known: OrderedDict[bytes, tuple[float, Verified]] = OrderedDict()
        self._watches: dict[tuple[bytes, Principal], tuple[asyncio.Task[str], int]] = {}
        self._notes: set[asyncio.Task[None]] = set()
        self._told: OrderedDict[tuple[str, str], float] = OrderedDict()

    async def verify(self, text: str, address: str) -> Verified:
        """Whom an access token or an API key speaks for.

        What is refused is told in the audit log where its tenant is known: what was ours and has ended, or comes from
        where it must not.

        Args:
            text: an access token or an API key, without the word Bearer.
            address: where it comes from.

        Raises:
            Unauthenticated: it is wrong, expired or revoked; its reason says which.
            Unavailable: the database can't be asked.
        """
        try:
            verified = await self._current(text)
            ranges = verified.principal.address_ranges
            if ranges is not None and not addresses.within(address, ranges):
                raise _CallerRefused(verified.principal, "address", shown="invalid")
        except _CallerRefused as refusal:
            self.refuse(refusal.principal, refusal.why, address)
            raise
        except Unauthenticated as refusal:
            metrics.AUTHENTICATIONS_REFUSED.labels(refusal.reason).inc()
            raise
        return verified

    def refuse(self, principal: Principal, why: str, address: str) -> None:
        """Count what somebody has been refused who held a token or a key of ours, and have the audit log tell it.

        Args:
            principal: whom it spoke for.
            why: what was wrong with it.
            address: where it came from.
        """
        metrics.AUTHENTICATIONS_REFUSED.labels(why).inc()
        self.tell_refusal(principal, "authentication.refuse", reason=why, address=address)

    def tell_refusal(self, principal: Principal, action: audit.Action, **detail: str) -> None:
        """Have the audit log tell what was refused, beside the request; once a minute of each actor at most.

        Args:
            principal: who was refused, in the tenant whose log it is.
            action, detail: as `audit.record`.
        """
        now, what = time.monotonic(), (action, principal.actor)
        if self._told.get(what, -math.inf) > now - _TOLD_SECONDS:
            return
        self._told[what] = now
        self._told.move_to_end(what)
        while len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
        self._beside(self.scope(principal).write(audit.record, action, principal.actor, **detail))

    async def _current(self, text: str) -> Verified:
        digest = _digest(text)
        known = self._known.get(digest)
        if known is None or known[0] <= time.monotonic():
            try:
                verified = await self._read(text)
            except Unauthenticated:
                self._known.pop(digest, None)
                raise
            self._remember(digest, verified)
        else:
            verified = known[1]
        if verified.expires is not None and verified.expires <= time.time():
            raise _CallerRefused(verified.principal, "expired")
        return verified

    def scope(self, principal: Principal) -> Scope:
        """A caller's way to data."""
        return Scope(principal, self._database, self._after_commit)

    def member(self, tenant: UUID, actor: str) -> Scope:
        """The way to data of somebody who has proved who they are and has no principal yet: only to log in and out.

        Args:
            actor: the user's outside id; the login's or the invitation's where only that is known.
        """
        return self.scope(Principal(tenant=tenant, kind=ActorKind.USER, actor=actor))

    def desk(self, name: str) -> Scope:
        """The way to data of what serves people who are in no tenant yet: it stands in the operators' tenant.

        Args:
            name: who is named as the actor.
        """
        return self.scope(system.desk(name))

    def provider(self, tenant: UUID, name: str) -> Scope:
        """The way to data of one of the tenant's identity providers, while somebody comes from it: only for logins."""
        return self.scope(Principal(tenant=tenant, kind=ActorKind.PROVIDER, actor=f"oidc.{name}"))

    async def look_up(self, service: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a service that finds what it needs before a tenant is known."""
        result, _ = await self._database.call(None, service, args, kwargs)
        return result

    async def watch(self, text: str, caller: Principal) -> str:
        """Wait until a token or a key ends, or its caller may do something else; however long that takes.

        All who wait for the same share one look at it a second.

        Args:
            text: the token or the key.
            caller: whom it spoke for when the wait began.

        Returns:
            Why: `revoked`, `expired` or `changed`.
        """
        watched = _digest(text), caller
        task, waiting = self._watches.get(watched) or (asyncio.create_task(self._watch(text, caller)), 0)
        self._watches[watched] = task, waiting + 1
        try:
            return await asyncio.shield(task)
        finally:
            task, waiting = self._watches[watched]
            self._watches[watched] = task, waiting - 1
            if waiting == 1:
                del self._watches[watched]
                task.cancel()

    async def close(self) -> None:
        """End what runs in the background."""
        running = [*self._notes, *(task for task, _ in self._watches.values())]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _watch(self, text: str, caller: Principal) -> str:
        while True:
            try:
                verified = await self._current(text)
            except Unauthenticated as error:
                return "expired" if error.reason == "expired" else "revoked"
            except Unavailable:
                pass  # What can't be asked stands: there is nothing new to deliver either.
            except Exception:
                log.exception("authentication_not_watched")
            else:
                if _power(verified.principal) != _power(caller):
                    return "changed"
                if verified.expires is not None:
                    await asyncio.sleep(min(_WATCH_SECONDS, max(0.0, verified.expires - time.time())))
                    continue
            await asyncio.sleep(_WATCH_SECONDS)

    async def _read(self, text: str) -> Verified:
        if len(text) > _LONGEST:
            raise Unauthenticated(reason="invalid")
        if text.startswith(keys.PREFIX):
            return await self._read_key(text)
        return await self._read_token(text)

    async def _read_key(self, secret: str) -> Verified:
        if not keys.check_form(secret):
            raise Unauthenticated(reason="invalid")
        found = await self.look_up(keys.find, self._settings.auth, secret)
        operator = found.tenant == system.OPERATORS_ID
        principal = Principal(
            tenant=found.tenant,
            kind=ActorKind.OPERATOR if operator else ActorKind.API_KEY,
            actor=ids.show("key", found.key),
            scopes=found.scopes,
            task_names=found.task_names,
            address_ranges=found.address_ranges,
            expires_at=found.expires_at,
            person=found.made_by,
        )
        _refuse_ended(principal, found.revoked_at, found.expires_at)
        if not keys.used_lately(found):
            self._beside(self.scope(principal).write(keys.note_use, found.key))
        if found.outdated:
            self._beside(self.scope(principal).write(keys.store_anew, self._settings.auth, found.key, secret))
        expires = found.expires_at.timestamp() if found.expires_at else None
        return Verified(principal, found.suspended, expires)

    async def _read_token(self, text: str) -> Verified:
        try:
            token = signing.read_access(self._settings.auth, text)
        except signing.Expired as over:
            raise _CallerRefused(_somebody(over.token), over.reason) from None
        try:
            found = await self.look_up(logins.find_session, token.tenant, token.session)
        except Unauthenticated as refusal:
            raise _CallerRefused(_somebody(token), refusal.reason) from None
        principal = Principal(
            tenant=token.tenant,
            kind=ActorKind.USER,
            actor=ids.show("usr", found.user),
            scopes=_scopes(found),
            role=found.role,
            role_name=found.role_name,
            email=found.email,
            person=found.user,
            login=token.session,
        )
        _refuse_ended(principal, found.revoked_at, found.expires_at)
        return Verified(principal, found.suspended, token.expires)

    def _remember(self, digest: bytes, verified: Verified) -> None:
        self._known[digest] = time.monotonic() + self._settings.auth.cache_seconds, verified
        self._known.move_to_end(digest)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def _beside(self, note: Coroutine[None, None, None]) -> None:
        """Write a note beside the request, which doesn't wait for it."""
        task = asyncio.create_task(self._write(note))
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _write(self, note: Coroutine[None, None, None]) -> None:
        try:
            await note
        except Exception as error:  # The request it belongs to is served all the same.
            log.warning("authentication_not_noted", error=type(error).__name__)


class _CallerRefused(Unauthenticated):
    """A token or a key of ours that is good no more, or not from there.

    Args:
        principal: whom it spoke for.
        why: what the audit log is told.
        shown: what the caller is told, where that is less.
    """

    def __init__(self, principal: Principal, why: str, shown: str | None = None) -> None:
        super().__init__(Unauthenticated().message, reason=shown or why)
        self.principal = principal
        self.why = why


def client_address(connection: HTTPConnection) -> str:
    """Where a request or a socket comes from: as the proxies say that the server was told to believe."""
    return connection.client.host if connection.client else ""


def bearer(authorization: str | None) -> str | None:
    """The token or key in an `Authorization` header; None where there is no header.

    Raises:
        Unauthenticated: the header is of another kind.
    """
    if authorization is None:
        return None
    kind, _, text = authorization.strip().partition(" ")
    if kind.lower() != "bearer" or not text.strip():
        raise Unauthenticated(reason="invalid")
    return text.strip()


def _scopes(found: logins.Found) -> frozenset[str]:
    """What a member may do: their built-in role's worth, or just what their tenant's own role names."""
    return found.role_scopes if found.role is None else member_roles.built_in(found.role, registry.offered())


def _somebody(token: signing.AccessToken) -> Principal:
    """Who held a token, where nobody says any more who that was."""
    return Principal(token.tenant, ActorKind.USER, ids.show("ses", token.session))


def _refuse_ended(principal: Principal, revoked_at: datetime | None, expires_at: datetime | None) -> None:
    if revoked_at is not None:
        raise _CallerRefused(principal, "revoked")
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise _CallerRefused(principal, "expired")


def _power(caller: Principal) -> tuple[object, ...]:
    """All that decides what a caller may do."""
    return caller.scopes, caller.role, caller.task_names


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

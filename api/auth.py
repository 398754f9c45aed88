"""Credentials: the only place that makes a caller out of one, and that notices when one ends."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Concatenate, Final, ParamSpec, TypeVar
from uuid import UUID

import structlog
from sqlalchemy.orm import Session

from tasks import registry
from tenants import identity, ids, keys, signing, system
from tenants.context import ActorKind, Principal, Scope
from tenants.db import AsyncDatabase
from tenants.errors import Unauthenticated, Unavailable
from tenants.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")
log = structlog.get_logger(__name__)

_REMEMBERED: Final = 10_000
_WATCH_SECONDS: Final = 1.0
_LONGEST: Final = 4096


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential that has been verified, and whom it speaks for.

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
        self._known: OrderedDict[bytes, tuple[float, Credential]] = OrderedDict()
        self._watches: dict[bytes, tuple[asyncio.Task[str], int]] = {}
        self._notes: set[asyncio.Task[None]] = set()

    async def verify(self, text: str) -> Credential:
        """Whom a credential speaks for.

        Args:
            text: an access token or an API key, without the word Bearer.

        Raises:
            Unauthenticated: it is wrong, expired or revoked; its reason says which.
            Unavailable: the database can't be asked.
        """
        digest = _digest(text)
        known = self._known.get(digest)
        if known is None or known[0] <= time.monotonic():
            try:
                credential = await self._read(text)
            except Unauthenticated:
                self._known.pop(digest, None)
                raise
            self._remember(digest, credential)
        else:
            credential = known[1]
        if credential.expires is not None and credential.expires <= time.time():
            raise Unauthenticated(reason="expired")
        return credential

    def scope(self, principal: Principal) -> Scope:
        """A caller's way to data."""
        return Scope(principal, self._database, self._after_commit)

    def member(self, tenant: UUID, actor: str) -> Scope:
        """The way to data of somebody who has proved a password or a token and has no principal yet: only for logins.

        Args:
            actor: the user's outside id, or the login's where only that is known.
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

    async def watch(self, text: str) -> str:
        """Wait until the credential ends, however long that takes; the reason, `revoked` or `expired`.

        All who wait for the same credential share one look at it a second.
        """
        digest = _digest(text)
        task, waiting = self._watches.get(digest) or (asyncio.create_task(self._watch(text)), 0)
        self._watches[digest] = task, waiting + 1
        try:
            return await asyncio.shield(task)
        finally:
            task, waiting = self._watches[digest]
            self._watches[digest] = task, waiting - 1
            if waiting == 1:
                del self._watches[digest]
                task.cancel()

    async def close(self) -> None:
        """End what runs in the background."""
        running = [*self._notes, *(task for task, _ in self._watches.values())]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _watch(self, text: str) -> str:
        while True:
            try:
                credential = await self.verify(text)
            except Unauthenticated as error:
                return "expired" if error.reason == "expired" else "revoked"
            except Unavailable:
                pass  # What can't be asked stands: there is nothing new to deliver either.
            except Exception:
                log.exception("credential_not_watched")
            else:
                if credential.expires is not None:
                    await asyncio.sleep(min(_WATCH_SECONDS, max(0.0, credential.expires - time.time())))
                    continue
            await asyncio.sleep(_WATCH_SECONDS)

    async def _read(self, text: str) -> Credential:
        if len(text) > _LONGEST:
            raise Unauthenticated(reason="invalid")
        if text.startswith(keys.PREFIX):
            return await self._read_key(text)
        return await self._read_token(text)

    async def _read_key(self, secret: str) -> Credential:
        if not keys.check_form(secret):
            raise Unauthenticated(reason="invalid")
        found = await self.look_up(keys.find, self._settings.auth.key_pepper, secret)
        _refuse_ended(found.revoked_at, found.expires_at)
        operator = found.tenant_slug == system.OPERATORS
        principal = Principal(
            tenant=found.tenant,
            kind=ActorKind.OPERATOR if operator else ActorKind.API_KEY,
            actor=ids.show("key", found.key),
            scopes=found.scopes,
            task_names=found.task_names,
            person=found.made_by,
        )
        if not keys.used_lately(found):
            self._note(self.scope(principal), found)
        return Credential(principal, found.suspended, found.expires_at.timestamp() if found.expires_at else None)

    async def _read_token(self, text: str) -> Credential:
        token = signing.read_access(self._settings.auth, text)
        found = await self.look_up(identity.find_session, token.tenant, token.session)
        _refuse_ended(found.revoked_at, found.expires_at)
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
        return Credential(principal, found.suspended, token.expires)

    def _remember(self, digest: bytes, credential: Credential) -> None:
        self._known[digest] = time.monotonic() + self._settings.auth.cache_seconds, credential
        self._known.move_to_end(digest)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def _note(self, scope: Scope, found: keys.Found) -> None:
        """Note the key's use beside the request, which doesn't wait for it."""
        task = asyncio.create_task(self._write_note(scope, found))
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _write_note(self, scope: Scope, found: keys.Found) -> None:
        try:
            await scope.write(keys.note_use, found.key)
        except Exception as error:  # The request it belongs to is served all the same.
            log.warning("key_use_not_noted", error=type(error).__name__)


def bearer(authorization: str | None) -> str | None:
    """The credential in an `Authorization` header; None where there is no header.

    Raises:
        Unauthenticated: the header is of another kind.
    """
    if authorization is None:
        return None
    kind, _, text = authorization.strip().partition(" ")
    if kind.lower() != "bearer" or not text.strip():
        raise Unauthenticated(reason="invalid")
    return text.strip()


def _scopes(found: identity.Found) -> frozenset[str]:
    """What a member may do: their built-in role's worth, or just what their tenant's own role names."""
    return found.role_scopes if found.role is None else identity.scopes(found.role, registry.offered())


def _refuse_ended(revoked_at: datetime | None, expires_at: datetime | None) -> None:
    if revoked_at is not None:
        raise Unauthenticated(reason="revoked")
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise Unauthenticated(reason="expired")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

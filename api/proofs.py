"""Passwords at the edge: hashed and verified in threads, a few at a time, and each failure makes the next wait."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request

from api import limits
from api.backoff import BackOff
from tenants import passwords
from tenants.errors import Unauthenticated, Unavailable

T = TypeVar("T")
_HASHERS = 2
_MOST_WAITING = 32
_FREE_THERE, _FREE_ANYWHERE = 10, 100
"""Failures of a person from one network, and from all, that cost nothing."""
_REMEMBERED = 50_000


class Proofs:
    """Whether people are who they say: by their password, which is the same in all of their tenants.

    Args:
        failures: by address, of all who fail to prove who they are.
    """

    def __init__(self, failures: BackOff) -> None:
        self._people_there = BackOff(_FREE_THERE)
        self._people = BackOff(_FREE_ANYWHERE)
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._failures = failures
        self._hashers = ThreadPoolExecutor(_HASHERS, thread_name_prefix="passwords")
        self._waiting = 0

    def check(self, request: Request, email: str) -> None:
        """
        Args:
            email: the person's address in its one form.

        Raises:
            RateLimited: who goes by it, or whoever is at the caller's address, has failed too often to try now.
        """
        for count, name in self._counts(request, email):
            count.check(name)

    async def require(
        self, request: Request, email: str, password_hash: str | None, password: str, refusal: str
    ) -> None:
        """Make sure that the password is the person's. Takes as long where there is no hash.

        It counts as a failure until it is none: so those who guess at once are not ahead of the count.

        Args:
            refusal: what to say if it is not.

        Raises:
            Unauthenticated: it is not.
            RateLimited: as `check`.
            Unavailable: too many wait already.
        """
        self.check(request, email)
        counts = self._counts(request, email)
        for count, name in counts:
            count.fail(name)
        try:
            if not await self._run(passwords.verify, password_hash, password):
                raise Unauthenticated(refusal, reason="invalid")
        except Unavailable:
            for count, name in counts:
                count.undo(name)
            raise
        network = limits.address(request.scope)
        self._failures.undo(network)
        self._people.forgive(email)
        self._people_there.forgive((email, network))
        self._know(email, network)

    def _counts(self, request: Request, email: str) -> list[tuple[BackOff, Hashable]]:
        """What the caller's failures count for: their network, the person there, and the person wherever they are.

        The last, which strangers far away can use up, is nothing to a network that the person has come from before.
        """
        network = limits.address(request.scope)
        counts: list[tuple[BackOff, Hashable]] = [(self._failures, network), (self._people_there, (email, network))]
        if (email, network) not in self._known:
            counts.append((self._people, email))
        return counts

    def _know(self, email: str, network: str) -> None:
        self._known[email, network] = None
        self._known.move_to_end((email, network))
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    async def hash(self, password: str) -> str:
        """The hash of a new password.

        Raises:
            InvalidInput: it is too short or too long.
            Unavailable: too many wait already.
        """
        return await self._run(passwords.digest, password)

    async def settle(self, request: Request, email: str, password_hash: str | None, password: str, refusal: str) -> str:
        """The hash of the person's password: theirs, if they have one and this is it; else this becomes theirs.

        Raises:
            As `require` and `hash`.
        """
        if password_hash is None:
            return await self.hash(password)
        await self.require(request, email, password_hash, password, refusal)
        return password_hash

    def close(self) -> None:
        """End the threads."""
        self._hashers.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        """In a thread: a few at a time, and no longer a line than can be served in seconds."""
        if self._waiting >= _MOST_WAITING:
            raise Unavailable("Too many logins at once: try again in a second.", retry_after_seconds=1)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._hashers, work, *args)
        finally:
            self._waiting -= 1

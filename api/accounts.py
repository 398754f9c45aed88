"""Links in mails over HTTP: invitations accepted, passwords chosen anew, tenants signed up."""

from __future__ import annotations

from uuid import UUID

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from api import forms, limits, logins
from api.answers import Json
from api.auth import Authenticator
from api.limits import Buckets
from api.proofs import Proofs
from api.static import ACCOUNT
from tasks import registry
from tasks.families.accounts.service import requests
from tenants import identity, ids, invitations, links
from tenants.errors import Forbidden, TenantSuspended
from tenants.links import Kind
from tenants.settings import Settings

_MAILS_TO_ONE, _MAILS_FOR_ONE = 3, 20
"""At once: to one e-mail address, and for whoever is at one network address."""
_MAILS_PER_SECOND = 1 / 60
"""After that."""
_WRONG = "You have a password here already, and this is not it."
_ASKED = "If the address is right, a mail with a link is on its way."


class Accounts:
    """The routes under `/auth` for people who are in no tenant yet, or can't get into theirs.

    Args:
        settings: of this installation.
        authenticator: the way to the database before a caller is known.
        proofs: hashes and verifies passwords.
    """

    def __init__(self, settings: Settings, authenticator: Authenticator, proofs: Proofs) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._proofs = proofs
        self._mails_to: Buckets[str] = Buckets(_MAILS_TO_ONE, _MAILS_PER_SECOND)
        self._mails_for: Buckets[str] = Buckets(_MAILS_FOR_ONE, _MAILS_PER_SECOND)

    def routes(self) -> list[Route]:
        """The routes, each of which answers expected failures in the one form."""
        return [
            *(Route(f"/auth/{page}", _page, methods=["GET"]) for page in links.PATHS.values()),
            Route("/auth/account.js", _script, methods=["GET"]),
            Route("/auth/invitation", forms.answering(self.accept), methods=["POST"]),
            Route("/auth/reset", forms.answering(self.ask_reset), methods=["POST"]),
            Route("/auth/reset/confirm", forms.answering(self.reset), methods=["POST"]),
            Route("/auth/signup", forms.answering(self.ask_sign_up), methods=["POST"]),
            Route("/auth/signup/confirm", forms.answering(self.sign_up), methods=["POST"]),
        ]

    async def accept(self, request: Request) -> Response:
        """Become a member by an invitation's link: with one's password, or with a first one; and log in."""
        token, password = await forms.read(request, "token", "password")
        link = links.read(self._settings.auth.link_keys, Kind.INVITATION, token)
        found = await self._authenticator.look_up(invitations.find, link.tenant, link.row)
        if found.suspended:
            raise TenantSuspended
        self._proofs.check(request, found.email)
        settled = await self._proofs.settle(request, found.email, found.password_hash, password, _WRONG)
        scope = self._authenticator.member(link.tenant, ids.show("inv", link.row))
        user = await scope.write(invitations.accept, link.row, settled, list(registry.offered()))
        return await self._log_in(request, link.tenant, user)

    async def ask_reset(self, request: Request) -> Response:
        """Have the link for a new password mailed. The answer is the same for an address that nobody has."""
        [email] = await forms.read(request, "email")
        self._count(request, links.deliverable(email))
        await self._authenticator.desk("password reset").write(requests.ask_reset, self._settings, email)
        return Json({"message": _ASKED}, 202)

    async def reset(self, request: Request) -> Response:
        """Choose a new password by a mailed link; all logins end."""
        token, password = await forms.read(request, "token", "password")
        link = links.read(self._settings.auth.link_keys, Kind.RESET, token)
        await self._authenticator.look_up(links.find, Kind.RESET, link.row)
        hashed = await self._proofs.hash(password)
        await self._authenticator.desk("password reset").write(links.reset, link.row, hashed)
        return Response(status_code=204)

    async def ask_sign_up(self, request: Request) -> Response:
        """Have the link mailed that makes a tenant. Whether its name is free is told only to who has the link."""
        self._require_open()
        slug, email = await forms.read(request, "tenant", "email")
        name, timezone = await forms.read_optional(request, "name", "timezone")
        self._count(request, links.deliverable(email))
        await self._authenticator.desk("sign-up").write(
            requests.ask_sign_up, self._settings, email, slug, name, timezone or "UTC"
        )
        return Json({"message": _ASKED}, 202)

    async def sign_up(self, request: Request) -> Response:
        """Make the tenant that a mailed link stands for, or one of another name if that is taken; and log in."""
        self._require_open()
        token, password = await forms.read(request, "token", "password")
        [wanted] = await forms.read_optional(request, "tenant")
        link = links.read(self._settings.auth.link_keys, Kind.SIGN_UP, token)
        found = await self._authenticator.look_up(links.find, Kind.SIGN_UP, link.row)
        slug = wanted or found.slug or ""
        identity.check_tenant(slug, "UTC", path="tenant")
        self._proofs.check(request, found.email)
        settled = await self._proofs.settle(request, found.email, found.password_hash, password, _WRONG)
        families = self._settings.auth.sign_up_families
        tenant, user = await self._authenticator.desk("sign-up").write(
            links.sign_up, link.row, slug, families, found.user, settled
        )
        return await self._log_in(request, tenant, user)

    async def _log_in(self, request: Request, tenant: UUID, user: UUID) -> Response:
        return forms.show(await logins.enter(self._authenticator, self._settings.auth, request, tenant, user), 201)

    def _count(self, request: Request, email: str) -> None:
        """Let nobody have mails sent in masses, to one address or from one."""
        limits.count(self._mails_to.of(email), self._mails_for.of(limits.address(request.scope)))

    def _require_open(self) -> None:
        if not self._settings.auth.sign_up:
            raise Forbidden("Nobody signs up here by themselves: ask the operators for a tenant.")


async def _page(_: Request) -> Response:
    """The form behind a link, for a browser."""
    return FileResponse(ACCOUNT / "index.html")


async def _script(_: Request) -> Response:
    return FileResponse(ACCOUNT / "account.js")

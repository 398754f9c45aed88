"""Logins over HTTP: by password, by refresh token, into another tenant; ended; and the password itself."""

from __future__ import annotations

from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import auth, forms, metrics
from api.answers import Json
from api.auth import Authenticator
from api.proofs import Proofs
from tenants import identity, ids, logins, passwords, signing
from tenants.context import ActorKind, Principal, Scope
from tenants.errors import Forbidden, InvalidInput, NotFound, Unauthenticated
from tenants.logins import Tokens
from tenants.settings import Auth, Settings

_REFUSED = "The tenant, the e-mail address or the password is wrong."


class Logins:
    """The routes under `/auth` that give tokens and take them back.

    Args:
        settings: of this installation.
        authenticator: the way to the database before and after a caller is known.
        proofs: verifies passwords.
    """

    def __init__(self, settings: Settings, authenticator: Authenticator, proofs: Proofs) -> None:
        self._auth = settings.auth
        self._authenticator = authenticator
        self._proofs = proofs

    def routes(self) -> list[Route]:
        """The routes, each of which answers expected failures in the one form."""
        return [
            Route("/auth/login", forms.answering(self.log_in), methods=["POST"]),
            Route("/auth/refresh", forms.answering(self.refresh), methods=["POST"]),
            Route("/auth/logout", forms.answering(self.log_out), methods=["POST"]),
            Route("/auth/tenants", forms.answering(self.tenants), methods=["GET"]),
            Route("/auth/switch", forms.answering(self.switch), methods=["POST"]),
            Route("/auth/password", forms.answering(self.change_password), methods=["POST"]),
        ]

    async def log_in(self, request: Request) -> Response:
        """Exchange tenant, e-mail address and password for tokens. Whatever is wrong, the answer is the same."""
        slug, email, password = await forms.read(request, "tenant", "email", "password")
        try:
            email = identity.normalise(email)
        except InvalidInput:
            email = ""  # Nobody's; asked for and verified all the same, so that it takes as long.
        self._proofs.check(request, email)
        found = await self._authenticator.look_up(logins.find_login, slug, email)
        try:
            await self._proofs.require(request, email, found.password_hash if found else None, password, _REFUSED)
        except Unauthenticated:
            metrics.LOGINS.labels("refused").inc()
            if found is not None:
                member = self._authenticator.member(found.tenant, ids.show("usr", found.user)).principal
                address = auth.client_address(request)
                self._authenticator.tell_refusal(member, "login.refuse", reason="password", address=address)
            raise
        assert found is not None
        tokens = await enter(self._authenticator, self._auth, request, found.tenant, found.user)
        metrics.LOGINS.labels("accepted").inc()
        return forms.show(tokens)

    async def refresh(self, request: Request) -> Response:
        """Exchange a refresh token for the next pair; a second use ends the whole login."""
        [text] = await forms.read(request, "refreshToken")
        token = logins.read_refresh(self._auth.token_keys, text)
        scope = self._authenticator.member(token.tenant, ids.show("ses", token.session))
        tokens = await scope.write(logins.refresh, self._auth, token)
        if tokens is None:
            self._authenticator.refuse(scope.principal, "revoked", auth.client_address(request))
            raise Unauthenticated("The login has ended: log in again.", reason="revoked")
        return forms.show(tokens)

    async def log_out(self, request: Request) -> Response:
        """End a login, named by its refresh token or by an access token in the header."""
        text = auth.bearer(request.headers.get("authorization"))
        if text is not None:
            access = signing.read_access(self._auth, text)
            tenant, session = access.tenant, access.session
        else:
            [sent] = await forms.read(request, "refreshToken")
            token = logins.read_refresh(self._auth.token_keys, sent)
            tenant, session = token.tenant, token.session
        scope = self._authenticator.member(tenant, ids.show("ses", session))
        await scope.write(logins.close_login, session)
        return Response(status_code=204)

    async def tenants(self, request: Request) -> Response:
        """The tenants the caller is a member of, if their password opened the login; else the login's own."""
        caller = (await self._person(request)).principal
        found = await self._authenticator.look_up(logins.tenants_of, caller.tenant, caller.login)
        return Json(
            {
                "tenants": [
                    {
                        "id": ids.show("ten", one.tenant),
                        "slug": one.slug,
                        "name": one.name,
                        "role": one.role,
                        "roleName": one.role_name,
                        "current": one.tenant == caller.tenant,
                    }
                    for one in found
                ]
            }
        )

    async def switch(self, request: Request) -> Response:
        """Open a login to another of the caller's tenants, with tokens of its own; this one goes on beside it."""
        [slug] = await forms.read(request, "tenant")
        caller = (await self._person(request)).principal
        found = await self._authenticator.look_up(logins.tenants_of, caller.tenant, caller.login)
        wanted = next((one for one in found if one.slug == slug and one.tenant != caller.tenant), None)
        if wanted is None:
            raise NotFound("You are in no other tenant of this name, or this login does not lead there: log in to it.")
        assert caller.person is not None
        return forms.show(await enter(self._authenticator, self._auth, request, wanted.tenant, caller.person))

    async def change_password(self, request: Request) -> Response:
        """Replace the caller's password, and end all of their other logins, in every tenant."""
        current, password = await forms.read(request, "current", "password")
        scope = await self._person(request)
        email = scope.principal.email or ""
        self._proofs.check(request, email)
        before = await scope.read(passwords.own)
        await self._proofs.require(request, email, before, current, "The current password is wrong.")
        assert before is not None
        await scope.write(passwords.change, before, await self._proofs.hash(password))
        return Response(status_code=204)

    async def _person(self, request: Request) -> Scope:
        """The way to data of a caller who has logged in."""
        text = auth.bearer(request.headers.get("authorization"))
        if text is None:
            raise Unauthenticated
        principal: Principal = (await self._authenticator.verify(text, auth.client_address(request))).principal
        if principal.kind is not ActorKind.USER:
            raise Forbidden("This is for people who have logged in, not for API keys.")
        return self._authenticator.scope(principal)


async def enter(authenticator: Authenticator, settings: Auth, request: Request, tenant: UUID, user: UUID) -> Tokens:
    """Open a login to a tenant for a member who has proved their own password.

    Raises:
        Unauthenticated: the tenant lets only its identity provider say who its members are; its audit log is told.
    """
    scope = authenticator.member(tenant, ids.show("usr", user))
    try:
        return await scope.write(logins.open_login, settings, user, forms.agent(request))
    except Unauthenticated as refusal:
        metrics.LOGINS.labels("refused").inc()
        address = auth.client_address(request)
        authenticator.tell_refusal(scope.principal, "login.refuse", reason=refusal.reason, address=address)
        raise

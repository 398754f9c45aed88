"""Logins through a tenant's identity provider: there, back, and the tokens for it.

The browser is sent to the provider with a state that a cookie of this browser vouches for, and comes back with a code.
What the front end gets in exchange is a code of ours, good once, for a minute, and only together with the verifier
whose challenge the front end began with: no token ever stands in an address.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from typing import Any, Final
from urllib.parse import urlencode, urlsplit
from uuid import UUID

import structlog
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from api import forms, limits, metrics
from api.auth import Authenticator
from api.backoff import BackOff
from api.issuers import Issuers
from tenants import encryption, identities, ids, logins, providers
from tenants.context import Scope
from tenants.errors import InvalidInput, Issue, Misconfigured, Unauthenticated, Unavailable
from tenants.identities import Claims, NotVouched
from tenants.providers import Client, NoProvider
from tenants.settings import Settings

log = structlog.get_logger(__name__)

_COOKIE: Final = "tenantry_oidc_"
_STATE, _CODE = "oidc state", "oidc code"
_STATE_SECONDS: Final = 600
_CODE_SECONDS: Final = 60
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
"""Source: RFC 7636, section 4.2, S256."""
_PAGE = re.compile(r"[\x21\x22\x24-\x5b\x5d-\x7e]+")
"""Neither a fragment nor a backslash, which browsers take for a slash."""
_LONGEST_CODE = 2048
_LONGEST_RETURN = 1000
_FREE_BY_PROVIDER = 10
_REFUSED = "The login was refused: begin again."


class Oidc:
    """The routes of logins through identity providers.

    Args:
        settings: of this installation.
        authenticator: the way to the database before a caller is known.
        failures: by address, of all who fail to prove who they are.
    """

    def __init__(self, settings: Settings, authenticator: Authenticator, failures: BackOff) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._issuers = Issuers(settings)
        self._failures = failures
        self._unusable = BackOff(_FREE_BY_PROVIDER)
        """By issuer: whoever asks, a provider that fails is asked less and less."""

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("/auth/{tenant}/oidc/{provider}", forms.answering(self.begin), methods=["GET"]),
            Route("/auth/{tenant}/oidc/{provider}/callback", forms.answering(self.come_back), methods=["GET"]),
            Route("/auth/oidc/exchange", forms.answering(self.exchange), methods=["POST"]),
        ]

    async def begin(self, request: Request) -> Response:
        """Send the browser to the provider.

        The query names `return_to`, a page of an allowed origin, and the `challenge` of a verifier that the page keeps.
        """
        return_to = self._return_to(request.query_params.get("return_to", ""))
        challenge = request.query_params.get("challenge", "")
        if not _CHALLENGE.fullmatch(challenge):
            message = "must be the SHA-256 of a verifier, in URL-safe base64 without padding"
            raise InvalidInput(issues=[Issue(("challenge",), message)])
        self._failures.check(limits.address(request.scope))
        client, _ = await self._client(request)
        self._unusable.check(client.issuer)
        place = _place(request)
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        try:
            location = await self._issuers.authorize(
                client, redirect_uri=self._callback(place), state=state, nonce=nonce, verifier=verifier
            )
        except NotVouched as error:
            self._unusable.fail(client.issuer)
            log.warning("provider_unusable", issuer=client.issuer, reason=error.reason)
            raise Unavailable("The identity provider can't be asked now.", retry_after_seconds=10) from None
        self._unusable.forgive(client.issuer)
        kept = {
            "place": place,
            "state": state,
            "nonce": nonce,
            "verifier": verifier,
            "challenge": challenge,
            "return_to": return_to,
        }
        answer = RedirectResponse(location, 303)
        answer.set_cookie(
            _cookie(state),
            encryption.wrap(self._settings.auth.token_keys, _STATE, kept, _STATE_SECONDS),
            max_age=_STATE_SECONDS,
            **self._kept_at(place),
        )
        return answer

    async def come_back(self, request: Request) -> Response:
        """Take the browser back from the provider, and send it on with a code of ours, or with a word of refusal."""
        place = _place(request)
        address = limits.address(request.scope)
        self._failures.check(address)
        state = request.query_params.get("state", "")
        kept = encryption.unwrap(self._settings.auth.token_keys, _STATE, request.cookies.get(_cookie(state), ""))
        if kept is None or kept["place"] != place or not hmac.compare_digest(kept["state"].encode(), state.encode()):
            # Of nobody's doing here, so that there is nothing to tell a tenant's audit log.
            self._failures.fail(address)
            raise Unauthenticated(_REFUSED, reason="invalid")
        client, scope = await self._client(request)
        claims: Claims | None = None
        try:
            claims = await self._ask(request, client, kept)
            user = await scope.write(identities.admit, client.name, claims)
        except NotVouched as error:
            metrics.LOGINS.labels("refused").inc()
            self._failures.fail(address)
            log.info("login_refused", provider=client.name, reason=error.reason)
            await scope.write(identities.refuse, client.name, error.reason, claims)
            outcome = {"error": "access_denied"}
        else:
            metrics.LOGINS.labels("accepted").inc()
            outcome = {"code": self._code(client, scope, user, kept)}
        answer = RedirectResponse(f"{kept['return_to']}#{urlencode(outcome)}", 303)
        answer.delete_cookie(_cookie(state), **self._kept_at(place))
        return answer

    async def exchange(self, request: Request) -> Response:
        """Exchange the code, with the verifier of the challenge, for tokens. A second time ends that login."""
        code, verifier = await forms.read(request, "code", "verifier")
        ring = self._settings.auth.token_keys
        found = encryption.unwrap(ring, _CODE, code) if len(code) <= _LONGEST_CODE else None
        if found is None or not hmac.compare_digest(_digest(verifier), found["challenge"]):
            raise Unauthenticated(_REFUSED, reason="invalid")
        user, login = UUID(found["user"]), UUID(found["login"])
        scope = self._authenticator.member(UUID(found["tenant"]), ids.show("usr", user))
        tokens = await scope.write(
            logins.redeem, self._settings.auth, user, login, found["provider"], forms.agent(request)
        )
        if tokens is None:
            raise Unauthenticated(_REFUSED, reason="revoked")
        return forms.show(tokens)

    async def _client(self, request: Request) -> tuple[Client, Scope]:
        slug, name = request.path_params["tenant"], request.path_params["provider"]
        if "\0" in slug + name:
            raise NoProvider
        tenant = await self._authenticator.look_up(providers.find, slug, name)
        scope = self._authenticator.provider(tenant, name)
        try:
            return await scope.read(providers.client, self._settings, name), scope
        except Misconfigured as error:
            log.error("provider_unusable", reason=error.message)
            raise Unavailable("The identity provider can't be asked now.") from None

    async def _ask(self, request: Request, client: Client, kept: dict[str, Any]) -> Claims:
        """Whom the provider vouches for by what the browser has brought back."""
        given = request.query_params
        described = await self._issuers.describe(client.issuer)
        # Source: RFC 9207, section 2.4. A code of one provider is never sent to another.
        issuer = given.get("iss")
        if (issuer is None and described.names_itself) or (issuer is not None and issuer != client.issuer):
            raise NotVouched("issuer")
        if "error" in given or not given.get("code"):
            raise NotVouched("refused by the provider")
        return await self._issuers.ask(
            client,
            given["code"],
            redirect_uri=self._callback(kept["place"]),
            verifier=kept["verifier"],
            nonce=kept["nonce"],
        )

    def _code(self, client: Client, scope: Scope, user: UUID, kept: dict[str, Any]) -> str:
        value = {
            "tenant": str(scope.principal.tenant),
            "user": str(user),
            "login": str(ids.new()),
            "provider": client.name,
            "challenge": kept["challenge"],
        }
        return encryption.wrap(self._settings.auth.token_keys, _CODE, value, _CODE_SECONDS)

    def _return_to(self, text: str) -> str:
        """A page that a login may lead back to: of an origin that is allowed, or of our own."""
        allowed = {*self._settings.api.allowed_origins, _origin(self._settings.api.public_url)}
        origin = _origin(text) if len(text) <= _LONGEST_RETURN and _PAGE.fullmatch(text) else None
        if origin is None or origin not in allowed:
            message = "must be a page of an allowed origin, without a fragment"
            raise InvalidInput(issues=[Issue(("return_to",), message)])
        return text

    def _callback(self, place: str) -> str:
        """Where the provider sends the browser back to: as it was told, whatever host this request names."""
        return f"{self._settings.api.public_url.rstrip('/')}{place}/callback"

    def _kept_at(self, place: str) -> dict[str, Any]:
        secure = self._settings.environment != "development"
        return {"path": f"{place}/callback", "httponly": True, "secure": secure, "samesite": "lax"}


def _origin(address: str) -> str | None:
    """Scheme, host and port of an address; None where it has none that can be trusted."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    return None if "@" in parts.netloc or not parts.netloc else f"{parts.scheme}://{parts.netloc}"


def _place(request: Request) -> str:
    return f"/auth/{request.path_params['tenant']}/oidc/{request.path_params['provider']}"


def _cookie(state: str) -> str:
    """Of one login, so that several may be under way in one browser."""
    return _COOKIE + hashlib.sha256(state.encode()).hexdigest()[:16]


def _digest(verifier: str) -> str:
    return urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()

"""OpenID providers as we ask them: their description, their keys, and what they say of somebody who logged in there.

Source: OpenID Connect Core 1.0 and Discovery 1.0, RFC 9207 (issuer identification), RFC 9700 (best current practice).
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from ssl import SSLContext
from typing import Any, Final
from urllib.parse import quote_plus

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import Key, KeySet, import_key

from tasks.gateways.outside import Guarded, Resolver
from tenants.identities import Claims, NotVouched
from tenants.providers import Client
from tenants.settings import Settings

ALGORITHMS: Final = ("RS256", "PS256", "ES256")
"""What an ID token may be signed with: nothing that needs a secret we share, and never nothing."""

_CALL_SECONDS = 10.0
_LOGIN_SECONDS = 20.0
"""For all calls of one step together."""
_FRESH_SECONDS = 600.0
"""How long a provider is not asked again for its description and its keys."""
_AGAIN_SECONDS = 60.0
"""How long a provider that signs with an unknown key is not asked for its keys again."""
_LEEWAY_SECONDS = 30
_REMEMBERED = 1000
_LONGEST_TOKEN = 64 * 1024
_LONGEST_SUBJECT = 255
_MOST_GROUPS = 1000
_MODULUS = range(342, 1366 + 1)
"""The length of an RSA key's, in characters: 2,048 to 8,192 bits."""
_MOST_KEYS = 20
"""Of a provider: all of them are read at once, which others wait for."""
_UNREADABLE = (ValueError, RecursionError)
"""What JSON comes to that is none, or is nested so deep that nobody means it."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a provider says of itself."""

    authorization: str
    token: str
    keys: str
    userinfo: str | None
    by_post: bool
    """Whether the client secret may be sent in the body."""
    names_itself: bool
    """Whether it says in each answer who it is."""


@dataclass(slots=True)
class _Known:
    description: Description
    described: float
    keys: KeySet | None = None
    keys_asked: float = 0.0
    missed: float = -math.inf
    """When an unknown key last made us ask."""


class Issuers:
    """All providers that this process has met.

    Args:
        settings: of this installation.
    """

    def __init__(self, settings: Settings) -> None:
        self._plain = settings.environment == "development"
        self._inner_hosts = settings.api.inner_hosts
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._resolver = Resolver()

    async def describe(self, issuer: str) -> Description:
        """What the provider says of itself, asked anew after ten minutes.

        Raises:
            NotVouched: it can't be reached, or calls itself something else.
        """
        return (await self._meet(issuer)).description

    async def authorize(self, client: Client, *, redirect_uri: str, state: str, nonce: str, verifier: str) -> str:
        """Where the browser is sent for a login.

        Args:
            redirect_uri: where the provider is to send it back to.
            state: what it is to bring back.
            nonce: what the ID token is to name.
            verifier: of the challenge that the login begins with (PKCE).

        Raises:
            NotVouched: as `describe`.
        """
        described = await self.describe(client.issuer)
        location: str = prepare_grant_uri(
            described.authorization,
            client.client_id,
            "code",
            redirect_uri,
            client.scopes,
            state,
            nonce=nonce,
            code_challenge=create_s256_code_challenge(verifier),
            code_challenge_method="S256",
        )
        return location

    async def ask(self, client: Client, code: str, *, redirect_uri: str, verifier: str, nonce: str) -> Claims:
        """Whom the provider vouches for by this code.

        Args:
            redirect_uri: where it sent the code to.
            verifier: of the challenge that the login began with (PKCE).
            nonce: that the login began with.

        Raises:
            NotVouched: it doesn't, or not in a way that can be believed.
        """
        known = await self._meet(client.issuer)
        description = known.description
        try:
            async with asyncio.timeout(_LOGIN_SECONDS), self._session(client, description) as session:
                answer = await session.fetch_token(
                    description.token, code=code, redirect_uri=redirect_uri, code_verifier=verifier
                )
                claims = await self._verify(client, known, answer.get("id_token"), nonce)
                more: dict[str, Any] = {}
                wanted = {"email", client.groups_claim or "email"}
                if description.userinfo is not None and not wanted <= claims.keys():
                    more = await self._more(session, description.userinfo, claims["sub"])
        except OAuthError:
            raise NotVouched("code") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError):
            raise NotVouched("unreachable") from None
        except _UNREADABLE:
            raise NotVouched("answer") from None
        return _claims(client, claims, more)

    async def _meet(self, issuer: str) -> _Known:
        known = self._known.get(issuer)
        if known is None or known.described + _FRESH_SECONDS < time.monotonic():
            described = await self._get(f"{issuer.removesuffix('/')}/.well-known/openid-configuration")
            description = _describe(issuer, described, plain=self._plain)
            now = time.monotonic()
            known = replace(known, description=description, described=now) if known else _Known(description, now)
            self._known[issuer] = known
            self._known.move_to_end(issuer)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return known

    async def _verify(self, client: Client, known: _Known, token: object, nonce: str) -> dict[str, Any]:
        """The claims of an ID token. Source: OpenID Connect Core 1.0, section 3.1.3.7."""
        if not isinstance(token, str) or len(token) > _LONGEST_TOKEN:
            raise NotVouched("no ID token")
        try:
            header = jws.extract_compact(token.encode()).headers()
            kind = str(header.get("typ", "JWT")).upper()
            if header.get("alg") not in ALGORITHMS or "crit" in header or kind != "JWT":
                raise NotVouched("signature")
            decoded = jwt.decode(token, await self._keys(known, header.get("kid")), algorithms=list(ALGORITHMS))
        except (JoseError, TypeError, *_UNREADABLE):
            raise NotVouched("signature") from None
        claims = decoded.claims
        try:
            # Decoding alone believes a token whose time is over: only the registry looks at the claims.
            jwt.JWTClaimsRegistry(
                leeway=_LEEWAY_SECONDS,
                iss={"essential": True, "value": client.issuer},
                aud={"essential": True, "value": client.client_id},
                sub={"essential": True},
                exp={"essential": True},
                iat={"essential": True},
            ).validate(claims)
        except JoseError as error:
            raise NotVouched(error.error) from None
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if claims.get("azp", None if several else client.client_id) != client.client_id:
            raise NotVouched("audience")
        said = claims.get("nonce")
        if not isinstance(said, str) or not hmac.compare_digest(said.encode(), nonce.encode()):
            raise NotVouched("nonce")
        return dict(claims)

    async def _keys(self, known: _Known, kid: object) -> KeySet:
        """The provider's keys; asked for anew when one is missing, for that reason at most once a minute."""
        now = time.monotonic()
        missing = known.keys is not None and kid is not None and kid not in {key.kid for key in known.keys}
        if missing and known.missed + _AGAIN_SECONDS < now:
            known.missed = now
            known.keys = None
        if known.keys is None or known.keys_asked + _FRESH_SECONDS < now:
            known.keys = _key_set(await self._get(known.description.keys))
            known.keys_asked = now
        return known.keys

    async def _more(self, session: AsyncOAuth2Client, url: str, subject: object) -> dict[str, Any]:
        """What the provider tells of the person beside the ID token. Source: OpenID Connect Core 1.0, section 5.3."""
        answer = await session.get(url)
        if answer.status_code != 200:
            raise NotVouched("userinfo")
        told = answer.json()
        if not isinstance(told, dict) or told.get("sub") != subject:
            raise NotVouched("userinfo")
        return told

    async def _get(self, url: str) -> dict[str, Any]:
        try:
            async with (
                asyncio.timeout(_LOGIN_SECONDS),
                httpx2.AsyncClient(transport=self._transport(), timeout=_CALL_SECONDS, trust_env=False) as client,
            ):
                answer = await client.get(url, headers={"Accept": "application/json"})
                told = answer.json() if answer.status_code == 200 else None
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError):
            raise NotVouched("unreachable") from None
        except _UNREADABLE:
            raise NotVouched("discovery") from None
        if not isinstance(told, dict):
            raise NotVouched("discovery")
        return told

    def _session(self, client: Client, description: Description) -> AsyncOAuth2Client:
        secret = None if client.client_secret is None else client.client_secret.get_secret_value()
        name, method = client.client_id, "none"
        if secret is not None and description.by_post:
            method = "client_secret_post"
        elif secret is not None:
            # Authlib joins both as they are; they are to be encoded first. Source: RFC 6749, section 2.3.1.
            name, secret, method = quote_plus(name), quote_plus(secret), "client_secret_basic"
        return AsyncOAuth2Client(
            name,
            secret,
            token_endpoint_auth_method=method,
            transport=self._transport(),
            leeway=0,
            timeout=_CALL_SECONDS,
            trust_env=False,
        )

    def _transport(self) -> Guarded:
        return Guarded(self._certificates, self._resolver, inner_hosts=self._inner_hosts, plain=self._plain)

    @cached_property
    def _certificates(self) -> SSLContext:
        return httpx2.create_ssl_context(trust_env=False)


def _describe(issuer: str, told: Mapping[str, Any], *, plain: bool) -> Description:
    # A document that speaks for another issuer is how one provider passes itself off as the other.
    if told.get("issuer") != issuer:
        raise NotVouched("issuer")
    endpoints = [told.get(name) for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")]
    userinfo = told.get("userinfo_endpoint")
    schemes = ("https://", "http://") if plain else ("https://",)
    if not all(isinstance(url, str) and url.startswith(schemes) for url in endpoints):
        raise NotVouched("discovery")
    methods = told.get("token_endpoint_auth_methods_supported")
    return Description(
        authorization=str(endpoints[0]),
        token=str(endpoints[1]),
        keys=str(endpoints[2]),
        userinfo=userinfo if isinstance(userinfo, str) else None,
        by_post=isinstance(methods, list) and "client_secret_post" in methods,
        names_itself=told.get("authorization_response_iss_parameter_supported") is True,
    )


def _key_set(told: Mapping[str, Any]) -> KeySet:
    """The keys that may have signed an ID token: public ones, of a fit length, meant for that; of the first twenty."""
    given = told.get("keys")
    found: list[Key] = []
    for one in given[:_MOST_KEYS] if isinstance(given, list) else []:
        if not isinstance(one, dict) or one.get("kty") not in {"RSA", "EC"} or one.get("use", "sig") != "sig":
            continue
        if one["kty"] == "RSA" and len(str(one.get("n", ""))) not in _MODULUS:
            continue
        try:
            found.append(import_key(one))
        except (JoseError, ValueError, TypeError, KeyError):
            continue
    return KeySet(found)


def _claims(client: Client, token: Mapping[str, Any], more: Mapping[str, Any]) -> Claims:
    """What an ID token says of a person, and what else was told where the token is silent."""
    subject = token["sub"]
    groups = None if client.groups_claim is None else {**more, **token}.get(client.groups_claim)
    if not 1 <= len(subject) <= _LONGEST_SUBJECT or "\0" in subject:
        raise NotVouched("subject")
    # Whether an address is verified is said of the address beside it, and of no other.
    address = token if "email" in token else more
    email = address.get("email")
    if isinstance(groups, str):
        groups = [groups]
    return Claims(
        issuer=client.issuer,
        subject=subject,
        email=email if isinstance(email, str) else None,
        email_verified=address.get("email_verified") is True,
        groups=[group for group in groups[:_MOST_GROUPS] if isinstance(group, str)] if isinstance(groups, list) else [],
    )

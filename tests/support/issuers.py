"""An OpenID provider of the tests' own, which says what it is told to, and a browser that logs in there."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx2
from joserfc import jwt
from joserfc.jwk import RSAKey

Claims = dict[str, Any]
new_key = cache(lambda kid: RSAKey.generate_key(2048, {"kid": kid, "use": "sig"}))
"""A provider's key; made once, for that takes long."""
CLIENT, SECRET = "tenantry", "a client secret: 50% of it + more"
PAGE = "http://127.0.0.1:8000/app"


class Issuer:
    """A provider over a real socket. What it says of a person is `claims`; how it says it can be bent."""

    def __init__(self) -> None:
        self.claims: Claims = {"sub": "s-1", "email": "ada@example.org", "email_verified": True}
        self.userinfo: Claims | None = None
        self.described: Claims = {}
        self.texts: dict[str, str] = {}
        """What stands at a path instead of what should."""
        self.kid = "k1"
        self.keys = {self.kid: new_key(self.kid)}
        self.published: list[Claims] | None = None
        self.write: Callable[[Claims], str] = self.sign
        self.asked: Counter[str] = Counter()
        self.sent: list[dict[str, str]] = []
        """The forms that came to the token endpoint, with the Authorization header."""
        self._codes: dict[str, dict[str, str]] = {}
        issuer = self
        place = f"/{secrets.token_hex(4)}"  # No other issuer of this port has had the address.

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(*issuer._get(self.path.removeprefix(place), self.headers.get("Authorization", "")))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                self._answer(*issuer._exchange(dict(parse_qsl(body)), self.headers.get("Authorization", "")))

            def _answer(self, status: int, value: Claims | str) -> None:
                body = (value if isinstance(value, str) else json.dumps(value)).encode()
                self.send_response_only(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}{place}"
        threading.Thread(target=self._server.serve_forever, name="issuer", daemon=True).start()

    def approve(self, asked: dict[str, str]) -> str:
        """A code for a login that the person has agreed to."""
        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        return code

    def sign(self, claims: Claims) -> str:
        """An ID token as it should be."""
        return jwt.encode({"alg": "RS256", "kid": self.kid}, claims, self.keys[self.kid])

    def rotate(self, kid: str) -> None:
        """Sign with a new key from now on, and publish no other."""
        self.kid = kid
        self.keys = {kid: new_key(kid)}

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()

    def _get(self, path: str, authorization: str) -> tuple[int, Claims | str]:
        self.asked[path] += 1
        if path in self.texts:
            return 200, self.texts[path]
        if path == "/.well-known/openid-configuration":
            return 200, {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/keys",
                "userinfo_endpoint": f"{self.url}/userinfo",
                "authorization_response_iss_parameter_supported": True,
                **self.described,
            }
        if path == "/keys":
            public = [key.as_dict(private=False) for key in self.keys.values()]
            return 200, {"keys": public if self.published is None else self.published}
        if path == "/userinfo" and self.userinfo is not None and authorization == "Bearer an-access-token":
            return 200, self.userinfo
        return 404, {}

    def _exchange(self, form: dict[str, str], authorization: str) -> tuple[int, Claims]:
        self.asked["/token"] += 1
        self.sent.append({**form, "authorization": authorization})
        asked = self._codes.pop(form.get("code", ""), None)
        if asked is None or asked["redirect_uri"] != form.get("redirect_uri"):
            return 400, {"error": "invalid_grant"}
        if challenge(form.get("code_verifier", "")) != asked["code_challenge"]:
            return 400, {"error": "invalid_grant"}
        now = int(time.time())
        claims = {
            "iss": self.url, "aud": asked["client_id"], "iat": now, "exp": now + 300, "nonce": asked["nonce"],
            **self.claims,
        }  # fmt: skip
        return 200, {"access_token": "an-access-token", "token_type": "Bearer", "id_token": self.write(claims)}


def challenge(verifier: str) -> str:
    """The challenge of a verifier, S256."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def new_client(cookies: dict[str, str] | None = None) -> httpx2.Client:
    """What a browser asks with. It keeps no connection, and so need not be closed."""
    limits = httpx2.Limits(max_keepalive_connections=0)
    return httpx2.Client(cookies=cookies, timeout=60, trust_env=False, limits=limits)


@dataclass
class Browser:
    """Somebody's browser, with its cookies, at a front end that logs them in.

    Args:
        url: of the API.
        place: the path of the login, `/auth/{tenant}/oidc/{provider}`.
    """

    url: str
    place: str
    client: httpx2.Client = field(default_factory=new_client)
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    @property
    def kept(self) -> dict[str, str]:
        """The cookies that the API has given it."""
        cookies = self.client.cookies.jar
        return {cookie.name: cookie.value or "" for cookie in cookies if cookie.name.startswith("tenantry_")}

    def begin(self, **query: str) -> httpx2.Response:
        """Go to where a login begins."""
        given = {"return_to": PAGE, "challenge": challenge(self.verifier), **query}
        return self.client.get(f"{self.url}{self.place}", params=given)

    def asked(self) -> dict[str, str]:
        """Begin, and what the provider is asked for."""
        answer = self.begin()
        assert answer.status_code == 303, answer.text
        return dict(parse_qsl(urlsplit(answer.headers["location"]).query))

    def come_back(self, **query: str) -> httpx2.Response:
        """Come back from the provider."""
        return self.client.get(f"{self.url}{self.place}/callback", params=query)

    def through(self, issuer: Issuer, **query: str) -> dict[str, str]:
        """A whole login; what the front end is told behind the #."""
        asked = self.asked()
        given = {"code": issuer.approve(asked), "state": asked["state"], "iss": issuer.url, **query}
        return told(self.come_back(**given))

    def exchange(self, code: str, verifier: str | None = None) -> httpx2.Response:
        """Exchange a code for tokens."""
        body = {"code": code, "verifier": verifier or self.verifier}
        return self.client.post(f"{self.url}/auth/oidc/exchange", json=body)

    def tokens(self, issuer: Issuer) -> dict[str, Any]:
        """A whole login, and the tokens for it."""
        answer = self.exchange(self.through(issuer)["code"])
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


def told(answer: httpx2.Response) -> dict[str, str]:
    """What an answer that leads back to the front end tells it."""
    assert answer.status_code == 303, answer.text
    page, _, fragment = answer.headers["location"].partition("#")
    assert page == PAGE
    return {name: values[0] for name, values in parse_qs(fragment).items()}

"""Logins through a certified OpenID provider, by its own pages, as a browser would go through them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest

from tenants.context import Principal
from tests.support import apis, issuers
from tests.support.apis import Api, Caller
from tests.support.installations import Installation
from tests.support.issuers import CLIENT, SECRET, Browser
from tests.support.people import People

PROVIDER = Path(__file__).parent / "provider"
SET = (
    "mutation($i: IdentityProviderInput!) { setIdentityProvider(input: $i)"
    " { success message identityProvider { loginUrl callbackUrl } } }"
)
WHO = "{ viewer { email role } }"
PROOFS = ["client_secret_basic", "client_secret_post", "none"]
_STEPS = 20


@pytest.fixture(scope="module")
def api(installation: Installation) -> Iterator[Api]:
    """An API."""
    with apis.running(installation) as started:
        yield started


@pytest.fixture
def provider(node_of_provider: str) -> Callable[..., Any]:
    """Starts the provider with a callback address and a way for clients to show who they are."""

    @contextmanager
    def start(callback: str, proof: str = "client_secret_basic") -> Iterator[str]:
        command = [node_of_provider, "provider.mjs", callback, proof]
        with subprocess.Popen(
            command, cwd=PROVIDER, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                assert process.stdout is not None
                yield json.loads(process.stdout.readline())["issuer"]
            finally:
                process.kill()

    return start


@contextmanager
def _front_end(
    api: Api, tenant: Principal, provider: Callable[..., Any], proof: str, **given: Any
) -> Iterator[tuple[Browser, str]]:
    """A browser at the front end of a tenant whose provider this is."""
    slug = api.installation.slug(tenant)
    callback = f"{api.installation.settings.api.public_url}/auth/{slug}/oidc/corp/callback"
    with provider(callback, proof) as issuer:
        values = {
            "name": "corp", "issuer": issuer, "clientId": CLIENT, "domains": ["example.org"], "justInTime": True,
            "defaultRole": "VIEWER", "scopes": ["email", "groups"],
            "roles": [{"group": "staff", "role": "MEMBER"}, {"group": "heads", "role": "ADMIN"}], **given,
        }  # fmt: skip
        if proof != "none":
            values["clientSecret"] = SECRET
        made = People(api, tenant).member("owner@elsewhere.example").ask(SET, i=values)["setIdentityProvider"]
        assert made["identityProvider"]["callbackUrl"] == callback
        yield Browser(api.url, f"/auth/{slug}/oidc/corp"), issuer


def _agree(browser: Browser, issuer: str, name: str) -> dict[str, str]:
    """Go through the provider's pages: log in under the name, consent, and come back with its answer."""
    answer = browser.begin()
    for _ in range(_STEPS):
        if answer.is_redirect:
            where = httpx2.URL(answer.headers["location"])
            if not str(where).startswith(issuer) and where.is_absolute_url:
                return dict(parse_qsl(urlsplit(str(where)).query))
            answer = browser.client.get(httpx2.URL(issuer).join(where))
            continue
        assert answer.status_code == 200, answer.text
        [action] = re.findall(r'<form[^>]* action="([^"]+)"', answer.text)
        [prompt] = re.findall(r'name="prompt" value="(\w+)"', answer.text)
        form = {"prompt": prompt, "login": name, "password": "any"} if prompt == "login" else {"prompt": prompt}
        answer = browser.client.post(httpx2.URL(issuer).join(action), data=form)
    raise AssertionError("the provider's pages lead nowhere")


def _log_in(api: Api, browser: Browser, issuer: str, name: str) -> dict[str, Any]:
    told = issuers.told(browser.come_back(**_agree(browser, issuer, name)))
    answer = browser.exchange(told["code"])
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = Caller(api.url, api.client, answer.json()["accessToken"]).ask(WHO)["viewer"]
    return found


@pytest.mark.parametrize("proof", PROOFS)
def test_people_log_in_with_the_role_of_their_group(
    api: Api, tenant: Principal, provider: Callable[..., Any], proof: str
) -> None:
    with _front_end(api, tenant, provider, proof) as (browser, issuer):
        for name, role in (("staff-ada", "MEMBER"), ("heads-grace", "ADMIN"), ("guests-eve", "VIEWER")):
            somebody = Browser(browser.url, browser.place)
            assert _log_in(api, somebody, issuer, name) == {"email": f"{name}@example.org", "role": role}
            assert _log_in(api, somebody, issuer, name)["role"] == role, "and once more, with the provider's session"


def test_the_provider_takes_no_code_twice_and_none_with_another_verifier(
    api: Api, tenant: Principal, provider: Callable[..., Any]
) -> None:
    with _front_end(api, tenant, provider, PROOFS[0]) as (browser, issuer):
        first, second = Browser(api.url, browser.place), Browser(api.url, browser.place)
        answer = _agree(first, issuer, "staff-ada")
        cookies = first.kept
        assert answer["iss"] == issuer
        assert "code" in issuers.told(first.come_back(**answer))
        replayed = Browser(api.url, browser.place, issuers.new_client(cookies))
        assert issuers.told(replayed.come_back(**answer)) == {"error": "access_denied"}
        stolen = _agree(second, issuer, "staff-grace")["code"]
        own = _agree(first, issuer, "staff-ada")
        assert issuers.told(first.come_back(**{**own, "code": stolen})) == {"error": "access_denied"}


def test_an_address_that_the_provider_has_not_verified_lets_nobody_in(
    api: Api, tenant: Principal, provider: Callable[..., Any]
) -> None:
    with _front_end(api, tenant, provider, PROOFS[0]) as (browser, issuer):
        answer = _agree(browser, issuer, "unverified-eve")
        assert issuers.told(browser.come_back(**answer)) == {"error": "access_denied"}

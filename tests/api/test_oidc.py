"""Logins through a tenant's identity provider: who is let in, as whom, and what every forgery comes to."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc import jws, jwt
from joserfc.jwk import ECKey, OctKey, RSAKey
from pydantic import SecretStr

from tenants import encryption, ids, member_roles, members, providers, system
from tenants.context import Principal, Role
from tenants.providers import ProviderRequest
from tests.support import issuers, streams
from tests.support.apis import Api, Caller
from tests.support.issuers import CLIENT, PAGE, SECRET, Browser, Claims, Issuer
from tests.support.people import PASSWORD, People, post

WHO = "{ viewer { email role tenant { slug } } }"
DENIED = {"error": "access_denied"}


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """A provider."""
    with closing(Issuer()) as made:
        yield made


@pytest.fixture
def configure(api: Api, tenant: Principal, issuer: Issuer) -> Callable[..., None]:
    """Sets the provider up as `corp`: it makes members of whom it knows."""

    def make(**given: Any) -> None:
        values = {"domains": ["example.org"], "just_in_time": True, "default_role": Role.MEMBER, **given}
        secret = values.pop("secret", SecretStr(SECRET))
        request = ProviderRequest("corp", issuer.url, CLIENT, secret, **values)
        api.installation.write(tenant, providers.put, api.installation.settings, request)

    return make


@pytest.fixture
def browser(api: Api, slug: str, configure: Callable[..., None]) -> Browser:
    """A browser at the tenant's front end."""
    configure()
    return Browser(api.url, f"/auth/{slug}/oidc/corp")


def _viewer(api: Api, tokens: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = Caller(api.url, api.client, tokens["accessToken"]).ask(WHO)["viewer"]
    return found


def _audit(api: Api, tenant: Principal) -> list[tuple[Any, ...]]:
    """Action, target and reason of the entries about logins, oldest first."""
    return api.installation.rows(
        "SELECT action, target, detail->>'reason' FROM audit_entries"
        " WHERE tenant_id = %s AND action LIKE 'login.%%' ORDER BY id",
        str(tenant.tenant),
    )


def _logins(api: Api, tenant: Principal) -> int:
    [(count,)] = api.installation.rows(
        "SELECT count(*) FROM login_sessions WHERE tenant_id = %s AND revoked_at IS NULL", str(tenant.tenant)
    )
    return int(count)


def _join(api: Api, tenant: Principal, email: str, role: Role) -> UUID:
    """Make somebody a member who has no password."""
    user = system.enroll(api.installation.settings, email, None)
    api.installation.write(tenant, members.join, user, role)
    return user


def _refused(api: Api, tenant: Principal, browser: Browser, issuer: Issuer, reason: str, **query: str) -> None:
    """A login that is refused: the browser is told nothing, the audit log why, and nobody is logged in."""
    before = len(_audit(api, tenant))
    assert browser.through(issuer, **query) == DENIED
    [(action, _, told)] = _audit(api, tenant)[before:]
    assert (action, told) == ("login.refuse", reason)
    assert _logins(api, tenant) == 0


def test_a_login_begins_with_all_that_keeps_it_safe(browser: Browser, issuer: Issuer, slug: str) -> None:
    answer = browser.begin()
    assert answer.status_code == 303, answer.text
    where = urlsplit(answer.headers["location"])
    asked = dict(parse_qsl(where.query))
    assert f"{where.scheme}://{where.netloc}{where.path}" == f"{issuer.url}/authorize"
    assert (asked["response_type"], asked["client_id"], asked["code_challenge_method"]) == ("code", CLIENT, "S256")
    assert asked["redirect_uri"] == f"http://127.0.0.1:8000/auth/{slug}/oidc/corp/callback"
    assert asked["scope"].split() == ["openid", "email", "profile"]
    assert all(len(asked[name]) >= 43 for name in ("state", "nonce", "code_challenge"))
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert f"Path=/auth/{slug}/oidc/corp/callback" in cookie
    assert not [value for value in (asked["state"], asked["nonce"], PAGE) if value in cookie]
    assert browser.asked()["state"] != asked["state"]


def test_somebody_new_becomes_a_member_and_is_who_the_provider_says(
    api: Api, tenant: Principal, slug: str, browser: Browser, issuer: Issuer
) -> None:
    tokens = browser.tokens(issuer)
    assert _viewer(api, tokens) == {"email": "ada@example.org", "role": "MEMBER", "tenant": {"slug": slug}}
    refreshed = api.client.post(f"{api.url}/auth/refresh", json={"refreshToken": tokens["refreshToken"]})
    assert refreshed.status_code == 200
    [(action, target, _), (opened, _, _)] = _audit(api, tenant)
    assert opened == "login.open"
    [(user, subject)] = api.installation.rows(
        "SELECT user_id, subject FROM identities WHERE tenant_id = %s", str(tenant.tenant)
    )
    assert (action, target, subject) == ("login.accept", ids.show("usr", user), "s-1")
    [(password,)] = api.installation.rows("SELECT password_hash FROM users WHERE id = %s", str(user))
    assert password is None


def test_the_client_secret_is_sent_as_the_standard_has_it_and_the_verifier_too(
    browser: Browser, issuer: Issuer
) -> None:
    browser.tokens(issuer)
    issuer.described = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    [sent] = issuer.sent
    assert sent["authorization"] == "Basic dGVuYW50cnk6YStjbGllbnQrc2VjcmV0JTNBKzUwJTI1K29mK2l0KyUyQittb3Jl"
    assert len(sent["code_verifier"]) >= 43
    assert SECRET not in json.dumps(sent)


def test_the_subject_counts_and_not_the_address(api: Api, tenant: Principal, browser: Browser, issuer: Issuer) -> None:
    first = _viewer(api, browser.tokens(issuer))
    issuer.claims = {"sub": "s-1", "email": "ada@elsewhere.example", "email_verified": False}
    assert _viewer(api, browser.tokens(issuer)) == first
    issuer.claims = {"sub": "s-2", "email": "ada@example.org", "email_verified": True}
    before = _logins(api, tenant)
    assert browser.through(issuer) == DENIED
    assert _audit(api, tenant)[-1][2] == "another subject"
    assert _logins(api, tenant) == before


def test_a_member_is_found_by_a_verified_address_and_stays_what_they_are(
    api: Api, tenant: Principal, browser: Browser, issuer: Issuer, configure: Callable[..., None]
) -> None:
    configure(just_in_time=False)
    _join(api, tenant, "ada@example.org", Role.ADMIN)
    issuer.claims["email"] = "Ada@Example.ORG"
    assert _viewer(api, browser.tokens(issuer))["role"] == "ADMIN"


@pytest.mark.parametrize(
    ("given", "claims", "reason"),
    [
        ({}, {"email_verified": False}, "address not verified"),
        ({}, {"email_verified": "true"}, "address not verified"),
        ({}, {"email_verified": None}, "address not verified"),
        ({}, {"email": None}, "address not verified"),
        ({}, {"email": ["ada@example.org"]}, "address not verified"),
        ({}, {"email": "nonsense"}, "address not verified"),
        ({}, {"email": "\uff41da@example.org"}, "address not verified"),
        ({}, {"email": "ada@elsewhere.example"}, "domain"),
        ({}, {"email": "ada@sub.example.org"}, "domain"),
        ({}, {"email": "ada@example.org.elsewhere.example"}, "domain"),
        ({"just_in_time": False}, {}, "no member"),
        ({"default_role": None, "roles": {"staff": Role.MEMBER}}, {"groups": ["guests"]}, "role"),
        ({"default_role": None, "roles": {"staff": Role.MEMBER}}, {}, "role"),
    ],
    ids=str,
)
def test_whom_the_tenant_does_not_let_in_is_refused_and_made_nobody(
    api: Api, tenant: Principal, browser: Browser, issuer: Issuer, configure: Callable[..., None],
    given: dict[str, Any], claims: Claims, reason: str,
) -> None:  # fmt: skip
    configure(**given)
    people = api.installation.rows("SELECT count(*) FROM users")
    issuer.claims.update(claims)
    issuer.userinfo = {"sub": "s-1"}
    _refused(api, tenant, browser, issuer, reason)
    assert api.installation.rows("SELECT count(*) FROM users") == people
    assert api.installation.rows("SELECT * FROM identities WHERE tenant_id = %s", str(tenant.tenant)) == []


def test_a_person_of_another_tenant_is_not_let_into_it_and_has_no_right_of_theirs_here(
    api: Api, tenant: Principal, other_tenant: Principal, browser: Browser, issuer: Issuer
) -> None:
    theirs = People(api, other_tenant).join("grace@example.org")
    issuer.claims.update(sub="s-9", email="grace@example.org")
    tokens = browser.tokens(issuer)
    assert _viewer(api, tokens)["role"] == "MEMBER"
    assert _logins(api, other_tenant) == 0
    [(password, tenants)] = api.installation.rows(
        "SELECT u.password_hash, (SELECT count(*) FROM memberships m WHERE m.user_id = u.id)"
        " FROM users u WHERE id = %s",
        str(theirs),
    )
    assert password is not None
    assert tenants == 2


def test_groups_are_worth_their_highest_role_at_each_login_and_owners_stay_owners(
    api: Api, tenant: Principal, browser: Browser, issuer: Issuer, configure: Callable[..., None]
) -> None:
    roles = {"staff": Role.MEMBER, "heads": Role.ADMIN}
    configure(roles=roles, default_role=Role.VIEWER, groups_claim="teams")
    for teams, role in ((["staff", "heads"], "ADMIN"), ("staff", "MEMBER"), (["x"], "VIEWER"), ([5, "heads"], "ADMIN")):
        issuer.claims["teams"] = teams
        assert _viewer(api, browser.tokens(issuer))["role"] == role
    changes = api.installation.rows(
        "SELECT actor, detail->'before'->>'role', detail->'after'->>'role' FROM audit_entries"
        " WHERE tenant_id = %s AND action = 'member.set' ORDER BY id",
        str(tenant.tenant),
    )
    assert changes == [
        ("oidc.corp", before, after)
        for before, after in [(None, "ADMIN"), ("ADMIN", "MEMBER"), ("MEMBER", "VIEWER"), ("VIEWER", "ADMIN")]
    ]
    _join(api, tenant, "owner@example.org", Role.OWNER)
    issuer.claims = {"sub": "s-7", "email": "owner@example.org", "email_verified": True, "teams": ["staff"]}
    assert _viewer(api, browser.tokens(issuer))["role"] == "OWNER"


def test_groups_take_the_place_of_a_role_of_the_tenants_own(
    api: Api, tenant: Principal, browser: Browser, issuer: Issuer, configure: Callable[..., None]
) -> None:
    custom = api.installation.write(tenant, member_roles.create, "looker", ["runs:read"]).id
    user = _join(api, tenant, "ada@example.org", Role.VIEWER)
    api.installation.write(tenant, members.join, user, None, custom)
    assert _viewer(api, browser.tokens(issuer))["role"] is None, "where no groups are named, roles are our own affair"
    configure(roles={"staff": Role.MEMBER})
    issuer.claims["groups"] = ["staff"]
    assert _viewer(api, browser.tokens(issuer))["role"] == "MEMBER"
    [(told,)] = api.installation.rows(
        "SELECT detail FROM audit_entries WHERE tenant_id = %s AND action = 'member.set' ORDER BY id DESC LIMIT 1",
        str(tenant.tenant),
    )
    assert told == {"before": {"role": ids.show("rol", custom)}, "after": {"role": "MEMBER"}}


def test_who_has_no_role_any_more_is_refused_and_logged_out(
    api: Api, tenant: Principal, browser: Browser, issuer: Issuer, configure: Callable[..., None]
) -> None:
    configure(roles={"staff": Role.MEMBER}, default_role=None)
    issuer.claims["groups"] = ["staff"]
    caller = Caller(api.url, api.client, browser.tokens(issuer)["accessToken"])
    issuer.claims["groups"] = []
    with streams.socket(caller) as socket:
        socket.subscribe(streams.ALL_UPDATES)
        assert browser.through(issuer) == DENIED
        assert socket.closed(6) == 4401
    assert _audit(api, tenant)[-1] == ("login.refuse", None, "role")


def test_what_the_token_does_not_say_is_asked_for(api: Api, browser: Browser, issuer: Issuer) -> None:
    issuer.userinfo = {"sub": "s-1", "email": "ada@example.org", "email_verified": True}
    issuer.claims = {"sub": "s-1"}
    assert _viewer(api, browser.tokens(issuer))["email"] == "ada@example.org"


@pytest.mark.parametrize(
    ("claims", "userinfo", "reason"),
    [
        ({"sub": "s-1"}, {"sub": "s-2", "email": "ada@example.org", "email_verified": True}, "userinfo"),
        ({"sub": "s-1", "email": "ada@example.org"}, {"sub": "s-1", "email": "eve@example.org", "email_verified": True},
         "address not verified"),
        ({"sub": "s-1", "email_verified": True}, {"sub": "s-1", "email": "ada@example.org"}, "address not verified"),
    ],
)  # fmt: skip
def test_no_two_halves_of_what_was_said_make_a_whole(
    api: Api, tenant: Principal, browser: Browser, issuer: Issuer, claims: Claims, userinfo: Claims, reason: str
) -> None:
    issuer.claims, issuer.userinfo = claims, userinfo
    _refused(api, tenant, browser, issuer, reason)


def _signed(issuer: Issuer, claims: Claims, **header: Any) -> str:
    """Rightly signed, under a header that no library would write."""
    signed = f"{_encoded({'alg': 'RS256', 'kid': issuer.kid, **header})}.{_encoded(claims)}"
    private = cast("RSAPrivateKey", issuer.keys[issuer.kid].private_key)
    signature = private.sign(signed.encode(), PKCS1v15(), SHA256())
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def _by_public_key(issuer: Issuer, claims: Claims) -> str:
    """HS256, with the public key as the secret that both sides know."""
    public = issuer.keys[issuer.kid].as_pem(private=False)
    header = _encoded({"alg": "HS256", "kid": issuer.kid})
    return _hmac(f"{header}.{_encoded(claims)}", public)


def _encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _hmac(signed: str, secret: bytes) -> str:
    mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


NOW = time.time
FORGERIES: dict[str, tuple[Callable[[Issuer, Claims], str], str]] = {
    "none": (lambda i, c: f"{_encoded({'alg': 'none'})}.{_encoded(c)}.", "signature"),
    "None": (lambda i, c: f"{_encoded({'alg': 'None', 'kid': i.kid})}.{_encoded(c)}.", "signature"),
    "HS256 by the public key": (_by_public_key, "signature"),
    "HS256 by an empty key": (lambda i, c: _hmac(f"{_encoded({'alg': 'HS256'})}.{_encoded(c)}", b""), "signature"),
    "HS256 by the client secret": (
        lambda i, c: _hmac(f"{_encoded({'alg': 'HS256'})}.{_encoded(c)}", SECRET.encode()), "signature",
    ),
    "another's key": (
        lambda i, c: jwt.encode({"alg": "RS256", "kid": i.kid}, c, issuers.new_key("another")), "signature",
    ),
    "no signature": (lambda i, c: i.sign(c).rpartition(".")[0] + ".", "signature"),
    "other claims": (
        lambda i, c: ".".join([i.sign(c).split(".")[0], _encoded({**c, "sub": "x"}), i.sign(c).split(".")[2]]),
        "signature",
    ),
    "crit": (lambda i, c: _signed(i, c, crit=["x"], x=1), "signature"),
    "an access token": (lambda i, c: _signed(i, c, typ="at+jwt"), "signature"),
    "a key of its own": (
        lambda i, c: _own_key(c), "signature",
    ),
    "a long kid": (lambda i, c: _signed(i, c, kid="k" * 10_000), "signature"),
    "JSON": (lambda i, c: json.dumps({"payload": _encoded(c), "signatures": []}), "signature"),
    "nothing": (lambda i, c: "", "signature"),
    "a book": (lambda i, c: "x" * 100_000, "no ID token"),
    "another issuer": (lambda i, c: i.sign({**c, "iss": "https://elsewhere.example"}), "invalid_claim"),
    "another audience": (lambda i, c: i.sign({**c, "aud": "another"}), "invalid_claim"),
    "two audiences": (lambda i, c: i.sign({**c, "aud": [CLIENT, "another"]}), "audience"),
    "another party": (lambda i, c: i.sign({**c, "azp": "another"}), "audience"),
    "expired": (lambda i, c: i.sign({**c, "exp": int(NOW()) - 60}), "expired_token"),
    "without an end": (lambda i, c: i.sign({k: v for k, v in c.items() if k != "exp"}), "missing_claim"),
    "from the future": (lambda i, c: i.sign({**c, "iat": int(NOW()) + 600}), "invalid_claim"),
    "not yet": (lambda i, c: i.sign({**c, "nbf": int(NOW()) + 600}), "invalid_claim"),
    "another nonce": (lambda i, c: i.sign({**c, "nonce": "another"}), "nonce"),
    "no nonce": (lambda i, c: i.sign({k: v for k, v in c.items() if k != "nonce"}), "nonce"),
    "a nonce that is a list": (lambda i, c: i.sign({**c, "nonce": [c["nonce"]]}), "nonce"),
    "nobody": (lambda i, c: i.sign({**c, "sub": ""}), "invalid_claim"),
    "a number": (lambda i, c: i.sign({**c, "sub": 5}), "invalid_claim"),
    "nested deep": (lambda i, c: _deep(i), "signature"),
    "a long subject": (lambda i, c: i.sign({**c, "sub": "x" * 256}), "subject"),
}  # fmt: skip


DEEP = "[" * 20_000 + "]" * 20_000


def _deep(issuer: Issuer) -> str:
    """Signed well, and nested so deep that reading it fails."""
    return jws.serialize_compact({"alg": "RS256", "kid": issuer.kid}, DEEP, issuer.keys[issuer.kid])


def _own_key(claims: Claims) -> str:
    """Signed by a key that the token itself brings along, or says where to find."""
    key = issuers.new_key("another")
    registry = jws.JWSRegistry(algorithms=["RS256"], strict_check_header=False)
    header = {"alg": "RS256", "jwk": key.as_dict(private=False), "jku": "https://elsewhere.example/keys"}
    return jwt.encode(header, claims, key, registry=registry)


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_token_is_refused(api: Api, tenant: Principal, browser: Browser, issuer: Issuer, name: str) -> None:
    forge, reason = FORGERIES[name]
    issuer.write = lambda claims: forge(issuer, claims)
    _refused(api, tenant, browser, issuer, reason)


def test_an_elliptic_curve_will_do(api: Api, browser: Browser, issuer: Issuer) -> None:
    key = ECKey.generate_key("P-256", {"kid": "e1"})
    issuer.published = [key.as_dict(private=False)]
    issuer.write = lambda claims: jwt.encode({"alg": "ES256", "kid": "e1"}, claims, key)
    assert _viewer(api, browser.tokens(issuer))["email"] == "ada@example.org"


@pytest.mark.parametrize(
    "key",
    [
        lambda: RSAKey.generate_key(1024, {"kid": "weak"}),
        lambda: RSAKey.generate_key(2048, {"kid": "weak", "use": "enc"}),
    ],
    ids=["short", "for encryption"],
)
@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
def test_a_key_that_is_short_or_for_something_else_signs_nobody_in(
    api: Api, tenant: Principal, browser: Browser, issuer: Issuer, key: Callable[[], RSAKey]
) -> None:
    weak = key()
    issuer.published = [weak.as_dict(private=False)]
    private = RSAKey.import_key({k: v for k, v in weak.as_dict(private=True).items() if k != "use"})
    issuer.write = lambda claims: jwt.encode({"alg": "RS256", "kid": "weak"}, claims, private)
    _refused(api, tenant, browser, issuer, "signature")


def test_a_secret_in_the_key_set_signs_nobody_in(api: Api, tenant: Principal, browser: Browser, issuer: Issuer) -> None:
    key = OctKey.generate_key(256, {"kid": "o1"})
    issuer.published = [key.as_dict(private=True)]
    issuer.write = lambda claims: jwt.encode({"alg": "HS256", "kid": "o1"}, claims, key)
    _refused(api, tenant, browser, issuer, "signature")


def test_no_more_keys_of_a_provider_are_read_than_it_can_need(
    api: Api, tenant: Principal, browser: Browser, issuer: Issuer
) -> None:
    other = issuers.new_key("another").as_dict(private=False)
    issuer.published = [other] * 20 + [issuer.keys[issuer.kid].as_dict(private=False)]
    _refused(api, tenant, browser, issuer, "signature")


def test_keys_that_are_nested_deep_are_refused(api: Api, tenant: Principal, browser: Browser, issuer: Issuer) -> None:
    issuer.texts["/keys"] = DEEP
    _refused(api, tenant, browser, issuer, "discovery")


def test_a_new_key_is_asked_for_and_unknown_ones_no_more_than_once_a_minute(
    api: Api, tenant: Principal, browser: Browser, issuer: Issuer
) -> None:
    browser.tokens(issuer)
    browser.tokens(issuer)
    assert (issuer.asked["/keys"], issuer.asked["/.well-known/openid-configuration"]) == (1, 1)
    issuer.rotate("k2")
    browser.tokens(issuer)
    assert issuer.asked["/keys"] == 2
    issuer.rotate("k3")
    for _ in range(3):
        assert browser.through(issuer) == DENIED
    assert issuer.asked["/keys"] == 2
    assert _audit(api, tenant)[-1][2] == "signature"


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"iss": "https://elsewhere.example"}, "issuer"),
        ({"iss": ""}, "issuer"),
        ({"code": "another"}, "code"),
        ({"code": ""}, "refused by the provider"),
        ({"error": "access_denied", "error_description": "<script>"}, "refused by the provider"),
    ],
    ids=str,
)
def test_an_answer_of_another_or_of_no_provider_is_refused(
    api: Api, tenant: Principal, browser: Browser, issuer: Issuer, query: dict[str, str], reason: str
) -> None:
    _refused(api, tenant, browser, issuer, reason, **query)


def test_an_answer_that_does_not_say_whose_it_is_is_refused_where_the_provider_says_that_it_does(
    api: Api, tenant: Principal, browser: Browser, issuer: Issuer
) -> None:
    asked = browser.asked()
    code = issuer.approve(asked)
    assert issuers.told(browser.come_back(code=code, state=asked["state"])) == DENIED
    assert _audit(api, tenant)[-1][2] == "issuer"
    assert issuer.asked["/token"] == 0


def test_a_code_is_good_once(api: Api, tenant: Principal, browser: Browser, issuer: Issuer) -> None:
    asked = browser.asked()
    answer = {"code": issuer.approve(asked), "state": asked["state"], "iss": issuer.url}
    cookies = browser.kept
    assert "code" in issuers.told(browser.come_back(**answer))
    assert browser.come_back(**answer).status_code == 401, "the cookie went with the first"
    again = issuers.new_client(cookies)
    assert issuers.told(Browser(api.url, browser.place, again).come_back(**answer)) == DENIED
    assert _audit(api, tenant)[-1][2] == "code"


@pytest.mark.parametrize("spoilt", ["no state", "another state", "another browser", "another tenant", "no cookie"])
def test_an_answer_that_this_browser_did_not_ask_for_is_refused_before_anybody_is_asked(
    api: Api, tenant: Principal, other_tenant: Principal, browser: Browser, issuer: Issuer, spoilt: str
) -> None:
    asked = browser.asked()
    answer = {"code": issuer.approve(asked), "state": asked["state"], "iss": issuer.url}
    place, client = browser.place, browser.client
    if spoilt == "no state":
        del answer["state"]
    elif spoilt == "another state":
        answer["state"] = "another"
    elif spoilt == "another browser":
        client = Browser(api.url, place).client
        Browser(api.url, place, client).asked()
    elif spoilt == "another tenant":
        slug = api.installation.slug(other_tenant)
        request = ProviderRequest("corp", issuer.url, CLIENT, domains=["example.org"])
        api.installation.write(other_tenant, providers.put, api.installation.settings, request)
        cookies = browser.kept
        place, client = f"/auth/{slug}/oidc/corp", issuers.new_client(cookies)
    else:
        client = Browser(api.url, place).client
    refused = Browser(api.url, place, client).come_back(**answer)
    assert refused.status_code == 401
    assert refused.json()["errors"][0]["extensions"] == {"code": "UNAUTHENTICATED", "reason": "invalid"}
    assert issuer.asked["/token"] == 0
    assert _audit(api, tenant) == _audit(api, other_tenant) == []


def test_the_cookie_can_be_neither_made_nor_changed(api: Api, browser: Browser, issuer: Issuer) -> None:
    asked = browser.asked()
    [(name, value)] = browser.kept.items()
    answer = {"code": issuer.approve(asked), "state": asked["state"], "iss": issuer.url}

    def come_back(cookie: str) -> int:
        header = {b"Cookie": f"{name}={cookie}".encode("latin-1")}
        return issuers.new_client().get(f"{api.url}{browser.place}/callback", params=answer, headers=header).status_code

    for forged in ("", "x", value[:-4], _other(value), value.replace(".k1", ".k2"), value + "\u00e4"):
        assert come_back(forged) == 401
    assert issuer.asked["/token"] == 0
    assert come_back(value) == 303


def _other(text: str) -> str:
    return ("A" if text[0] != "A" else "B") + text[1:]


@pytest.mark.parametrize(
    "page",
    [
        "", "/app", "//evil.example", "https://evil.example/", "http://127.0.0.1:8000@evil.example/",
        "http://127.0.0.1:8000.evil.example/", "http://127.0.0.1:80/", "http://127.0.0.1:8000\\@evil.example",
        "https://127.0.0.1:8000/", "javascript:alert(1)", "http://127.0.0.1:8000/#x", "http://127.0.0.1:8000/\r\nx: y",
        " http://127.0.0.1:8000/", "http:127.0.0.1:8000", "http:///127.0.0.1:8000", "null", "http://[::1",
        "http://127.0.0.1:8000/" + "x" * 1000,
    ],
)  # fmt: skip
def test_a_login_leads_back_to_an_allowed_origin_only(browser: Browser, issuer: Issuer, page: str) -> None:
    refused = browser.begin(return_to=page)
    assert (refused.status_code, "location" in refused.headers) == (400, False)
    assert refused.json()["errors"][0]["extensions"]["issues"][0]["path"] == ["return_to"]
    assert not issuer.asked


@pytest.mark.parametrize("challenge", ["", "short", "x" * 44, "+" * 43])
def test_a_login_without_a_challenge_does_not_begin(browser: Browser, challenge: str) -> None:
    refused = browser.begin(challenge=challenge)
    assert refused.json()["errors"][0]["extensions"]["issues"][0]["path"] == ["challenge"]


def test_a_code_is_exchanged_once_by_who_began_and_its_second_use_ends_the_login(
    api: Api, tenant: Principal, browser: Browser, issuer: Issuer
) -> None:
    code = browser.through(issuer)["code"]
    for wrong in ("another", browser.verifier + "x"):
        assert browser.exchange(code, wrong).status_code == 401
    for forged in (code[:-4], "x", code.replace(".k1", ".k2"), "x" * 1999):
        assert browser.exchange(forged).status_code == 401
    assert _logins(api, tenant) == 0
    tokens = browser.exchange(code).json()
    caller = Caller(api.url, api.client, tokens["accessToken"])
    with streams.socket(caller) as socket:
        socket.subscribe(streams.ALL_UPDATES)
        again = browser.exchange(code)
        assert (again.status_code, again.json()["errors"][0]["extensions"]["reason"]) == (401, "revoked")
        assert socket.closed(6) == 4401
    assert _logins(api, tenant) == 0


def test_a_code_of_who_is_no_member_any_more_is_worth_nothing(
    api: Api, tenant: Principal, browser: Browser, issuer: Issuer
) -> None:
    code = browser.through(issuer)["code"]
    api.installation.rows("DELETE FROM memberships WHERE tenant_id = %s", str(tenant.tenant))
    assert browser.exchange(code).status_code == 401
    assert _logins(api, tenant) == 0


def test_codes_and_cookies_end_in_time(
    api: Api, tenant: Principal, browser: Browser, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = api.installation.settings.auth.token_keys
    for purpose in ("oidc state", "oidc code"):
        text = encryption.wrap(ring, purpose, {"a": 1}, 60)
        assert encryption.unwrap(ring, purpose, text) == {"a": 1}
        assert encryption.unwrap(ring, "another purpose", text) is None
        with monkeypatch.context() as later:
            now = time.time()
            later.setattr(time, "time", lambda now=now: now + 61)
            assert encryption.unwrap(ring, purpose, text) is None


@pytest.mark.parametrize("place", ["/auth/nowhere/oidc/corp", "/auth/{slug}/oidc/another", "/auth/{slug}/oidc/a%00b"])
def test_where_there_is_no_provider_nothing_is_found(api: Api, slug: str, browser: Browser, place: str) -> None:
    refused = Browser(api.url, place.format(slug=slug)).begin()
    assert (refused.status_code, refused.json()["errors"][0]["extensions"]["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    "described",
    [
        {"issuer": "https://elsewhere.example"},
        {"issuer": None},
        {"jwks_uri": "file:///etc/passwd"},
        {"token_endpoint": 5},
        {"authorization_endpoint": "javascript:alert(1)"},
    ],
    ids=str,
)
def test_a_provider_that_describes_itself_wrongly_is_not_gone_to(
    api: Api, browser: Browser, issuer: Issuer, described: Claims
) -> None:
    issuer.described = described
    answer = browser.begin()
    assert (answer.status_code, answer.json()["errors"][0]["extensions"]["code"]) == (503, "UNAVAILABLE")


def test_a_provider_whose_description_is_nested_deep_is_not_gone_to(browser: Browser, issuer: Issuer) -> None:
    issuer.texts["/.well-known/openid-configuration"] = DEEP
    assert browser.begin().status_code == 503


def test_a_provider_that_is_not_there_is_told_in_time(
    api: Api, browser: Browser, configure: Callable[..., None], issuer: Issuer
) -> None:
    issuer.close()
    assert [browser.begin().status_code for _ in range(10)] == [503] * 10
    assert 429 in {browser.begin().status_code for _ in range(5)}, "who asks on is answered without asking it"


def test_where_single_sign_on_is_required_a_password_is_an_owners_only(
    api: Api, tenant: Principal, people: People, browser: Browser, issuer: Issuer
) -> None:
    owner = people.member("owner@example.org")
    grace = people.member("grace@example.org", Role.ADMIN)
    switch = "mutation { requireSingleSignOn(required: true) { success tenant { ssoOnly } } }"
    with streams.socket(grace) as socket:
        socket.subscribe(streams.ALL_UPDATES)
        switched = owner.ask(switch)["requireSingleSignOn"]
        assert switched == {"success": True, "tenant": {"ssoOnly": True}}
        assert socket.closed(6) == 4401
    refused, wrong, unknown = (
        post(api, "login", tenant=people.slug, email=email, password=password)
        for email, password in (
            ("grace@example.org", PASSWORD),
            ("grace@example.org", "another password"),
            ("nobody@example.org", PASSWORD),
        )
    )
    assert (refused.status_code, wrong.status_code) == (401, 401)
    assert "identity provider" in refused.text, "who knows the password is told where to go"
    assert wrong.json() == unknown.json()
    assert people.log_in("owner@example.org")
    issuer.claims.update(sub="s-3", email="grace@example.org")
    assert _viewer(api, browser.tokens(issuer))["role"] == "ADMIN"


def test_only_an_owner_says_where_people_log_in(api: Api, people: People) -> None:
    owner, admin = people.member("owner@example.org"), people.member("mallory@example.org", Role.ADMIN)
    corp = '{name: "corp", issuer: "https://idp.example.org", clientId: "c", domains: ["example.org"]}'
    for change in (
        f"setIdentityProvider(input: {corp})",
        'setCredential(input: {name: "oidc.corp", secret: "of my own"})',
        "requireSingleSignOn(required: true)",
        "requireSingleSignOn(required: false)",
        'removeCredential(name: "oidc.corp")',
        'removeIdentityProvider(name: "corp")',
    ):
        document = f"mutation {{ change: {change} {{ success problem {{ code }} }} }}"
        for caller in (admin, api.caller(people.tenant), api.caller(people.tenant, "*", tasks=["diagnostics.echo"])):
            answer = caller.ask(document)["change"]
            assert answer == {"success": False, "problem": {"code": "FORBIDDEN"}}, change
        assert owner.ask(document)["change"] == {"success": True, "problem": None}, change


def test_nothing_of_a_login_stands_in_the_log(api: Api, browser: Browser, issuer: Issuer) -> None:
    said: list[str] = []

    def write(claims: Claims) -> str:
        said.append(issuer.sign(claims))
        return said[-1]

    issuer.write = write
    asked = browser.asked()
    code = issuer.approve(asked)
    ours = issuers.told(browser.come_back(code=code, state=asked["state"], iss=issuer.url))["code"]
    tokens = browser.exchange(ours).json()
    issuer.write = lambda claims: write({**claims, "nonce": "another"})
    assert browser.through(issuer) == DENIED
    secrets = {SECRET, browser.verifier, code, ours, asked["state"], asked["nonce"], *said, *tokens.values()}
    secrets |= {sent["code_verifier"] for sent in issuer.sent} | {sent["authorization"] for sent in issuer.sent}
    log = api.installation.log(api.name)
    assert "login_refused" in log
    assert [secret for secret in secrets if isinstance(secret, str) and secret in log] == []


def test_a_client_secret_that_is_a_word_alters_nothing_that_others_are_shown(
    api: Api, other_tenant: Principal, configure: Callable[..., None], slug: str
) -> None:
    configure(secret=SecretStr("customer"))
    assert Browser(api.url, f"/auth/{slug}/oidc/corp").begin().status_code == 303
    args = {"value": "invoice for customer 17"}
    run = api.installation.trigger(other_tenant, "diagnostics.echo", args)
    query = "query($i: ID!) { run(id: $i) { args } }"
    assert api.caller(other_tenant).ask(query, i=ids.show("run", run))["run"]["args"] == args

"""Settings: from names with the prefix, plain names or files; a wrong value stops with its name and without itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tenants import settings
from tenants.errors import Misconfigured
from tenants.settings import PLAIN_NAMES

SECRET = "hunter2-hunter2-hunter2"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLAIN_NAMES:
        monkeypatch.delenv(name, raising=False)


WRONG = {
    "TENANTRY_ENGINE__LEASE_SECONDS": ["0", "-1", "ten"],
    "TENANTRY_DATABASE__URL": ["mysql://host/name", "host/name", "://"],
    "TENANTRY_DATABASE__POOL_SIZE": ["0", "many"],
    "TENANTRY_ENVIRONMENT": ["staging"],
    "TENANTRY_DIAGNOSTICS": ["perhaps"],
    "TENANTRY_AUTH__CACHE_SECONDS": ["6", "-1"],
    "TENANTRY_ENGINE__GRANT_KEYS": ["k1", "[]", '{"k1": 5}', "{"],
    "TENANTRY_AUTH__TOKEN_KEYS": ["not json", '"k1"'],
    "TENANTRY_API__ALLOWED_ORIGINS": ["https://a.example", "5"],
    "WORKER_CONCURRENCY": ["0", "two"],
    "DATABASE_URL": ["sqlite:///file"],
    "WORKER_TASK_TIME_LIMIT": ["0", "7", "86401", "nan"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(Misconfigured) as refused:
        settings.load()
    message = str(refused.value)
    assert name in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", f"mysql://app:{SECRET}@host/name"),
        ("TENANTRY_ENGINE__GRANT_KEYS", f'{{"k1": "{SECRET}"'),
        ("TENANTRY_AUTH__TOKEN_KEYS", f'["{SECRET}"]'),
    ],
)
def test_a_wrong_value_is_never_shown(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(Misconfigured) as refused:
        settings.load()
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(("plain", "path"), PLAIN_NAMES.items())
def test_a_plain_name_means_the_same_as_the_long_one(
    monkeypatch: pytest.MonkeyPatch, plain: str, path: tuple[str, str]
) -> None:
    value = "postgresql://a:b@c/d" if path[0] == "database" else "redis://x:1/2" if path[0] == "redis" else "250"
    long = "TENANTRY_" + "__".join(path).upper()
    monkeypatch.setenv(plain, value)
    by_plain = settings.load()
    monkeypatch.delenv(plain)
    assert by_plain != settings.load()
    monkeypatch.setenv(long, value)
    assert settings.load() == by_plain


def test_the_long_name_wins_over_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://plain:1/0")
    monkeypatch.setenv("TENANTRY_REDIS__URL", "redis://long:1/0")
    monkeypatch.setenv("TENANTRY_REDIS__TIMEOUT_SECONDS", "2")
    assert settings.load().redis.url == "redis://long:1/0"
    monkeypatch.delenv("TENANTRY_REDIS__URL")
    loaded = settings.load()
    assert (loaded.redis.url, loaded.redis.timeout_seconds) == ("redis://plain:1/0", 2.0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("redis://all", "redis://all", "redis://all", "redis://all")),
        ({"API": "redis://a", "DISPATCHER": "redis://d"}, ("redis://a", "redis://all", "redis://d", "redis://all")),
        ({"WORKER": "redis://w"}, ("redis://all", "redis://w", "redis://all", "redis://w")),
        ({"WORKER": "redis://w", "RESULT": "redis://r"}, ("redis://all", "redis://w", "redis://all", "redis://r")),
        ({"BROKER": "redis://b"}, ("redis://all", "redis://all", "redis://all", "redis://all")),
    ],
)
def test_each_role_has_its_address_of_redis_or_the_one_for_all(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: tuple[str, ...]
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://all")
    for role, url in given.items():
        monkeypatch.setenv(f"TENANTRY_REDIS__{role}_URL", url)
    redis = settings.load().redis
    assert (redis.api_address, redis.worker_address, redis.dispatcher_address, redis.result_address) == expected


@pytest.mark.parametrize("name", ["DATABASE_URL", "TENANTRY_DATABASE__URL"])
@pytest.mark.parametrize("ending", ["", "\n", "  \n"])
def test_a_file_gives_the_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, ending: str) -> None:
    file = tmp_path / "address"
    file.write_text(f"postgres://app:{SECRET}@host/name{ending}")
    monkeypatch.setenv(f"{name}_FILE", str(file))
    assert settings.load().database.url == f"postgresql://app:{SECRET}@host/name"


@pytest.mark.parametrize("name", ["TENANTRY_ENGINE__GRANT_KEYS", "TENANTRY_AUTH__TOKEN_KEYS"])
def test_a_file_gives_a_ring_of_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(f'{{"k1": "first", "k2": "{SECRET}"}}')
    monkeypatch.setenv(f"{name}_FILE", str(file))
    loaded = settings.load()
    ring = loaded.engine.grant_keys if "GRANT" in name else loaded.auth.token_keys
    assert {key: secret.get_secret_value() for key, secret in ring.items()} == {"k1": "first", "k2": SECRET}


def test_a_file_that_holds_no_ring_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(SECRET)
    monkeypatch.setenv("TENANTRY_ENGINE__GRANT_KEYS_FILE", str(file))
    with pytest.raises(Misconfigured) as refused:
        settings.load()
    assert "TENANTRY_ENGINE__GRANT_KEYS" in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_file_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TENANTRY_AUTH__KEY_PEPPER_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(Misconfigured, match="TENANTRY_AUTH__KEY_PEPPER_FILE: cannot read"):
        settings.load()


@pytest.mark.parametrize(
    "scheme",
    ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg2", "postgresql+psycopg", "postgres+asyncpg"],
)
def test_any_form_of_a_postgresql_address_will_do(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://app:p%40ss@host:5433/name?sslmode=require")
    assert settings.load().database.url == "postgresql://app:p%40ss@host:5433/name?sslmode=require"


def test_secrets_do_not_show_in_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENANTRY_ENGINE__GRANT_KEYS", f'{{"k1": "{SECRET}"}}')
    monkeypatch.setenv("TENANTRY_AUTH__KEY_PEPPER", SECRET)
    loaded = settings.load()
    assert SECRET not in repr(loaded)
    assert SECRET not in loaded.model_dump_json()
    assert loaded.engine.grant_keys["k1"].get_secret_value() == SECRET


@examples(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(WRONG)),
    value=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30),
)
def test_no_value_breaks_the_start_without_a_sentence(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    with monkeypatch.context() as patched:
        patched.setenv(name, value)
        told = name
        try:
            settings.load()
        except Misconfigured as refused:
            told = str(refused)
        assert name in told


def test_mails_are_kept_in_a_folder_in_development_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENANTRY_MAIL__URL", "file:///tmp/mail")
    monkeypatch.setenv("TENANTRY_ENVIRONMENT", "development")
    assert settings.load().mail.url == "file:///tmp/mail"
    monkeypatch.setenv("TENANTRY_ENVIRONMENT", "production")
    with pytest.raises(Misconfigured, match="for development only"):
        settings.load()

"""Settings: environment variables with `TENANTRY_` in front, the plain names deployments already have, or files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import EnvSettingsSource

from tenants.errors import Misconfigured

PLAIN_NAMES = {
    "DATABASE_URL": ("database", "url"),
    "DATABASE_SYSTEM_URL": ("database", "system_url"),
    "DATABASE_OWNER_URL": ("database", "owner_url"),
    "REDIS_URL": ("redis", "url"),
    "CELERY_BROKER_URL": ("redis", "broker_url"),
    "CELERY_RESULT_BACKEND": ("redis", "result_url"),
    "REDIS_RESULT_BACKEND": ("redis", "result_url"),
    "WORKER_CONCURRENCY": ("worker", "concurrency"),
    "WORKER_PREFETCH_MULTIPLIER": ("worker", "prefetch_multiplier"),
    "WORKER_TASK_SOFT_TIME_LIMIT": ("engine", "soft_limit_seconds"),
    "WORKER_TASK_TIME_LIMIT": ("engine", "hard_limit_seconds"),
}
"""Names without the prefix, and the setting each of them means."""


LONGEST_ATTEMPT_SECONDS = 86_400.0
"""The longest that one attempt may take, however it extends its time."""


def _without_driver(value: object) -> object:
    """Any SQLAlchemy or libpq form of a PostgreSQL address, reduced to `postgresql://…`."""
    if isinstance(value, str) and value:
        scheme, separator, rest = value.partition("://")
        if not separator or scheme.partition("+")[0] not in {"postgresql", "postgres"}:
            raise ValueError("must be a PostgreSQL address such as postgresql://login:password@host:5432/name")
        return f"postgresql://{rest}"
    return value


def _from_json(value: object) -> object:
    """The value behind JSON text, which is how the environment and files hold lists and rings of keys."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("must be JSON") from None
    return value


PostgresAddress = Annotated[str, BeforeValidator(_without_driver)]
Secrets = Annotated[list[SecretStr], BeforeValidator(_from_json), PlainSerializer(len)]
KeyRing = Annotated[dict[str, SecretStr], BeforeValidator(_from_json), PlainSerializer(lambda ring: sorted(ring))]
"""Key id → secret. New work is signed or encrypted with the last one; all of them verify and decrypt."""


class Database(BaseModel):
    """PostgreSQL: the truth."""

    url: PostgresAddress = ""
    system_url: PostgresAddress = ""
    owner_url: PostgresAddress = ""
    pool_size: int = Field(16, ge=1)
    pool_wait_seconds: float = Field(2.0, gt=0)
    statement_seconds: float = Field(5.0, ge=0.1)


class Redis(BaseModel):
    """Redis or Valkey: broker, result backend, live streams, cache. One address for all, or one for each role."""

    url: str = "redis://127.0.0.1:6379/0"
    api_url: str | None = None
    worker_url: str | None = None
    dispatcher_url: str | None = None
    broker_url: str | None = None
    result_url: str | None = None
    timeout_seconds: float = Field(1.0, gt=0)
    bell_timeout_seconds: float = Field(0.05, gt=0)
    result_days: float = Field(1.0, gt=0)
    stream_length: int = Field(10_000, ge=100)

    @property
    def api_address(self) -> str:
        """What the API connects to."""
        return self.api_url or self.url

    @property
    def worker_address(self) -> str:
        """What workers connect to."""
        return self.worker_url or self.url

    @property
    def dispatcher_address(self) -> str:
        """What dispatchers connect to."""
        return self.dispatcher_url or self.url

    @property
    def result_address(self) -> str:
        """Where Celery's results are written to and read from."""
        return self.result_url or self.worker_address


class Auth(BaseModel):
    """Who may come in, and what is kept secret."""

    token_keys: KeyRing = Field(default_factory=dict)
    link_keys: KeyRing = Field(default_factory=dict)
    key_pepper: SecretStr = SecretStr("")
    old_key_peppers: Secrets = Field(default_factory=list)
    credential_keys: KeyRing = Field(default_factory=dict)
    access_token_seconds: int = Field(900, ge=30)
    refresh_token_days: float = Field(30, gt=0)
    cache_seconds: float = Field(3.0, ge=0, le=5)
    issuer: str = "tenantry"
    sign_up: bool = False
    sign_up_families: Annotated[list[str], BeforeValidator(_from_json)] = Field(default_factory=list)
    sign_up_hours: float = Field(24.0, gt=0)
    invitation_days: float = Field(7.0, gt=0)
    reset_minutes: float = Field(60.0, gt=0)


class Api(BaseModel):
    """The HTTP edge."""

    public_url: str = "http://127.0.0.1:8000"
    inner_hosts: Annotated[list[str], BeforeValidator(_from_json)] = Field(default_factory=list)
    allowed_origins: Annotated[list[str], BeforeValidator(_from_json)] = Field(default_factory=list)
    allowed_hosts: Annotated[list[str], BeforeValidator(_from_json)] = Field(default_factory=list)
    body_bytes: int = Field(256 * 1024, ge=1024)
    bulk_body_bytes: int = Field(2 * 1024 * 1024, ge=1024)
    answer_bytes: int = Field(8 * 1024 * 1024, ge=1024)
    operation_seconds: float = Field(30.0, gt=0)
    budget_points: float = Field(50_000, ge=100)
    budget_points_per_second: float = Field(5_000, gt=0)
    caller_requests_per_second: float = Field(1_000, gt=0)
    address_requests_per_second: float = Field(1_000, gt=0)
    address_logins_per_second: float = Field(20, gt=0)
    sockets_per_tenant: int = Field(1_000, ge=1)
    sockets_per_address: int = Field(200, ge=1)
    idle_socket_seconds: float = Field(300.0, gt=0)
    documents: Literal["any", "trusted"] = "any"
    trusted_documents: Path | None = None


class Engine(BaseModel):
    """The life of a run."""

    lease_seconds: float = Field(10.0, gt=0)
    renew_seconds: float = Field(2.0, gt=0)
    leadership_seconds: float = Field(3.0, gt=0)
    leadership_renew_seconds: float = Field(1.0, gt=0)
    sweep_seconds: float = Field(0.5, gt=0)
    answer_seconds: float = Field(12.0, ge=0.1)
    unclaimed_seconds: float = Field(5.0, gt=0)
    grant_seconds: float = Field(60.0, gt=0)
    buffer_milliseconds: float = Field(20.0, ge=0)
    max_crashes: int = Field(3, ge=1)
    max_attempts: int = Field(4, ge=1)
    soft_limit_seconds: float = Field(240.0, gt=0)
    hard_limit_seconds: float = Field(300.0, gt=0, le=LONGEST_ATTEMPT_SECONDS, validate_default=True)
    priority_step_seconds: float = Field(60.0, ge=0)
    idempotency_hours: float = Field(24.0, gt=0)
    bulk_size: int = Field(1000, ge=1)
    retention_days: float = Field(30.0, gt=0)
    grant_keys: KeyRing = Field(default_factory=dict)

    @field_validator("hard_limit_seconds")
    @classmethod
    def _after_the_soft_limit(cls, value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("soft_limit_seconds", 0):
            raise ValueError("must be more than the soft limit")
        return value


class Worker(BaseModel):
    """The worker process."""

    concurrency: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    prefetch_multiplier: int = Field(1, ge=1)
    max_tasks_per_child: int = Field(10_000, ge=1)
    max_memory_per_child_kib: int = Field(1_048_576, ge=65_536)
    grace_seconds: float = Field(6.0, gt=0)


class Storage(BaseModel):
    """Where files live: any address obstore reads, such as file:///var/lib/tenantry or s3://bucket/prefix."""

    url: str = "file:///var/lib/tenantry/objects"


class Mail(BaseModel):
    """Outgoing mail."""

    url: str = "smtp://127.0.0.1:25"
    sender: str = "Tenantry <no-reply@localhost>"
    timeout_seconds: float = Field(10.0, gt=0)


class Settings(BaseSettings):
    """All settings. Build it with `load()`."""

    model_config = SettingsConfigDict(
        env_prefix="TENANTRY_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        enable_decoding=False,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    environment: Literal["development", "production"] = "production"
    state: Path = Path(".tenantry")
    tenant: str | None = None
    diagnostics: bool = False
    log_json: bool = True
    database: Database = Field(default_factory=Database)
    redis: Redis = Field(default_factory=Redis)
    auth: Auth = Field(default_factory=Auth)
    api: Api = Field(default_factory=Api)
    engine: Engine = Field(default_factory=Engine)
    worker: Worker = Field(default_factory=Worker)
    storage: Storage = Field(default_factory=Storage)
    mail: Mail = Field(default_factory=Mail)

    @field_validator("mail")
    @classmethod
    def _really_sent(cls, value: Mail, info: ValidationInfo) -> Mail:
        if value.url.startswith("file:") and info.data.get("environment") != "development":
            raise ValueError("url: file:// keeps mails in a folder and sends none, which is for development only")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _PlainNames(settings_cls), _Files(settings_cls)


class _PlainNames(EnvSettingsSource):
    """The names without prefix, as nested values."""

    def __call__(self) -> dict[str, Any]:
        return _nested({path: os.environ[name] for name, path in PLAIN_NAMES.items() if os.environ.get(name)})


class _Files(EnvSettingsSource):
    """`NAME_FILE`: the value stands in a file."""

    def __call__(self) -> dict[str, Any]:
        found: dict[tuple[str, ...], str] = {}
        for name, file in os.environ.items():
            if not name.endswith("_FILE") or not file:
                continue
            plain = name.removesuffix("_FILE")
            if plain in PLAIN_NAMES:
                found[PLAIN_NAMES[plain]] = _content(name, file)
            elif plain.startswith("TENANTRY_"):
                found[tuple(plain.removeprefix("TENANTRY_").lower().split("__"))] = _content(name, file)
        return _nested(found)


def load(**overrides: Any) -> Settings:
    """Settings from the environment.

    Args:
        overrides: values that win over the environment, by field name.

    Raises:
        Misconfigured: a value is wrong; the message names the setting and never shows the value.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = "TENANTRY_" + "__".join(str(part) for part in first["loc"]).upper()
        plain = [plain for plain, path in PLAIN_NAMES.items() if path == first["loc"]]
        raise Misconfigured(f"{' or '.join([name, *plain])}: {first['msg']}") from None


@cache
def current() -> Settings:
    """This process's settings, read once."""
    return load()


def _content(name: str, file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise Misconfigured(f"{name}: cannot read {file} ({error.strerror})") from None


def _nested(values: Mapping[tuple[str, ...], str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        place = tree
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
    return tree

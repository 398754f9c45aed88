"""Logs: one JSON object a line, with what is bound to the request or the run; secrets never.

Secrets are blotted out by what they look like, by the name they stand under, and, where a request or an attempt was
given some, by their very text: within that request or attempt, and nowhere else. Nobody's secret may be the reason why
a text of somebody else's reads differently.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Collection, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import structlog
from pydantic import BaseModel, SecretStr

from tenants.settings import Settings

_SECRET_NAMES = re.compile(r"password|passwd|secret|token|authorization|api_?key|pepper|cookie|verifier", re.IGNORECASE)
_SECRET_TEXTS = re.compile(
    r"(?P<address>://)[^/@\s]++(?=@)"  # user and password in an address
    r"|(?P<before>"
    r"tnt_live_"
    r"|(?<![\w-])eyJ(?=[\w-]++\.[\w-]++\.)"  # a JWT
    r"|\b(?:Bearer|Basic) (?=[\w.~+/=-]{8})"
    r"|(?i:password|passwd|secret|token|api_?key)="
    r")[^\s&;,'\"()@]++"
)
"""Each of its parts reads a text once, whatever stands there: it may be long, and anybody's."""
_BLOT = "[redacted]"
SHORTEST = 8
"""Of a secret, in characters: shorter ones stand in too many words to be told from them."""
_FIXED = frozenset({"event", "level", "logger", "timestamp", "run", "task", "attempt", "fence", "request_id"})
"""What the lines of our own are found and counted by: no secret, and none that reads like one of their words."""
_hidden: ContextVar[set[str] | None] = ContextVar("hidden", default=None)
"""The secrets that the request or the attempt at work has been given."""
_own: set[str] = set()
"""This installation's secrets: for log lines, which no tenant reads."""


def configure(current: Settings) -> None:
    """Send this process's logs, Celery's and libraries' among them, to standard error in one form."""
    _own.update(secret for secret in _secrets(current) if len(secret) >= SHORTEST)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.format_exc_info,
        redact,
    ]
    for_people = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    renderer: Any = structlog.processors.JSONRenderer() if current.log_json else for_people
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for noisy in ("celery.app.trace", "celery.worker.strategy", "httpx2", "httpcore2", "sqlalchemy.engine"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor that blots out values under secret names, texts that look like secrets, and secrets in use."""
    fixed = _FIXED if event.get("_from_structlog", True) else _FIXED - {"event"}
    secrets = _own | (_hidden.get() or set())
    for name, value in event.items():
        event[name] = _blotted(value, name, () if name in fixed else secrets)
    return event


@contextmanager
def hiding() -> Iterator[None]:
    """For one request or one attempt: what is hidden in the meantime is hidden in it alone."""
    before = _hidden.set(set())
    try:
        yield
    finally:
        _hidden.reset(before)


def hide(secret: str) -> None:
    """Blot this text out of whatever the request or the attempt at work has blotted, wherever it stands."""
    hidden = _hidden.get()
    if hidden is not None and len(secret) >= SHORTEST:
        hidden.add(secret)


def blot(text: str) -> str:
    """The text without what looks like a secret, and without those that whoever works here was given."""
    return _blot(text, _hidden.get() or ())


def blotted(value: Any, name: str = "") -> Any:
    """A value with all in it that is secret blotted out, however deep it stands.

    Args:
        name: what the value is called; under a secret name all of it is blotted out.
    """
    return _blotted(value, name, _hidden.get() or ())


def _blotted(value: Any, name: str, secrets: Collection[str]) -> Any:
    if _SECRET_NAMES.search(name) and value is not None and not isinstance(value, bool):
        return _BLOT
    if isinstance(value, str):
        return _blot(value, secrets)
    if isinstance(value, dict):
        return {key: _blotted(inner, str(key), secrets) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_blotted(inner, "", secrets) for inner in value]
    return value


def _blot(text: str, secrets: Collection[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):  # One may be a part of another.
        if secret in text:
            text = text.replace(secret, _BLOT)
    return _SECRET_TEXTS.sub(lambda found: f"{found['address'] or found['before']}{_BLOT}", text)


def _secrets(value: object) -> Iterator[str]:
    """Every secret among the settings."""
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        for _, inner in value:
            yield from _secrets(inner)
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _secrets(inner)

"""Logs: one JSON object a line, with what is bound to the request or the run; secrets never."""

from __future__ import annotations

import logging
import re
import sys
from collections import OrderedDict
from collections.abc import MutableMapping
from typing import Any

import structlog

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
_HIDDEN = 200
_SHORTEST_HIDDEN = 6
"""Shorter ones stand in too many words to be told from them."""
_hidden: OrderedDict[str, None] = OrderedDict()


def configure(current: Settings) -> None:
    """Send this process's logs, Celery's and libraries' among them, to standard error in one form."""
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
    """A processor that blots out values under secret names, and texts that look like secrets."""
    for name, value in event.items():
        event[name] = blotted(value, name)
    return event


def hide(secret: str) -> None:
    """Blot this text out of whatever this process blots from now on, wherever it stands. The last 200 are kept."""
    if len(secret) >= _SHORTEST_HIDDEN:
        _hidden[secret] = None
        _hidden.move_to_end(secret)
        while len(_hidden) > _HIDDEN:
            _hidden.popitem(last=False)


def blot(text: str) -> str:
    """The text without what looks like a secret, and without those that this process has been given."""
    for secret in list(_hidden):
        if secret in text:
            text = text.replace(secret, _BLOT)
    return _SECRET_TEXTS.sub(lambda found: f"{found['address'] or found['before']}{_BLOT}", text)


def blotted(value: Any, name: str = "") -> Any:
    """A value with all in it that is secret blotted out, however deep it stands.

    Args:
        name: what the value is called; under a secret name all of it is blotted out.
    """
    if _SECRET_NAMES.search(name) and value is not None and not isinstance(value, bool):
        return _BLOT
    if isinstance(value, str):
        return blot(value)
    if isinstance(value, dict):
        return {key: blotted(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [blotted(inner) for inner in value]
    return value

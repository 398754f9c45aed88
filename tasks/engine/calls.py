"""Celery's own ways to send a task (`celery call`, `.delay()`, `send_task`), led through the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from click import ClickException

from tasks import registry
from tasks.engine import publish, runs
from tasks.engine.publish import Notice
from tenants import db, system
from tenants.errors import InvalidInput, TenantryError
from tenants.settings import Settings


class NotSent(ClickException):
    """The task was not sent; its cause is the ledger's error. Celery's command line prints it as one sentence."""


def send(
    current: Settings,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    tenant: str | None,
    delay_seconds: float | None = None,
    eta: datetime | None = None,
    task_id: str | None = None,
    priority: int | None = None,
    queue: str | None = None,
) -> UUID:
    """Trigger a run in the name of an operator. Returns its id.

    Args:
        name: a task's full or bare name.
        args: values for the task's input, in the order of its fields.
        kwargs: the task's input by name.
        tenant: the tenant's slug.
        task_id: an idempotency key.

    Raises:
        NotSent: no tenant is named, or the run is refused; `celery call` prints the sentence.
    """
    try:
        return _send(
            current,
            tenant,
            runs.TriggerRequest(
                name,
                _input(name, args, kwargs),
                idempotency_key=task_id,
                priority=priority,
                delay_seconds=delay_seconds,
                eta=eta.replace(tzinfo=UTC) if eta is not None and eta.tzinfo is None else eta,
                queue=queue,
            ),
        )
    except TenantryError as error:
        raise NotSent(error.message) from error


def _send(current: Settings, slug: str | None, request: runs.TriggerRequest) -> UUID:
    if not slug:
        raise InvalidInput(
            "Every run belongs to a tenant:"
            " pass headers={'tenant': '<slug>'}, or set TENANTRY_TENANT for `celery call`."
        )
    principal = system.acting(current, slug, "celery")
    engine = db.sync_engine(current.database.url, pool_size=1)
    try:
        with db.open_session(engine, principal) as session:
            accepted = runs.trigger(session, request)
            session.commit()
            _ring(current, [notice for notice in db.notices(session) if isinstance(notice, Notice)])
    finally:
        engine.dispose()
    return accepted.run.id


def _input(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    fields = list(registry.resolve(name, registry.families().keys()).input.model_fields)
    if len(args) > len(fields):
        raise InvalidInput(f"{name} takes at most {len(fields)} values: {', '.join(fields)}.")
    return dict(zip(fields, args, strict=False)) | dict(kwargs)


def _ring(current: Settings, notices: list[Notice]) -> None:
    with publish.connect(current.redis.worker_address, timeout_seconds=current.redis.timeout_seconds) as client:
        publish.send(client, notices, current.redis.stream_length)

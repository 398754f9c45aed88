"""Every Redis key and every object path there is. A tenant's begin with the tenant, others with `sys:`."""

from __future__ import annotations

from uuid import UUID

BELL = "sys:bell"
"""Pub/sub channel that tells dispatchers what changed: ids only."""

ERASED = "sys:erased"
"""Sorted set of the tenants that were erased within the last hour, by the time in seconds."""


def put_aside(queue: str) -> str:
    """What stood in a queue's place and was no list, to be looked at by an operator."""
    return f"sys:put-aside:{queue}"


def stream(tenant: UUID) -> str:
    """The tenant's live stream of run updates."""
    return f"t:{tenant}:stream"


def cache(tenant: UUID, family: str, name: str) -> str:
    """One cached value of a family."""
    return f"t:{tenant}:cache:{family}:{name}"


def budget(tenant: UUID, actor: str, kind: str) -> str:
    """How much a caller of the API has used up lately, of one kind."""
    return f"t:{tenant}:budget:{actor}:{kind}"


def counter(tenant: UUID, family: str, name: str) -> str:
    """One counter of a family, such as cache hits."""
    return f"t:{tenant}:count:{family}:{name}"


def result(run_id: str) -> str:
    """What Celery's result backend has of a run: its own name for it, which begins with no tenant."""
    return f"celery-task-meta-{run_id}"


def every(tenant: UUID) -> str:
    """The pattern of all keys of the tenant."""
    return f"t:{tenant}:*"


def object_path(tenant: UUID, *parts: str) -> str:
    """Where an object of the tenant is stored. Parts are single path segments.

    Raises:
        ValueError: a part is empty, dotted or holds a separator.
    """
    for part in parts:
        if not part or part in {".", ".."} or "/" in part or "\\" in part or "\0" in part:
            raise ValueError(f"not a path segment: {part!r}")
    return "/".join([str(tenant), *parts])

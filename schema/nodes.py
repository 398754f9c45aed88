"""Nodes: anything with an id, and how it is found by that."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import strawberry

from tenants import ids
from tenants.errors import NotFound

if TYPE_CHECKING:
    from schema.context import Info

T = TypeVar("T")


@strawberry.interface
class Node:
    """Anything with an id."""

    id: strawberry.ID


async def find(info: Info, kind: str, id: str, service: Callable[..., T]) -> T | None:
    """What a service reads by this id for the caller's tenant; None for any other id, whatever is wrong with it.

    Args:
        kind: what the id must begin with.
        service: takes the session and the id, and raises NotFound.
    """
    try:
        return await info.context.data.read(service, ids.read(kind, id))
    except NotFound:
        return None

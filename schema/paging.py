"""Connections: pages of a list as clients walk them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import strawberry

from tenants.pages import Page

T = TypeVar("T")
R = TypeVar("R")


@strawberry.type
class PageInfo:
    has_next_page: bool
    has_previous_page: bool
    start_cursor: str | None
    end_cursor: str | None


@strawberry.type
class Edge(Generic[T]):
    cursor: str
    node: T


@strawberry.type
class Connection(Generic[T]):
    edges: list[Edge[T]]
    nodes: list[T]
    page_info: PageInfo


def parts(page: Page[R], show: Callable[[R], Any]) -> dict[str, Any]:
    """A page's rows as what a connection is made of.

    Args:
        show: the row as its GraphQL type.
    """
    nodes = [show(row) for row in page.items]
    return {
        "nodes": nodes,
        "edges": [Edge(cursor=cursor, node=node) for cursor, node in zip(page.cursors, nodes, strict=True)],
        "page_info": PageInfo(
            has_next_page=page.has_next,
            has_previous_page=page.has_previous,
            start_cursor=page.cursors[0] if page.cursors else None,
            end_cursor=page.cursors[-1] if page.cursors else None,
        ),
    }

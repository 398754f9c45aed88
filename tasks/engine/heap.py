"""A priority queue whose items can move."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=Hashable)
_SPARE = 64
"""How many places the heap may have beside twice its items before it is made anew."""


class Heap(Generic[T]):
    """A priority queue whose items can move: the least key first, among equals in the order they were put."""

    __slots__ = ("_current", "_heap", "_serial")

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int, T]] = []
        self._current: dict[T, tuple[Any, int, T]] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, item: T) -> bool:
        return item in self._current

    def put(self, item: T, key: Any, *, first: bool = False) -> None:
        """Add an item, or move it: behind those of the same key, or before them."""
        self._serial += 1
        heap, entry = self._heap, (key, -self._serial if first else self._serial, item)
        if heap and heap[0] is self._current.get(item):
            heapq.heapreplace(heap, entry)
        else:
            heapq.heappush(heap, entry)
        self._current[item] = entry
        if len(heap) > 2 * len(self._current) + _SPARE:
            self._heap = list(self._current.values())
            heapq.heapify(self._heap)

    def move(self, item: T, key: Any) -> None:
        """Move an item, if it is in."""
        if item in self._current:
            self.put(item, key)

    def drop(self, item: T) -> None:
        """Take an item out, if it is in."""
        self._current.pop(item, None)

    def first(self) -> tuple[Any, int, T] | None:
        """The first item behind its key and its number; None where there is none."""
        heap = self._heap
        while heap:
            entry = heap[0]
            if self._current.get(entry[2]) is entry:
                return entry
            heapq.heappop(heap)
        return None

    def until(self, key: Any) -> Iterator[T]:
        """Take out, one after another, the items whose keys are not above this one."""
        while (entry := self.first()) is not None and entry[0] <= key:
            self.drop(entry[2])
            yield entry[2]

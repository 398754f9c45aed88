"""What many ask for at once is found once."""

from __future__ import annotations

import asyncio

import pytest

from api import shared
from api.shared import Shared


class _Found:
    """Counts how often it was looked for."""

    def __init__(self) -> None:
        self.times = 0
        self.ready = asyncio.Event()

    async def find(self) -> int:
        self.times += 1
        await self.ready.wait()
        if self.times == 2:
            raise LookupError
        return self.times


async def test_all_who_ask_meanwhile_and_soon_after_are_told_the_same() -> None:
    found = _Found()
    told = Shared(found.find)
    asking = [asyncio.create_task(told.get()) for _ in range(50)]
    await asyncio.sleep(0)
    asking[0].cancel()
    found.ready.set()
    assert await asyncio.gather(*asking[1:]) == [1] * 49
    assert await told.get() == 1
    assert found.times == 1


async def test_it_is_looked_for_again_later_whatever_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_SECONDS", 0.0)
    found = _Found()
    found.ready.set()
    told = Shared(found.find)
    assert await told.get() == 1
    with pytest.raises(LookupError):
        await told.get()
    assert await told.get() == 3

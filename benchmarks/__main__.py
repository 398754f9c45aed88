"""`./dev bench [NAME] [--json FILE]`: run the benchmarks and print each figure beside its floor."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import latency, trigger

BENCHMARKS: dict[str, tuple[Callable[[], Awaitable[dict[str, float]]], dict[str, str]]] = {
    "trigger": (
        trigger.run,
        {"c16 rate ratio": "≥ 0.25", "c16 API CPU µs": "≤ 750", "c1 p50 ratio": "≤ 2.5"},
    ),
    "latency": (latency.run, {"start ratio": "≤ 3", "seen ratio": "≤ 4"}),
}


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all when left out.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures here too.")] = None,
) -> None:
    """Run benchmarks, each beside its floor in the same run."""
    chosen = names or list(BENCHMARKS)
    if unknown := sorted(set(chosen) - set(BENCHMARKS)):
        raise typer.BadParameter(f"no benchmark {', '.join(unknown)}: choose from {', '.join(BENCHMARKS)}")
    results: dict[str, dict[str, float]] = {}
    for name in chosen:
        run, goals = BENCHMARKS[name]
        results[name] = asyncio.run(_awaited(run()))
        table = Table(
            "figure", "value", "goal", title=f"{name} ({platform.machine()}, Python {platform.python_version()})"
        )
        for figure, value in results[name].items():
            table.add_row(figure, f"{value:,.3f}", goals.get(figure, ""))
        Console().print(table)
    if json is not None:
        json.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))


async def _awaited(running: Awaitable[dict[str, float]]) -> dict[str, float]:
    return await running


if __name__ == "__main__":
    typer.run(main)

"""`./dev bench [NAME] [--quick] [--json FILE]`: run the benchmarks and print each figure beside its floor."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import bulk, fairness, history, latency, loop, run, shares, simulate, trigger

BENCHMARKS: dict[str, tuple[Callable[[float], Coroutine[Any, Any, dict[str, float]]], dict[str, str]]] = {
    "trigger": (
        trigger.run,
        {"c16 rate ratio": "≥ 0.25", "c16 API CPU µs": "≤ 750", "c1 p50 ratio": "≤ 2.5"},
    ),
    "latency": (latency.run, {"start ratio": "≤ 3", "seen ratio": "≤ 4"}),
    "bulk": (bulk.run, {"rate ratio": "≥ 10"}),
    "run": (run.run, {"rate ratio": "≥ 0.5", "PostgreSQL round trips a run": "2"}),
    "loop": (loop.run, {"rate ratio": "≥ 1"}),
    "fairness": (
        fairness.run,
        {
            "behind 10,000 runs: p50 ms": "≤ 35",
            "behind 100,000 runs: p50 ms": "≤ 35",
            "beside 10,000 tenants: p50 ms": "≤ 35",
            "ten times as deep": "≤ 1.5",
            "10,000 tenants for one": "≤ 1.5",
            "shorter than there": "≥ 800",
            "5 ms: cost %": "≤ 10",
            "no-op: cost %": "≤ 20",
        },
    ),
    "shares": (shares.run, {"off by at most %": "≤ 5", "gain by 1,000 keys %": "< 2"}),
    "history": (history.run, {"page of 50: ratio": "≤ 1.2", "run by id: ratio": "≤ 1.2"}),
    "simulate": (simulate.run, {"1,000,000 tenants: picks/s": "≥ 50,000", "slower by": "≤ 3"}),
}


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all when left out.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the work: to try it, not for figures.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here too.")] = None,
) -> None:
    """Run benchmarks, each beside its floor in the same run."""
    chosen = names or list(BENCHMARKS)
    if unknown := sorted(set(chosen) - set(BENCHMARKS)):
        raise typer.BadParameter(f"no benchmark {', '.join(unknown)}: choose from {', '.join(BENCHMARKS)}")
    results: dict[str, dict[str, float]] = {}
    for name in chosen:
        measure, goals = BENCHMARKS[name]
        results[name] = asyncio.run(measure(0.1 if quick else 1.0))
        table = Table(
            "figure", "value", "goal", title=f"{name} ({platform.machine()}, Python {platform.python_version()})"
        )
        for figure, value in results[name].items():
            table.add_row(figure, f"{value:,.3f}", goals.get(figure, ""))
        Console().print(table)
    if json is not None:
        json.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    typer.run(main)

"""What benchmarks share: rounds, medians, a table for people and a flat JSON object for programs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

OUT = Path("build/bench")


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of the values lie, by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the ratios round by round: what both sides of a round suffer from the machine cancels out."""
    return statistics.median(one / other for one, other in zip(over, under, strict=True))


def write(name: str, figures: Mapping[str, float]) -> Path:
    """Writes ``build/bench/NAME.json``: dotted names to numbers."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.json"
    path.write_text(json.dumps({key: round(value, 4) for key, value in sorted(figures.items())}, indent=2) + "\n")
    return path


def show(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], goals: Mapping[str, tuple[float, str]]
) -> None:
    """Prints a table, and beside each goal what was reached."""
    console = Console()
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for goal, (value, wanted) in goals.items():
        console.print(f"  {goal} = {value:.3f}   (goal {wanted})")

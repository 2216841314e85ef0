"""What a bench gives back: rows, each a figure with its peer and its aim; and how they are shown and kept."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from benchmarks import machine

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `aim` bounds the ratio to `peer` where there is a peer and `aims_at` says so, else the value itself."""

    bench: str
    name: str
    value: float
    unit: str
    peer: float | None = None
    aim: float | None = None
    better: Literal["higher", "lower"] = "lower"
    aims_at: Literal["value", "ratio"] = "value"
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.value / self.peer if self.peer else None

    @property
    def is_met(self) -> bool | None:
        """Whether the aim is met; None where there is none."""
        measured = self.ratio if self.aims_at == "ratio" else self.value
        if self.aim is None or measured is None:
            return None
        return measured >= self.aim if self.better == "higher" else measured <= self.aim


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of `values` lie, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


def show(rows: Sequence[Row], console: Console) -> None:
    """The table, the way a person reads it."""
    table = Table(title="amplifier-api-server benchmarks", title_justify="left")
    for heading in ("bench", "what", "value", "unit", "peer", "ratio", "aim", "", "note"):
        table.add_column(heading, justify="right" if heading in {"value", "peer", "ratio", "aim"} else "left")
    for row in rows:
        verdict = {True: "[green]ok[/]", False: "[red]not met[/]", None: ""}[row.is_met]
        table.add_row(
            row.bench,
            row.name,
            _number(row.value),
            row.unit,
            _number(row.peer),
            _number(row.ratio),
            _aim(row),
            verdict,
            row.note,
        )
    console.print(table)


def save(rows: Sequence[Row], skipped: Sequence[str]) -> Path:
    """The same as JSON, with the machine it was measured on; the file's path."""
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    found = {
        "at": now.isoformat(),
        "machine": {"cores": machine.cores(), "load_average": machine.load(), "python": platform.python_version()},
        "skipped": list(skipped),
        "rows": [asdict(row) | {"ratio": row.ratio, "is_met": row.is_met} for row in rows],
    }
    path = RESULTS / f"{now:%Y%m%dT%H%M%S}.json"
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return path


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _aim(row: Row) -> str:
    if row.aim is None:
        return ""
    sign = "≥" if row.better == "higher" else "≤"
    return f"{sign} {_number(row.aim)}{' of peer' if row.aims_at == 'ratio' else ''}"

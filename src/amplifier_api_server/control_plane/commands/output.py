"""How commands answer: a table for people, JSON for scripts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

_PIPE_COLUMNS = 400  # a pipe has no width, and an id must not be cut


def show_rows(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """`rows`, of which a table has the given columns and JSON has everything."""
    if as_json:
        show_json(rows)
        return
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in columns))
    console().print(table)


def show_json(value: Any) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode() + "\n")


def console() -> Console:
    """Standard output as it is now; as wide as it needs to be where it is no terminal."""
    is_terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, width=None if is_terminal else _PIPE_COLUMNS, highlight=False)


def _text(value: Any) -> str:
    if value is None or value == {}:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={'unlimited' if one is None else one}" for name, one in value.items())
    return str(value)

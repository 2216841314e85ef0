"""Run benches by name, all of them without any; show a table; keep the figures in benchmarks/results/."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from benchmarks import machine, rows

BENCHES = ("router", "first_token", "turns", "streams", "doors", "claims", "memory", "growth")

# Parameters for a run that only shows that everything still runs: its figures mean nothing.
SMOKE: dict[str, dict[str, Any]] = {
    "router": {"rounds": 1, "seconds": 1, "connections": 4},
    "first_token": {"turns": 5},
    "turns": {"sessions": 2, "turns": 3},
    "streams": {"streams": (1, 2), "seconds": 1, "fast_tokens": 400},
    "doors": {"turns": 2, "fast_tokens": 200, "rounds": 1},
    "claims": {"times": 2},
    "memory": {"runtimes": (1, 2), "open_sessions": 5, "idle_sessions": 20},
    "growth": {"tenants": (2, 4), "sessions": (10, 20), "seconds": 1, "calls": 5},
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("benches", nargs="*", choices=[[], *BENCHES], metavar="|".join(BENCHES))
    parser.add_argument("--smoke", action="store_true", help="the smallest run of each: shows that it works, no more")
    given = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(f"{machine.cores()} cores, load average {machine.load()}", highlight=False)
    found: list[rows.Row] = []
    skipped: list[str] = []
    failed: list[str] = []
    for name in given.benches or BENCHES:
        begun = time.monotonic()
        console.print(f"[bold]{name}[/] ...", highlight=False)
        run: Callable[..., list[rows.Row]] = importlib.import_module(f"benchmarks.{name}").run
        try:
            found += run(**(SMOKE[name] if given.smoke else {}))
        except machine.Missing as missing:
            skipped.append(f"{name}: {missing}")
            console.print(f"[bold red]SKIPPED {name}[/]: {missing}")
        except Exception:  # noqa: BLE001 - one bench's trouble is not the others'
            failed.append(name)
            console.print_exception()
        else:
            console.print(f"{name}: {time.monotonic() - begun:.0f} s", highlight=False)
    rows.show(found, console)
    console.print(f"kept in {rows.save(found, skipped)}", highlight=False)
    for line in skipped:
        console.print(f"[bold red]SKIPPED[/] {line}")
    for name in failed:
        console.print(f"[bold red]FAILED[/] {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

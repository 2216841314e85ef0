"""Processes that a bench starts: they end with it, by their own ids, and what they used is read from /proc."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
_STOP_SECONDS = 15.0
_ROOT = Path(__file__).parent.parent  # where `-m benchmarks...` finds itself


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, core: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The process while the block runs, its output in `log`; on one core where `core` is given. SIGTERM, then SIGKILL."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(env) if env else None
        )
    try:
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def tree(pid: int) -> list[int]:
    """The process and everything below it."""
    found = [pid]
    for one in found:
        for task in _read(f"/proc/{one}/task", listing=True).split():
            found += [int(child) for child in _read(f"/proc/{one}/task/{task}/children").split()]
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of the process and its children, all threads, so far."""
    return sum(_cpu(one) for one in tree(pid))


def _cpu(pid: int) -> float:
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_SECONDS if fields else 0.0


def memory_bytes(pid: int) -> dict[str, int]:
    """`pss` (shared pages divided by who shares them), `uss` (its own alone) and `rss`, of this process without children."""
    found = {}
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        name, _, rest = line.partition(":")
        if rest.strip().endswith("kB"):
            found[name] = int(rest.split()[0]) * 1024
    return {
        "pss": found.get("Pss", 0),
        "uss": found.get("Private_Clean", 0) + found.get("Private_Dirty", 0),
        "rss": found.get("Rss", 0),
    }


def wait_for(path: Path, process: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> str:
    """The file's text once it is there. Raises RuntimeError with the log's end if the process ends before."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not get ready:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)
    return path.read_text(encoding="utf-8")


def _read(path: str, *, listing: bool = False) -> str:
    try:
        return " ".join(os.listdir(path)) if listing else Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # it ended while it was looked at


def parent(pid: int) -> int:
    """The process that started it; 0 where it has ended."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0

"""The servers that benches start: the one under test, and the model server that takes no time."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

from benchmarks import machine, peers, processes
from benchmarks.http_client import Client


@contextlib.contextmanager
def target(data_dir: Path, *, core: int | None = None, **options: Any) -> Iterator[tuple[dict[str, Any], Popen[bytes]]]:
    """A `benchmarks.target` that is ready: what it said of itself, and its process."""
    data_dir.mkdir(parents=True, mode=0o700)
    log = data_dir / "out.log"
    given = json.dumps({"data_dir": str(data_dir), **options})
    with processes.running([sys.executable, "-m", "benchmarks.target", given], log, core=core) as process:
        yield json.loads(processes.wait_for(data_dir / "ready.json", process, log, 180)), process


@contextlib.contextmanager
def model(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The model server: its port, and the settings that have it used."""
    port = machine.free_port()
    provider = {"name": "fast", "base_url": f"http://127.0.0.1:{port}/v1", "models": ["fast"]}
    with processes.running([sys.executable, "-m", "benchmarks.model_server", str(port)], folder / "model.log"):
        peers.answers(port)
        yield port, {"models": {"providers": [provider]}}


def new_session(client: Client) -> str:
    """A new session's id."""
    found: str = client.call("POST", "/v1/sessions", {"profile": "foundation:base"}).json["session_id"]
    return found


def wait_for_warm(client: Client, count: int, seconds: float = 60) -> None:
    """Until so many runtimes are warm. Raises RuntimeError."""
    deadline = time.monotonic() + seconds
    while (found := _warm(client)) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"there are {found} warm runtimes after {seconds} s, not {count}")
        time.sleep(0.05)


def _warm(client: Client) -> int:
    found = re.search(rb'amplifier_runtimes\{status="warm"\} (\d+)', client.call("GET", "/metrics").body)
    return int(found[1]) if found else 0


def logged(data_dir: Path, event: str) -> list[dict[str, Any]]:
    """What the server logged under this name."""
    lines = (data_dir / "out.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return [json.loads(line) for line in lines if f'"event":"{event}"' in line]

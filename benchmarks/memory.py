"""Memory: of a runtime among 1, 10 and 50 of them, of a session in a runtime, and of a session in the control plane.

A runtime's memory is the PSS of all of its processes (bubblewrap's two and Python's): pages that are shared are divided by
who shares them, so that many of them add up to what they take together.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from amplifier_api_server.control_plane.settings import Sandbox
from benchmarks import processes, servers
from benchmarks.http_client import Client
from benchmarks.rows import Row, median

_MIB = 1024 * 1024
_SETTLE_SECONDS = 1.0
_SESSIONS_A_RUNTIME = Sandbox().max_sessions_per_runtime


def run(*, runtimes: Sequence[int] = (1, 10, 50), open_sessions: int = 300, idle_sessions: int = 10_000) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as name, servers.model(Path(name)) as (_, settings):
        rows = _of_runtimes(Path(name), runtimes)
        in_runtime = _of_session(Path(name) / "session", open_sessions, settings)
        suspended, active = _of_control_plane(Path(name), idle_sessions)
    together = in_runtime + active
    shared = max(row.value for row in rows if row.name.startswith("a runtime")) * _MIB / _SESSIONS_A_RUNTIME
    return [
        *rows,
        Row("memory", f"a session in a runtime, of {open_sessions}", in_runtime / 1024, "KiB", note="after one turn"),
        Row("memory", f"an active session in the control plane, of {idle_sessions}", active / 1024, "KiB",
            note="runtimes are stand-ins in its process"),
        Row("memory", f"a suspended session in the control plane, of {idle_sessions}", suspended / 1024, "KiB"),
        Row("memory", "idle sessions a GiB: active", 1024 * _MIB / together, "", aim=10_000, better="higher",
            note="without the runtimes themselves"),
        Row("memory", "idle sessions a GiB: active, with their runtimes", 1024 * _MIB / (together + shared), "", aim=10_000,
            better="higher", note=f"{_SESSIONS_A_RUNTIME} in each"),
        Row("memory", "idle sessions a GiB: suspended", 1024 * _MIB / max(1.0, suspended), "", aim=10_000,
            better="higher", note="they are rows on disk"),
    ]  # fmt: skip


def _of_runtimes(folder: Path, counts: Sequence[int]) -> list[Row]:
    rows = []
    for count in counts:
        with servers.target(folder / f"of-{count}", sandboxes=True, warm=count) as (ready, process):
            with Client(ready["port"], ready["citizens"][0]["key"]) as client:
                servers.wait_for_warm(client, count, 120)
            time.sleep(_SETTLE_SECONDS)
            found = runtimes_of(process.pid)
            each = median(sum(processes.memory_bytes(pid)["pss"] for pid in one) for one in found)
            aim = 35 if count == max(counts) else None
            rows.append(Row("memory", f"a runtime, of {len(found)}", each / _MIB, "MiB", aim=aim, note="PSS, warm"))
            if count == counts[0]:
                rows.append(
                    Row("memory", "the control plane", processes.memory_bytes(process.pid)["pss"] / _MIB, "MiB")
                )
    return rows


def runtimes_of(pid: int) -> list[list[int]]:
    """The processes of each runtime below the server."""
    direct = [one for one in processes.tree(pid) if processes.parent(one) == pid]
    return [processes.tree(one) for one in direct]


def _of_session(data_dir: Path, count: int, settings: dict[str, object]) -> float:
    """Bytes that a runtime grows by for each session that has had one turn."""
    own = settings | {"sandbox": {"max_sessions_per_runtime": count + 10, "warm": 1, "max_runtimes": 4}}
    with (
        servers.target(data_dir, sandboxes=True, warm=1, settings=own) as (ready, process),
        Client(ready["port"], ready["citizens"][0]["key"]) as client,
    ):
        for _ in range(10):  # the first few bring modules and caches in
            _session_with_a_turn(client)
        servers.wait_for_warm(client, 1)
        there = [
            pid for one in runtimes_of(process.pid) for pid in one
        ]  # the one with the sessions, and what is kept warm
        before = sum(processes.memory_bytes(pid)["uss"] for pid in there)
        for _ in range(count):
            _session_with_a_turn(client)
        return (sum(processes.memory_bytes(pid)["uss"] for pid in there) - before) / count


def _session_with_a_turn(client: Client) -> None:
    client.call("POST", f"/v1/sessions/{servers.new_session(client)}/execute", {"prompt": "Say the word."})


def _of_control_plane(folder: Path, count: int) -> tuple[float, float]:
    """Bytes that the control plane grows by for each suspended, and for each active session."""
    with servers.target(folder / "empty", turns=0) as (_, process):
        time.sleep(_SETTLE_SECONDS)
        empty = processes.memory_bytes(process.pid)["uss"]
    with servers.target(folder / "suspended", turns=0, sessions=count) as (ready, process):
        with Client(ready["port"], ready["citizens"][0]["key"]) as client:
            client.call("GET", "/v1/sessions?limit=200")
        time.sleep(_SETTLE_SECONDS)
        suspended = processes.memory_bytes(process.pid)["uss"]
    with (
        servers.target(folder / "active", turns=0) as (ready, process),
        Client(ready["port"], ready["citizens"][0]["key"]) as client,
    ):
        for _ in range(10):
            servers.new_session(client)
        before = processes.memory_bytes(process.pid)["uss"]
        for _ in range(count):
            servers.new_session(client)
        time.sleep(_SETTLE_SECONDS)
        active = processes.memory_bytes(process.pid)["uss"]
    return max(0, suspended - empty) / count, (active - before) / count

"""What a turn costs beside its model, and what a session weighs after a hundred of them.

The model server answers at once, so a whole turn's time is ours but for the same call made directly. It is measured in a
session's first turns and in its last: a longer transcript is a larger request, and a larger checkpoint.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import memory, processes, servers
from benchmarks.http_client import Client
from benchmarks.rows import Row, median, percentile

_PROMPT = "Say the word."
_EDGE = 10  # turns that count as a session's first, and as its last


def run(*, sessions: int = 10, turns: int = 100) -> list[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="bench-turns-") as name,
        servers.model(Path(name)) as (model_port, settings),
    ):
        far = settings | {"sandbox": {"max_sessions_per_runtime": sessions + 20, "warm": 1, "max_runtimes": 4}}
        with (
            servers.target(Path(name) / "data", sandboxes=True, warm=1, settings=far) as (ready, process),
            Client(ready["port"], ready["citizens"][0]["key"]) as client,
            Client(model_port) as direct,
        ):
            for _ in range(_EDGE):  # the first few bring modules and caches in
                client.call("POST", f"/v1/sessions/{servers.new_session(client)}/execute", {"prompt": _PROMPT})
            servers.wait_for_warm(client, 1)
            there = [pid for one in memory.runtimes_of(process.pid) for pid in one]
            before = sum(processes.memory_bytes(pid)["uss"] for pid in there)
            own_before = processes.memory_bytes(process.pid)["uss"]
            took, straight = _measure(client, direct, sessions, turns)
            in_runtime = (sum(processes.memory_bytes(pid)["uss"] for pid in there) - before) / sessions
            in_control = (processes.memory_bytes(process.pid)["uss"] - own_before) / sessions
    edge = min(_EDGE, turns)
    first = [one - median(straight) for session in took for one in session[:edge]]
    last = [one - median(straight) for session in took for one in session[-edge:]]
    return [
        Row("turns", f"overhead of a turn, turns 1 to {edge}, median", median(first) * 1e3, "ms",
            note="execute to durable, less the model call"),
        Row("turns", f"overhead of a turn, turns 1 to {edge}, p95", percentile(first, 95) * 1e3, "ms"),
        Row("turns", f"overhead of a turn, turns {turns - edge + 1} to {turns}, median", median(last) * 1e3, "ms"),
        Row("turns", f"overhead of a turn, turns {turns - edge + 1} to {turns}, p95", percentile(last, 95) * 1e3, "ms"),
        Row("turns", f"a session in its runtime after {turns} turns", in_runtime / 1024, "KiB", note=f"of {sessions}"),
        Row("turns", f"a session in the control plane after {turns} turns", in_control / 1024, "KiB",
            note=f"of {sessions}; caches and arenas of the process among it"),
    ]  # fmt: skip


def _measure(client: Client, direct: Client, sessions: int, turns: int) -> tuple[list[list[float]], list[float]]:
    chat = {"model": "fast", "stream": True, "messages": [{"role": "user", "content": _PROMPT}]}
    took: list[list[float]] = []
    straight: list[float] = []
    for _ in range(sessions):
        session_id = servers.new_session(client)
        took.append([])
        for _ in range(turns):
            answer = client.call("POST", f"/v1/sessions/{session_id}/execute", {"prompt": _PROMPT})
            took[-1].append(answer.seconds)
        straight.append(direct.call("POST", "/v1/chat/completions", chat).seconds)
    return took, straight

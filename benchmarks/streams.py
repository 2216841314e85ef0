"""Tokens through the whole way: model server, model gateway, sandbox, session, router, client; 1, 10 and 100 streams at once.

Paced streams (50 tokens a second each, as fast models are) say what a token costs in CPU; streams as fast as they go say how
many tokens a second the machine carries. The model server and the client share its cores, so the latter is a lower bound.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes, servers
from benchmarks.http_client import Client
from benchmarks.rows import Row, median

_PACED_RATE = 50
_TIMEOUT_SECONDS = 240.0
_ENDS = (b"event: complete", b"[DONE]")


@dataclass(frozen=True, slots=True)
class Load:
    """So many streams at once, each of so many tokens, at so many a second; 0 is as fast as they go."""

    streams: int
    tokens: int
    rate: int

    @property
    def prompt(self) -> str:
        return f"stream {self.tokens} at {self.rate}/s"


def run(*, streams: Sequence[int] = (1, 10, 100), seconds: int = 10, fast_tokens: int = 20_000) -> list[Row]:
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory(prefix="bench-streams-") as name,
        servers.model(Path(name)) as (model_port, settings),
    ):
        far = {"sandbox": {"max_sessions_per_runtime": max(streams), "warm": 1}}
        with servers.target(Path(name) / "data", sandboxes=True, warm=1, settings=settings | far) as (ready, process):
            way = _Way(ready["port"], ready["citizens"][0]["key"], model_port, process.pid)
            for count in streams:
                rows += way.paced(Load(count, seconds * _PACED_RATE, _PACED_RATE))
                rows += way.fast(Load(count, max(200, fast_tokens // count), 0))
    return rows


class _Way:
    """The server under test, and the model server beside it."""

    def __init__(self, port: int, key: str, model_port: int, pid: int) -> None:
        self._port = port
        self._key = key
        self._model_port = model_port
        self._pid = pid
        self._sessions: list[str] = []

    def paced(self, load: Load) -> list[Row]:
        told = self._measure(load)
        tokens = load.streams * load.tokens
        name = f"{load.streams} streams at {load.rate}/s" if load.streams > 1 else f"1 stream at {load.rate}/s"
        return [
            Row("streams", f"{name}: tokens a second", tokens / told.seconds, "1/s", load.streams * load.rate,
                better="higher", note="peer: what the model sends"),
            Row("streams", f"{name}: CPU a token", told.cpu_seconds / tokens * 1e6, "µs",
                note="server and sandboxes together"),
            Row("streams", f"{name}: first token, median", median(told.first_token_seconds) * 1e3, "ms"),
        ]  # fmt: skip

    def fast(self, load: Load) -> list[Row]:
        straight = asyncio.run(
            _together(self._model_port, load.tokens, [("", "/v1/chat/completions", _chat(load))] * load.streams)
        )
        told = self._measure(load)
        tokens = load.streams * load.tokens
        name = f"{load.streams} streams, as fast as they go" if load.streams > 1 else "1 stream, as fast as it goes"
        return [
            Row("streams", f"{name}: tokens a second", tokens / told.seconds, "1/s", tokens / straight.seconds,
                better="higher", note="peer: from the model server directly"),
            Row("streams", f"{name}: CPU a token", told.cpu_seconds / tokens * 1e6, "µs",
                note="server and sandboxes together"),
        ]  # fmt: skip

    def _measure(self, load: Load) -> _Told:
        with Client(self._port, self._key) as client:
            while len(self._sessions) < load.streams:
                self._sessions.append(servers.new_session(client))
        body = {"prompt": load.prompt, "stream": True}
        asked = [(self._key, f"/v1/sessions/{one}/execute", body) for one in self._sessions[: load.streams]]
        before = processes.cpu_seconds(self._pid)
        told = asyncio.run(_together(self._port, load.tokens, asked))
        told.cpu_seconds = processes.cpu_seconds(self._pid) - before
        if told.completed < load.streams:
            raise RuntimeError(f"{load.streams - told.completed} of {load.streams} turns did not complete")
        return told


@dataclass(slots=True)
class _Told:
    seconds: float
    first_token_seconds: list[float]
    completed: int
    cpu_seconds: float = 0.0


def _chat(load: Load) -> dict[str, object]:
    return {"model": "fast", "stream": True, "messages": [{"role": "user", "content": load.prompt}]}


async def _together(port: int, tokens: int, asked: list[tuple[str, str, dict[str, object]]]) -> _Told:
    begun = time.perf_counter()
    async with asyncio.timeout(_TIMEOUT_SECONDS):
        found = await asyncio.gather(*(_stream(port, tokens, *one) for one in asked))
    return _Told(
        time.perf_counter() - begun, [first for first, _ in found], sum(is_complete for _, is_complete in found)
    )


async def _stream(port: int, tokens: int, key: str, path: str, body: dict[str, object]) -> tuple[float, bool]:
    """One streamed answer read to its end: seconds to its first token, and whether it ended as it should, with all tokens."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    begun, first, tail, arrived, is_complete = time.perf_counter(), 0.0, b"", 0, False
    mark = b"event: token" if key else b'"content"'
    try:
        sent = json.dumps(body).encode()
        auth = f"X-API-Key: {key}\r\n" if key else ""
        head = f"POST {path} HTTP/1.1\r\nHost: h\r\n{auth}Content-Type: application/json\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        while piece := await reader.read(65_536):
            if not first and b'"content"' in piece:
                first = time.perf_counter() - begun
            seen = tail + piece
            is_complete = is_complete or any(end in seen for end in _ENDS)
            arrived += seen.count(mark)
            tail = seen[1 - len(mark) :]  # too short for a whole mark: none is counted twice
    finally:
        writer.close()
    return first, is_complete and arrived >= tokens

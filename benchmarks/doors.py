"""The three doors side by side: time to an execution's first event, and events a second, each on a connection that is open.

Through the whole way, as in `streams`: a real sandbox, a model server that takes no time. The peer is that model server
asked directly by the same client over the same transport: server-sent events beside REST, a WebSocket that sends the same
words as plain messages (uvicorn, nothing else in between) beside the two WebSocket doors. Rounds are interleaved. By GraphQL
an execution is begun by one operation and followed by another, as its schema has it; the time is of both.
"""

from __future__ import annotations

import http.client
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from websockets.sync.client import ClientConnection, connect

from benchmarks import processes, servers
from benchmarks.http_client import Client
from benchmarks.rows import Row, median, percentile

_WORD: Final = "Say the word."
_TURNS_A_SESSION: Final = 20  # a longer transcript is a larger request, which is another question
_TIMEOUT_SECONDS: Final = 120.0
_START: Final = "mutation($s: ID!, $p: String!) { startExecution(sessionId: $s, prompt: $p) { requestId } }"
_FOLLOW: Final = "subscription($s: ID!, $r: ID!) { executionStream(sessionId: $s, requestId: $r) { id type content } }"


@dataclass(frozen=True, slots=True)
class _Told:
    """One execution, followed to its end."""

    first_seconds: float
    seconds: float
    events: int


Ask = Callable[[str, str], _Told]  # session, prompt


def run(*, turns: int = 100, fast_tokens: int = 20_000, rounds: int = 3) -> list[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="bench-doors-") as name,
        servers.model(Path(name)) as (model_port, settings),
        servers.target(Path(name) / "data", sandboxes=True, settings=settings) as (ready, process),
        ExitStack() as stack,
        Client(ready["port"], ready["citizens"][0]["key"]) as client,
    ):
        port, key = ready["port"], ready["citizens"][0]["key"]
        ours = {door: stack.enter_context(make(port, key)) for door, make in _DOORS.items()}
        peers = {kind: stack.enter_context(make(model_port)) for kind, make in _PEERS.items()}
        first = _first_events(client, ours, peers, turns)
        fast = _as_fast_as_they_go(client, ours, peers, _Load(fast_tokens, rounds, process.pid))
    return [row for door in ours for row in _rows(door, first, fast)]


@dataclass(frozen=True, slots=True)
class _Load:
    tokens: int
    rounds: int
    pid: int


@dataclass(frozen=True, slots=True)
class _Speed:
    """Of some runs: events a second, and CPU seconds an event."""

    rates: list[float]
    costs: list[float]


def _first_events(client: Client, ours: dict[str, Ask], peers: dict[str, Ask], turns: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in (*ours, *peers)}
    sessions = dict.fromkeys(found, "")
    for number in range(turns):
        for name, ask in (*ours.items(), *peers.items()):
            if name in ours and number % _TURNS_A_SESSION == 0:
                sessions[name] = servers.new_session(client)
                ask(sessions[name], _WORD)  # warms up
            found[name].append(ask(sessions[name], _WORD).first_seconds)
    return found


def _as_fast_as_they_go(client: Client, ours: dict[str, Ask], peers: dict[str, Ask], load: _Load) -> dict[str, _Speed]:
    prompt = f"stream {load.tokens} at 0/s"
    found = {name: _Speed([], []) for name in (*ours, *peers)}
    for _ in range(load.rounds):
        for name, ask in (*ours.items(), *peers.items()):
            session = servers.new_session(client) if name in ours else ""
            before = processes.cpu_seconds(load.pid)
            told = ask(session, prompt)
            if told.events < load.tokens:
                raise RuntimeError(f"{name}: {told.events} events of {load.tokens}")
            found[name].rates.append(told.events / told.seconds)
            found[name].costs.append((processes.cpu_seconds(load.pid) - before) / told.events)
    return found


def _rows(door: str, first: dict[str, list[float]], fast: dict[str, _Speed]) -> list[Row]:
    peer = _PEER_OF[door]
    beside = f"peer: the model server directly, by {peer}"
    return [
        Row("doors", f"{door}: first event, median", median(first[door]) * 1e3, "ms", median(first[peer]) * 1e3,
            note=beside),
        Row("doors", f"{door}: first event, p95", percentile(first[door], 95) * 1e3, "ms",
            percentile(first[peer], 95) * 1e3, note=beside),
        Row("doors", f"{door}: events a second", median(fast[door].rates), "1/s", median(fast[peer].rates),
            better="higher", note=beside),
        Row("doors", f"{door}: CPU an event", median(fast[door].costs) * 1e6, "µs",
            note="server and sandboxes together"),
    ]  # fmt: skip


# REST: server-sent events.


@contextmanager
def _rest(port: int, key: str) -> Iterator[Ask]:
    with _events_by_http(port, {"X-API-Key": key}, b"event: token") as read:
        yield lambda session, prompt: read(f"/v1/sessions/{session}/execute", {"prompt": prompt, "stream": True})


@contextmanager
def _model_by_http(port: int) -> Iterator[Ask]:
    def body(prompt: str) -> dict[str, Any]:
        return {"model": "fast", "stream": True, "messages": [{"role": "user", "content": prompt}]}

    with _events_by_http(port, {}, b'"content"') as read:
        yield lambda _session, prompt: read("/v1/chat/completions", body(prompt))


@contextmanager
def _events_by_http(
    port: int, headers: dict[str, str], mark: bytes
) -> Iterator[Callable[[str, dict[str, Any]], _Told]]:
    """Reads the answer to a POST to its end, counting what is marked so."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
    headers = headers | {"Content-Type": "application/json"}

    def read(path: str, body: dict[str, Any]) -> _Told:
        begun, first, count, rest = time.perf_counter(), 0.0, 0, b""
        connection.request("POST", path, json.dumps(body).encode(), headers)
        answer = connection.getresponse()
        if answer.status >= 400:
            raise RuntimeError(f"POST {path}: {answer.status} {answer.read()[:300]!r}")
        while piece := answer.read1(65_536):
            held = rest + piece
            count += held.count(mark)
            first = first or (time.perf_counter() - begun if count else 0.0)
            rest = held[held.rfind(mark) + len(mark) :] if mark in held else held
            rest = rest[-(len(mark) - 1) :]
        return _Told(first, time.perf_counter() - begun, count)

    try:
        yield read
    finally:
        connection.close()


# WebSocket.


@contextmanager
def _websocket(port: int, key: str) -> Iterator[Ask]:
    with _socket(port, "/ws") as socket:
        socket.send(json.dumps({"type": "auth", "token": key}))
        _expect(json.loads(socket.recv(_TIMEOUT_SECONDS)), "auth.ok")

        def ask(session: str, prompt: str) -> _Told:
            begun, first, count = time.perf_counter(), 0.0, 0
            socket.send(json.dumps({"type": "execute", "session_id": session, "prompt": prompt}))
            while (kind := (message := json.loads(socket.recv(_TIMEOUT_SECONDS)))["type"]) != "complete":
                if kind == "token":
                    first = first or time.perf_counter() - begun
                    count += 1
                else:
                    _expect(message, "execution.started")
            return _Told(first, time.perf_counter() - begun, count)

        yield ask


@contextmanager
def _graphql(port: int, key: str) -> Iterator[Ask]:
    with _socket(port, "/graphql", "graphql-transport-ws") as socket:
        socket.send(json.dumps({"type": "connection_init", "payload": {"token": key}}))
        _expect(json.loads(socket.recv(_TIMEOUT_SECONDS)), "connection_ack")

        def subscribe(document: str, **variables: str) -> None:
            payload = {"query": document, "variables": variables}
            socket.send(json.dumps({"id": "a", "type": "subscribe", "payload": payload}))

        def results() -> Iterator[Any]:
            while (message := json.loads(socket.recv(_TIMEOUT_SECONDS)))["type"] != "complete":
                _expect(message, "next")
                if "errors" in message["payload"]:
                    raise RuntimeError(str(message)[:300])
                yield message["payload"]["data"]

        def ask(session: str, prompt: str) -> _Told:
            begun, first, count = time.perf_counter(), 0.0, 0
            subscribe(_START, s=session, p=prompt)
            (started,) = results()
            subscribe(_FOLLOW, s=session, r=started["startExecution"]["requestId"])
            for data in results():
                if data["executionStream"]["type"] == "TOKEN":
                    first = first or time.perf_counter() - begun
                    count += 1
            return _Told(first, time.perf_counter() - begun, count)

        yield ask


@contextmanager
def _model_by_websocket(port: int) -> Iterator[Ask]:
    with _socket(port, "/") as socket:

        def ask(_session: str, prompt: str) -> _Told:
            begun, first, count = time.perf_counter(), 0.0, 0
            socket.send(json.dumps({"prompt": prompt}))
            while json.loads(socket.recv(_TIMEOUT_SECONDS))["type"] != "complete":
                first = first or time.perf_counter() - begun
                count += 1
            return _Told(first, time.perf_counter() - begun, count)

        yield ask


def _socket(port: int, path: str, protocol: str | None = None) -> AbstractContextManager[ClientConnection]:
    return connect(
        f"ws://127.0.0.1:{port}{path}",
        subprotocols=[protocol] if protocol else None,  # type: ignore[list-item]
        compression=None,
        max_size=None,
        proxy=None,
    )


def _expect(message: dict[str, Any], kind: str) -> None:
    if message["type"] != kind:
        raise RuntimeError(f"{kind} was expected: {str(message)[:300]}")


_DOORS: Final[dict[str, Callable[[int, str], AbstractContextManager[Ask]]]] = {
    "REST": _rest,
    "GraphQL": _graphql,
    "WebSocket": _websocket,
}
_PEERS: Final[dict[str, Callable[[int], AbstractContextManager[Ask]]]] = {
    "server-sent events": _model_by_http,
    "plain WebSocket": _model_by_websocket,
}
_PEER_OF: Final = {"REST": "server-sent events", "GraphQL": "plain WebSocket", "WebSocket": "plain WebSocket"}

"""A small real gateway: HTTP over a Unix socket, a scripted model, and checkpoints answered as the control plane does."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Write = Callable[[bytes], Awaitable[None]]
Script = Callable[[dict[str, Any], Write], Awaitable[None]]


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    """One server-sent event of the chat-completions dialect."""
    body = {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}],
        **more,
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


MODEL_CALLS = ("/v1/chat/completions", "/v1/responses", "/v1/messages")
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}\n\n'
DONE = b"data: [DONE]\n\n"


def says(*texts: str) -> Script:
    """The model answers with `texts`, one delta each."""

    async def script(body: dict[str, Any], write: Write) -> None:
        for text in texts:
            await write(chunk({"content": text}))
        await write(chunk(finish="stop") + USAGE + DONE)

    return script


def calls(*tools: tuple[str, Any], text: str = "") -> Script:
    """The model calls `tools`, each a name and its input (or the arguments as raw text)."""

    async def script(body: dict[str, Any], write: Write) -> None:
        if text:
            await write(chunk({"content": text}))
        for index, (name, given) in enumerate(tools):
            arguments = given if isinstance(given, str) else json.dumps(given)
            half = len(arguments) // 2
            head = {
                "index": index,
                "id": f"call_{index}",
                "type": "function",
                "function": {"name": name, "arguments": arguments[:half]},
            }
            await write(chunk({"tool_calls": [head]}))
            await write(chunk({"tool_calls": [{"index": index, "function": {"arguments": arguments[half:]}}]}))
        await write(chunk(finish="tool_calls") + USAGE + DONE)

    return script


def raw(*pieces: bytes) -> Script:
    """These bytes, each piece flushed by itself, then a clean end."""

    async def script(body: dict[str, Any], write: Write) -> None:
        for piece in pieces:
            await write(piece)
            await asyncio.sleep(0)

    return script


class Answered(Exception):
    """Raised by a script: answer with a status and a JSON body instead of a stream."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self.status, self.body, self.headers = status, body, headers or {}


def answers(status: int, body: Any, headers: dict[str, str] | None = None) -> Script:
    async def script(_: dict[str, Any], __: Write) -> None:
        raise Answered(status, body, headers)

    return script


class CutOff(Exception):
    """Raised by a script: the connection breaks."""


class FakeGateway:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.scripts: deque[Script] = deque()
        self.default: Script = says("Hello", " world")
        self.models: list[dict[str, Any]] = []  # as the gateway lists them
        self.requests: list[dict[str, Any]] = []  # bodies of model calls
        self.paths: list[str] = []  # that they came by
        self.turn_headers: list[str] = []
        self.checkpoints: list[dict[str, Any]] = []
        self.approvals: list[dict[str, Any]] = []  # as they were told
        self.approvals_status = 200
        self.checkpoint_answers: deque[Any] = deque()  # statuses to refuse with, or None to break the connection
        self.checkpoint_gate: asyncio.Event | None = None  # held until it is set
        self.open_checkpoints = 0  # that came in, answered or not
        self.open_streams = 0
        self.stream_closed = asyncio.Event()
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._connection, path=str(self.path), limit=64 * 1024 * 1024)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *fields = head.strip().split("\r\n")
                headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in fields)}
                body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
                path = line.split()[1]
                if path in MODEL_CALLS:
                    self.paths.append(path)
                    await self._model(reader, writer, headers, body)
                elif path == "/v1/models":
                    _answer(writer, 200, {"object": "list", "data": self.models})
                elif path.endswith("/approvals"):
                    self.approvals.append(body)
                    _answer(writer, self.approvals_status, b"{}")
                else:
                    await self._checkpoint(writer, body)
        except (asyncio.IncompleteReadError, ConnectionError, CutOff, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _model(self, reader: Any, writer: Any, headers: dict[str, str], body: dict[str, Any]) -> None:
        self.requests.append(body)
        self.turn_headers.append(headers.get("x-amplifier-turn", ""))
        script = self.scripts.popleft() if self.scripts else self.default
        started = False

        async def write(data: bytes) -> None:
            nonlocal started
            if not started:
                started = True
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
            if data:
                writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()

        self.open_streams += 1
        work = asyncio.ensure_future(script(body, write))
        hangup = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({work, hangup}, return_when=asyncio.FIRST_COMPLETED)
            if hangup.done():
                raise ConnectionResetError
            work.result()
            writer.write(b"0\r\n\r\n")
        except Answered as answered:
            _answer(writer, answered.status, answered.body, answered.headers)
        finally:
            work.cancel()
            hangup.cancel()
            await asyncio.gather(work, hangup, return_exceptions=True)
            self.open_streams -= 1
            self.stream_closed.set()

    async def _checkpoint(self, writer: Any, body: dict[str, Any]) -> None:
        self.open_checkpoints += 1
        if self.checkpoint_gate is not None:
            await self.checkpoint_gate.wait()
        if self.checkpoint_answers:
            refusal = self.checkpoint_answers.popleft()
            if refusal is None:
                raise CutOff
            _answer(writer, refusal, {"code": "refused", "detail": "not this one"})
            return
        self.checkpoints.append(body)
        _answer(writer, 200, terminal_of(body))


def terminal_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What the control plane answers to a checkpoint."""
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    told = {
        "request_id": checkpoint["request_id"],
        "usage": usage,
        "response": checkpoint["response"],
        "tool_calls": checkpoint["tool_calls"],
    }
    result: dict[str, Any] = {**told, "status": checkpoint["status"]}
    if checkpoint["status"] == "completed":
        return {"event": "complete", "data": told, "result": result}
    failure = checkpoint.get("failure") or {"code": "turn_cancelled", "detail": "cancelled"}
    problem = {"type": "about:blank", "title": "x", "status": 502, **failure}
    return {"event": "error", "data": problem, "result": {**result, "problem": problem}}


def _answer(writer: Any, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(text)), **(headers or {})}
    writer.write(
        f"HTTP/1.1 {status} X\r\n".encode()
        + "".join(f"{k}: {v}\r\n" for k, v in fields.items()).encode()
        + b"\r\n"
        + text
    )

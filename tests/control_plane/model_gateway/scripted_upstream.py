"""A provider that a test scripts byte by byte: a TCP server that does as told, however wrong that is."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Peer:
    """One connection; a script answers one request on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.asked: Asked = None

    async def read_request(self) -> Asked | None:
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        first, *fields = head.rstrip("\r\n").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        self.asked = Asked(method, path, headers, body)
        return self.asked

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def stream(self, content_type: str = "text/event-stream") -> None:
        """The head of a stream in chunked encoding."""
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
        await self.raw(head.encode())

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def whole(self, status: int, body: bytes, *headers: str, content_type: str = "application/json") -> None:
        fields = "".join(f"{field}\r\n" for field in headers)
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
        await self.raw(head.encode() + body)

    def cut(self) -> None:
        self.writer.transport.abort()

    async def hung_up(self) -> None:
        """Returns when the other side is gone."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


Script = Callable[[Peer], Awaitable[None]]


class ScriptedUpstream:
    """Answers each request by `script`; keeps what it was asked."""

    def __init__(self) -> None:
        self.script: Script = None
        self.asked: list[Asked] = []
        self.connections = 0
        self._server: asyncio.Server = None
        self._tasks: set[asyncio.Task] = set()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer) -> None:
        self._tasks.add(asyncio.current_task())
        self.connections += 1
        peer = Peer(reader, writer)
        try:
            while (asked := await peer.read_request()) is not None:
                self.asked.append(asked)
                await self.script(peer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()


def delta(text: str, finish: str | None = None, usage: dict | None = None, **more) -> bytes:
    """One event of a stream."""
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    chunk = {"id": "x", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **more}
    if usage:
        chunk["usage"] = usage
    return event(chunk)


def event(chunk: dict) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


def counted(prompt: int, completion: int) -> dict:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def usage_chunk(prompt: int, completion: int) -> bytes:
    return event({"id": "x", "object": "chat.completion.chunk", "choices": [], "usage": counted(prompt, completion)})


DONE = b"data: [DONE]\n\n"


def answering(*chunks: bytes) -> Script:
    """Stream these chunks and end well."""

    async def script(peer: Peer) -> None:
        await peer.stream()
        for one in chunks:
            await peer.chunk(one)
        await peer.end()

    return script


def whole_answer(text: str, prompt: int, completion: int, finish: str = "stop") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return json.dumps({"id": "x", "choices": [choice], "usage": counted(prompt, completion)}).encode()

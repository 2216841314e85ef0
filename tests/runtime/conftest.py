"""A runtime in this process: its real App on a real socket, a real gateway beside it, and a client to drive it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from amplifier_api_server.runtime.app import App
from amplifier_api_server.runtime.gateway import Gateway
from amplifier_api_server.runtime.http_server import HttpServer
from tests.runtime.fake_gateway import FakeGateway


@dataclass
class Event:
    number: int
    name: str
    data: Any


@dataclass
class Driver:
    """What the control plane does to a runtime, over its socket."""

    path: str
    gateway: FakeGateway
    workspace: Path
    installed: Path
    app: App | None = None
    claim_body: dict[str, Any] = field(default_factory=lambda: {"runtime_id": "run_1", "tenant_id": "ten_1"})
    _turns: int = 0

    async def call(self, method: str, path: str, body: Any = None, accept: str = "application/json") -> tuple[int, Any]:
        status, data = await self.call_raw(method, path, body, accept)
        return status, json.loads(data or b"null")

    async def call_raw(
        self, method: str, path: str, body: Any = None, accept: str = "application/json"
    ) -> tuple[int, bytes]:
        reader, writer = await self.send(method, path, body, accept)
        try:
            async with asyncio.timeout(60):
                status, headers = await read_head(reader)
                return status, await reader.readexactly(int(headers.get("content-length", 0)))
        finally:
            writer.transport.abort()

    async def call_raw_stream(self, path: str) -> tuple[int, bytes]:
        """A chunked answer's body, put together."""
        reader, writer = await self.send("GET", path, None, "text/event-stream")
        try:
            status, _ = await read_head(reader)
            body = b""
            while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            return status, body
        finally:
            writer.transport.abort()

    async def send(self, method: str, path: str, body: Any = None, accept: str = "application/json") -> tuple[Any, Any]:
        reader, writer = await asyncio.open_unix_connection(self.path, limit=64 * 1024 * 1024)
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        writer.write(
            f"{method} {path} HTTP/1.1\r\nhost: r\r\naccept: {accept}\r\ncontent-length: {len(data)}\r\n\r\n".encode()
            + data
        )
        return reader, writer

    async def claim(self, **more: Any) -> None:
        assert (await self.call_raw("POST", "/claim", {**self.claim_body, **more}))[0] == 204

    async def open(self, session_id: str = "sess_1", **body: Any) -> dict[str, Any]:
        if "plan" not in body:
            body.setdefault("profile", "foundation:base")
        status, opened = await self.call("PUT", f"/sessions/{session_id}", body)
        assert status in (200, 201), opened
        return opened

    def next_id(self) -> str:
        self._turns += 1
        return f"req_{self._turns}"

    async def ask(
        self, prompt: str = "hi", session_id: str = "sess_1", request_id: str | None = None
    ) -> dict[str, Any]:
        """A turn to its end, as JSON."""
        status, result = await self.call(
            "POST", f"/sessions/{session_id}/turns/{request_id or self.next_id()}", {"prompt": prompt}
        )
        assert status == 200, result
        return result

    @contextlib.asynccontextmanager
    async def streaming(self, method: str, path: str, body: Any = None) -> AsyncIterator[AsyncIterator[Event]]:
        reader, writer = await self.send(method, path, body, "text/event-stream")
        try:
            status, _ = await read_head(reader)
            assert status == 200, status
            yield events_of(reader)
        finally:
            writer.transport.abort()

    async def stream(
        self, prompt: str = "hi", session_id: str = "sess_1", request_id: str | None = None
    ) -> list[Event]:
        path = f"/sessions/{session_id}/turns/{request_id or self.next_id()}"
        async with self.streaming("POST", path, {"prompt": prompt}) as events:
            return [event async for event in events]

    async def replay(self, request_id: str, after: int = 0, session_id: str = "sess_1") -> list[Event]:
        async with self.streaming("GET", f"/sessions/{session_id}/turns/{request_id}/events?after={after}") as events:
            return [event async for event in events]

    async def cancel(self, request_id: str, session_id: str = "sess_1") -> None:
        assert (await self.call("POST", f"/sessions/{session_id}/turns/{request_id}/cancel"))[0] == 202


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    return int(line.split()[1]), {name.lower(): value for name, _, value in (one.partition(": ") for one in fields)}


async def events_of(reader: asyncio.StreamReader) -> AsyncIterator[Event]:
    """The events of a chunked answer, as they come."""
    buffer = b""
    while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
        buffer += await reader.readexactly(size)
        await reader.readexactly(2)
        while b"\n\n" in buffer:
            frame, _, buffer = buffer.partition(b"\n\n")
            fields = dict(line.split(": ", 1) for line in frame.decode().split("\n"))
            yield Event(int(fields["id"].rpartition(":")[2]), fields["event"], json.loads(fields["data"]))


def text_of(events: list[Event]) -> str:
    return "".join(event.data["content"] for event in events if event.name == "token")


@pytest.fixture
def short_tmp() -> Any:
    """A short path: a Unix socket's is limited to 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        yield Path(folder)


@pytest.fixture
async def gateway(short_tmp: Path) -> AsyncIterator[FakeGateway]:
    fake = FakeGateway(short_tmp / "g")
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def unclaimed(short_tmp: Path, gateway: FakeGateway) -> AsyncIterator[Driver]:
    workspace, installed = short_tmp / "w", short_tmp / "c"
    workspace.mkdir()
    installed.mkdir()
    app = App(Gateway(str(gateway.path)), workspace, installed)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(short_tmp / "r"))
    listener.listen(128)
    server = HttpServer(app.handle)
    await server.listen(listener)
    yield Driver(str(short_tmp / "r"), gateway, workspace, installed, app)
    await app.stop()
    await server.close(grace_seconds=0.2)


@pytest.fixture
async def runtime(unclaimed: Driver) -> Driver:
    await unclaimed.claim()
    return unclaimed

"""A control plane whose runtimes are the test's, and connections to its WebSocket door without a network."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from amplifier_api_server.control_plane.routes import ClientLeft
from tests.hostile_runtime import Attacked, attacked


@dataclass
class Wire:
    """One connection, from the client's side. While `reads` is not set, what the server sends waits."""

    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    denied: dict[str, Any] | None = None  # the problem that the upgrade was refused with
    code: int | None = None
    reason: str = ""
    _to_server: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    _from_server: asyncio.Queue[dict[str, Any] | None] = field(default_factory=asyncio.Queue)
    _has_left: bool = False

    @property
    def scope(self) -> dict[str, Any]:
        return {
            "type": "websocket",
            "path": "/ws",
            "headers": [(b"host", b"localhost:8000"), *self.headers],
            "client": ("192.0.2.1", 1),
        }

    async def receive(self) -> dict[str, Any]:
        return await self._to_server.get()

    async def send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        if self._has_left:
            raise OSError
        match message["type"]:
            case "websocket.send":
                self._from_server.put_nowait(json.loads(message["text"]))
            case "websocket.close":
                self.code, self.reason = message["code"], message["reason"]
                self._from_server.put_nowait(None)
            case "websocket.http.response.body":
                self.denied = json.loads(message["body"])
                self._from_server.put_nowait(None)

    def say(self, kind: str, **members: Any) -> None:
        self.text(json.dumps({"type": kind, **members}))

    def text(self, text: str) -> None:
        self._to_server.put_nowait({"type": "websocket.receive", "text": text})

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(60):
            found = await self._from_server.get()
        assert found is not None, (self.code, self.reason, self.denied)
        return found

    async def ask(self, kind: str, **members: Any) -> dict[str, Any]:
        self.say(kind, **members)
        return await self.hear()

    async def closed(self) -> int | None:
        """The code that the server closes with; None where it refused the upgrade."""
        async with asyncio.timeout(60):
            while await self._from_server.get() is not None:
                pass
        return self.code

    def leave(self) -> None:
        self._has_left = True
        self.reads.set()
        self._to_server.put_nowait({"type": "websocket.disconnect", "code": 1006})


@dataclass
class Door:
    plane: Attacked
    key: str

    @contextlib.asynccontextmanager
    async def connected(self, headers: dict[str, str] | None = None) -> AsyncIterator[Wire]:
        """A connection that nobody is known on."""
        wire = Wire([(name.encode(), value.encode()) for name, value in (headers or {}).items()])
        wire.reads.set()
        wire._to_server.put_nowait({"type": "websocket.connect"})
        task = asyncio.create_task(self.plane.app.asgi(wire.scope, wire.receive, wire.send))
        try:
            yield wire
        finally:
            wire.leave()
            with contextlib.suppress(ClientLeft):
                async with asyncio.timeout(60):
                    await task

    @contextlib.asynccontextmanager
    async def known(self, key: str | None = None) -> AsyncIterator[Wire]:
        async with self.connected() as wire:
            assert (await wire.ask("auth", token=key or self.key))["type"] == "auth.ok"
            yield wire


@pytest.fixture
async def door(tmp_path):
    async with attacked(tmp_path) as plane:
        yield Door(plane, plane.key)


@pytest.fixture
async def wire(door):
    async with door.known() as one:
        yield one

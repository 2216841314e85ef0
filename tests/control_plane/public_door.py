"""A public door of its own: the protocol that the server has, before a small application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from amplifier_api_server.control_plane.connections import Bounds, PublicProtocol, public_protocol
from amplifier_api_server.control_plane.peers import Peers
from amplifier_api_server.control_plane.upgraded import SocketBounds, socket_protocol


@dataclass
class Door:
    """`/wait` is answered once `go` is set, `/early` only in part, `/large` with 8 MiB, everything else at once, with its path."""

    port: int
    peers: Peers
    protocol: type[PublicProtocol]
    go: asyncio.Event
    seen: list[dict[str, Any]] = field(default_factory=list)  # the scopes of requests, in the order of their arrival
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, address: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0))
        self.writers.append(writer)
        return reader, writer


@contextlib.asynccontextmanager
async def public_door(peers: Peers | None = None, bounds: Bounds | None = None) -> AsyncIterator[Door]:
    given = bounds or Bounds()
    counted = peers or Peers(most=given.connections, most_of_network=given.connections)
    door = Door(0, counted, public_protocol(given, counted), asyncio.Event())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while (await receive())["type"] == "websocket.receive":
                pass
            return
        door.seen.append(scope)
        if scope["path"] == "/early":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            await door.go.wait()
            return
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/wait":
            await door.go.wait()
        body = b"x" * 8 * 1024 * 1024 if scope["path"] == "/large" else scope["path"].encode()
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(
        app,
        port=0,
        http=door.protocol,
        ws=socket_protocol(SocketBounds()),
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    door.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield door
    finally:
        door.go.set()
        for writer in door.writers:
            writer.transport.abort()
        server.should_exit = True
        await task

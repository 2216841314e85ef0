"""A runtime that means harm: its own HTTP server, which answers whatever a test scripts, and a control plane around it.

`HostileRuntime` listens on a Unix socket as a real one does. By default it behaves (claims, opens, closes, says that it is
healthy); `answers[(method, kind)]` replaces one answer by a coroutine that has the connection to itself. It reaches its
gateway as a sandbox does, by the socket, so that what it hands over is parsed and checked as in production.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from amplifier_api_server.control_plane.accounts.bootstrap import FILE_NAME, FirstKeys, ensure_first_keys
from amplifier_api_server.control_plane.app import Application
from amplifier_api_server.control_plane.pods.launcher import Address
from amplifier_api_server.control_plane.pods.memory import MemoryLauncher
from amplifier_api_server.control_plane.settings import load
from tests.tenants.embedded import migrated_in

_KINDS = (
    ("health", r"/health"),
    ("claim", r"/claim"),
    ("catalog", r"/catalog"),
    ("inspect", r"/inspect"),
    ("compile", r"/compile"),
    ("build", r"/builds/\w+"),
    ("packages", r"/builds/\w+/packages"),
    ("cancel", r"/sessions/\w+/turns/\w+/cancel"),
    ("events", r"/sessions/\w+/turns/\w+/events(?:\?.*)?"),
    ("approvals", r"/sessions/\w+/turns/\w+/approvals"),
    ("approval", r"/sessions/\w+/turns/\w+/approvals/\w+"),
    ("turn", r"/sessions/\w+/turns/\w+"),
    ("session", r"/sessions/\w+"),
    ("tool", r"/tools/\w+"),
)
_CATALOG = {
    "profiles": [{"name": "foundation:base"}],
    "tools": [{"name": "bash", "description": "", "input_schema": {}}],
}


@dataclass
class Request:
    """One request of the control plane, and the connection that it came by."""

    runtime: "HostileRuntime"
    method: str
    path: str
    body: Any
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    wants_events: bool = False  # its answer is to be a stream

    @property
    def session_id(self) -> str:
        return self.path.split("/")[2]

    @property
    def turn_id(self) -> str:
        return self.path.split("/")[4]

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def reply(self, status: int, body: Any = None) -> None:
        raw = b"" if body is None else json.dumps(body).encode()
        await self.say(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(raw)) + raw)

    async def hang(self) -> None:
        """Until the control plane hangs up."""
        while await self.reader.read(65536):
            pass


Behaviour = Callable[[Request], Awaitable[None]]


@dataclass
class HostileRuntime:
    runtime_id: str
    answers: dict[tuple[str, str], Behaviour]
    gateway_path: Callable[[], str]
    connections: set[asyncio.StreamWriter] = field(default_factory=set)
    seen: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while (head := await reader.readuntil(b"\r\n\r\n")) is not None:
                method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                raw = await reader.readexactly(int(length[1])) if length else b""
                wants_events = b"text/event-stream" in head
                await self._answer(
                    Request(self, method, path, json.loads(raw or b"null"), reader, writer, wants_events)
                )
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, request: Request) -> None:
        kind = next(name for name, pattern in _KINDS if re.fullmatch(pattern, request.path))
        self.seen.append(f"{request.method} {kind}")
        behaviour = self.answers.get((request.method, kind))
        if behaviour is not None:
            await behaviour(request)
        elif kind == "session" and request.method == "PUT":
            await request.reply(200, {"plan": {"a": 1}, "model": "m"})
        elif kind == "catalog":
            await request.reply(200, _CATALOG)
        elif kind == "health":
            await request.reply(200, {})
        elif kind == "turn":
            await complete(request)
        else:
            await request.reply(204)

    async def gateway(
        self, method: str, path: str, body: Any, headers: dict[str, str] | None = None
    ) -> httpx2.Response:
        """Ask the control plane for something. `body` is bytes, or what becomes JSON."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        transport = httpx2.AsyncHTTPTransport(uds=self.gateway_path())
        async with httpx2.AsyncClient(transport=transport, timeout=90) as client:
            return await client.request(method, "http://gateway" + path, content=raw, headers=headers or {})

    async def hand_over(self, request: Request, **body: Any) -> httpx2.Response:
        """A checkpoint of the request's turn; `body` over one that is in order."""
        made = {"session_id": request.session_id, "request_id": request.turn_id, "status": "completed", "base": 0}
        return await self.gateway("POST", f"/turns/{request.turn_id}/checkpoint", made | body)


async def complete(request: Request) -> None:
    """Hand the turn over and say so, as an honest runtime does."""
    answer = await request.runtime.hand_over(request, response="done")
    if answer.status_code == 200:
        await request.reply(200, answer.json()["result"])
    else:
        await request.reply(500, answer.json())


class HostileFleet:
    """A launcher of hostile runtimes: `answers` of all of them, `runtimes` by id."""

    def __init__(self, folder: Any) -> None:
        self._folder = folder
        self.answers: dict[tuple[str, str], Behaviour] = {}
        self.runtimes: dict[str, HostileRuntime] = {}
        self._gateway_path: Callable[[Any], str] = lambda _: ""

    def make_launcher(self, _settings: Any, gateway_path: Callable[[Any], str]) -> MemoryLauncher:
        self._gateway_path = gateway_path
        return MemoryLauncher(self._serve)

    async def _serve(self, runtime_id: Any) -> tuple[Address, Callable[[], Awaitable[None]]]:
        runtime = HostileRuntime(runtime_id, self.answers, lambda: self._gateway_path(runtime_id))
        self.runtimes[runtime_id] = runtime
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(runtime.serve(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        path = str(self._folder / f"r{len(self.runtimes)}")
        server = await asyncio.start_unix_server(accept, path)

        async def stop() -> None:
            server.close()
            for writer in list(runtime.connections):
                writer.transport.abort()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        return Address(path=path), stop


@dataclass
class Attacked:
    """A control plane whose every runtime is hostile, and callers of it."""

    app: Application
    fleet: HostileFleet
    key: str
    operator_key: str

    def client(self, key: str | None = None) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=self.app.asgi),
            base_url="http://server",
            headers={"X-API-Key": key or self.key},
            timeout=60,
        )

    async def session(self) -> str:
        async with self.client() as client:
            answer = await client.post("/v1/sessions", json={"profile": "foundation:base"})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["session_id"])

    async def execute(self, session_id: str, *, stream: bool = False) -> httpx2.Response:
        async with self.client() as client:
            return await client.post(f"/v1/sessions/{session_id}/execute", json={"prompt": "hi", "stream": stream})

    async def left(self) -> dict[str, Any]:
        """What is held for turns that have ended: nothing, when all is well."""
        turns, endings = self.app.services.turns, self.app.services.endings
        held = await self.app.services.admission.backend.snapshot()
        return {
            "live": len(turns.live),
            "tallies": len(endings._settlement._tallies),
            "watchers": len(endings._tasks),
            "tokens": held.get("tokens_per_day", 0),
        }


NOTHING = {"live": 0, "tallies": 0, "watchers": 0, "tokens": 0}


@contextlib.asynccontextmanager
async def attacked(folder: Path, *, warm: int = 1, **sections: Any) -> AsyncIterator[Attacked]:
    """A whole control plane in `folder`, started; its data, its gateway's sockets and its runtimes' are in there.

    `sections` are further settings.
    """
    settings = load(
        None,
        {},
        server={"data_dir": folder / "data"} | sections.pop("server", {}),
        sandbox={"warm": warm, "mode": "none"} | sections.pop("sandbox", {}),
        rate_limiting={"default": {"requests_per_minute": 100_000}},
        **sections,
    )
    data = folder / "data"
    if not data.exists():  # a second one goes on from what the first one left
        data.mkdir()
        await migrated_in(data)
    fleet = HostileFleet(folder)
    app = Application(settings, pepper=b"a pepper that is only for tests!", make_launcher=fleet.make_launcher)
    try:
        first = await ensure_first_keys(app.services.database, data, app.services.pepper, app.services.clock)
        if first is None:
            first = FirstKeys(**json.loads((data / FILE_NAME).read_text()))
        await app.start()
        yield Attacked(app, fleet, first.tenant_key, first.operator_key)
    finally:
        await app.stop()

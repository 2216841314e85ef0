"""A runtime that does nothing: it answers the protocol at once, and ends each turn with one token and a checkpoint.

It takes the place of sandboxes where hundreds of them would not fit the machine, so that what grows in the control plane can
be seen. Its checkpoint is handed over in this process, past the gateway's socket; what real runtimes cost is measured
elsewhere (`first_token`, `claims`, `memory`).
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from pathlib import Path

from amplifier_api_server.control_plane.pods.launcher import Address
from amplifier_api_server.control_plane.pods.memory import Stop
from amplifier_api_server.control_plane.services import Services
from amplifier_api_server.runtime import protocol
from amplifier_api_server.runtime.http_server import HttpServer, Request, Response
from amplifier_api_server.tenants.ids import RuntimeId

_PLAN = {"session": {"loop": "loop-streaming"}, "tools": ["bash", "filesystem", "todo"], "instruction": "x" * 1500}


class StandIn:
    """What one runtime answers."""

    def __init__(self, runtime_id: RuntimeId, services: Services) -> None:
        self._runtime_id = runtime_id
        self._services = services
        self._lengths: dict[str, int] = {}

    async def answer(self, request: Request) -> Response:
        match request.path.strip("/").split("/"):
            case ["health"]:
                return _json(protocol.Health())
            case ["catalog"]:
                profile = protocol.ProfileSpec(name="foundation:base")
                return _json(protocol.Catalog(profiles=[profile], tools=[]))
            case ["sessions", _] if request.method == "PUT":
                return _json(protocol.OpenedSession(plan=_PLAN, model="stand-in"))
            case ["sessions", session_id, "turns", request_id] if request.method == "POST":
                return await self._turn(session_id, request_id, streams="event-stream" in request.headers["accept"])
            case _:
                return Response(204)

    async def _turn(self, session_id: str, request_id: str, *, streams: bool) -> Response:
        if streams:
            return Response(200, content_type="text/event-stream", stream=self._events(session_id, request_id))
        return _json((await self._checkpoint(session_id, request_id)).result)

    async def _events(self, session_id: str, request_id: str) -> AsyncGenerator[bytes, None]:
        yield protocol.sse(request_id, 1, "token", '{"content":"done"}')
        ended = await self._checkpoint(session_id, request_id)
        yield protocol.sse(request_id, 2, ended.event, protocol.Body.model_dump_json(ended.result))

    async def _checkpoint(self, session_id: str, request_id: str) -> protocol.CheckpointAnswer:
        base = self._lengths.get(session_id, 0)
        messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "done"}]
        self._lengths[session_id] = base + len(messages)
        body = protocol.Checkpoint(
            session_id=session_id,
            request_id=request_id,
            status=protocol.TurnStatus.COMPLETED,
            base=base,
            messages=messages,
            response="done",
            events=protocol.sse(request_id, 1, "token", '{"content":"done"}').decode(),
            last_event=1,
        )
        return await self._services.endings.checkpoint(self._runtime_id, body)


async def serve(runtime_id: RuntimeId, folder: Path, services: Services) -> tuple[Address, Stop]:
    """Listen for one runtime, on a socket in `folder`."""
    path = folder / f"{runtime_id[-8:]}.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(64)
    server = HttpServer(StandIn(runtime_id, services).answer)
    await server.listen(listener)

    async def stop() -> None:
        await server.close(0.0)
        path.unlink(missing_ok=True)

    return Address(path=str(path)), stop


def _json(body: protocol.Body) -> Response:
    return Response(200, body.model_dump_json().encode())

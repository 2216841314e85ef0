"""One Unix socket for each runtime: which socket a request came through is who sent it.

Owns the sockets and their connections. The folder is the server's alone (0700); a socket in it is open to all (0666),
so that a sandbox of another uid can connect by the O_PATH descriptor that it was handed, and by nothing else.
Invariant: after `close` returns no connection of that runtime exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Protocol

import structlog

from amplifier_api_server.control_plane.connections import Bounds, protocol_config
from amplifier_api_server.control_plane.model_gateway.acceptor import Acceptor
from amplifier_api_server.control_plane.model_gateway.answers import Receive, Scope, Send
from amplifier_api_server.tenants.ids import RuntimeId

log = structlog.get_logger(__name__)

_BACKLOG = 256  # past it a connect fails at once (EAGAIN), which clients take for an error
_CLOSE_SECONDS = 5.0
_MAX_PATH_BYTES = 100  # sun_path holds 108 bytes on Linux, 104 elsewhere (unix(7))


class Application(Protocol):
    """What answers on the sockets."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def forget(self, runtime_id: RuntimeId) -> None:
        """The runtime is gone."""


class GatewayListeners:
    """Opens and closes runtimes' sockets; every request reaches `app` with `scope["state"]["runtime_id"]`."""

    def __init__(self, folder: Path, app: Application, *, bounds: Bounds | None = None) -> None:
        self._folder = folder
        self._app = app
        self._config = protocol_config(app)
        self._bounds = bounds or Bounds()
        self._listeners: dict[RuntimeId, tuple[Path, Acceptor]] = {}

    async def open(self, runtime_id: RuntimeId) -> str:
        """Listen for this runtime and say where. Opening one that is open gives the same path. Raises OSError."""
        if (path_known := self.path(runtime_id)) is not None:
            return path_known
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder.chmod(0o700)
        path = self._folder / f"{runtime_id}.sock"
        acceptor = Acceptor(_listen(path), self._config, {"runtime_id": runtime_id}, self._bounds)
        self._listeners[runtime_id] = (path, acceptor)
        return str(path)

    def path(self, runtime_id: RuntimeId) -> str | None:
        """Where this runtime's socket is; None when it has none."""
        listener = self._listeners.get(runtime_id)
        return str(listener[0]) if listener else None

    async def close(self, runtime_id: RuntimeId) -> None:
        """Stop listening and cut every connection off. Nothing to do when it is not open."""
        if (listener := self._listeners.pop(runtime_id, None)) is None:
            return
        path, acceptor = listener
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        if not await acceptor.close(_CLOSE_SECONDS):
            log.warning("gateway:request_outlived_its_runtime", runtime_id=runtime_id)
        self._app.forget(runtime_id)

    async def close_all(self) -> None:
        """Close every listener, all at once."""
        await asyncio.gather(*(self.close(runtime_id) for runtime_id in list(self._listeners)))


def _listen(path: Path) -> socket.socket:
    """A listening socket at `path`, however long that is: a long one is bound by way of its folder's descriptor."""
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if len(os.fsencode(path)) <= _MAX_PATH_BYTES:
            listening.bind(str(path))
        else:
            folder = os.open(path.parent, os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                listening.bind(f"/proc/self/fd/{folder}/{path.name}")
            finally:
                os.close(folder)
        path.chmod(0o666)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening

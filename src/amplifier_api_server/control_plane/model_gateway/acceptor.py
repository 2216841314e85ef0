"""Accepts connections on one listening socket, and ends them all.

Owns the listening socket, its connections and their requests. asyncio's own server forgets a connection that it was
just accepting when it is closed, and its peer then waits for ever; so this is not built on it. Invariant: after `close`
returns no connection is open.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import structlog
from uvicorn.config import Config

from amplifier_api_server.control_plane.connections import Bounds, Connections, SandboxProtocol

log = structlog.get_logger(__name__)

_ACCEPTED_AT_ONCE = 64
_PAUSE_SECONDS = 0.5  # when the process has no descriptor left


class Acceptor:
    """Serves `config`'s application on `listening`, which is its own from then on. `state` becomes `scope["state"]`."""

    def __init__(self, listening: socket.socket, config: Config, state: dict[str, Any], bounds: Bounds) -> None:
        self._listening = listening
        self._config = config
        self._state = state
        self._bounds = bounds
        self._connections = Connections()
        self._accepting: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self._loop.add_reader(listening.fileno(), self._accept)

    async def close(self, timeout_seconds: float) -> bool:
        """Stop listening, cut every connection off. False: a request was cancelled because it did not end by itself."""
        self._loop.remove_reader(self._listening.fileno())
        if self._pause is not None:
            self._pause.cancel()
        self._listening.close()
        tasks = [*self._connections.close(), *self._accepting]
        if not tasks:
            return True
        _, unfinished = await asyncio.wait(tasks, timeout=timeout_seconds)
        for task in unfinished:
            task.cancel()
        return not unfinished

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("gateway:cannot_accept", error=str(error))
                self._loop.remove_reader(self._listening.fileno())
                self._pause = self._loop.call_later(_PAUSE_SECONDS, self._resume)
                return
            if max(len(self._connections.connections), len(self._accepting)) >= self._bounds.connections:
                connection.close()
                continue
            task = self._loop.create_task(self._connect(connection))
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)

    def _resume(self) -> None:
        self._loop.add_reader(self._listening.fileno(), self._accept)

    async def _connect(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except Exception:
            log.exception("gateway:cannot_accept")
            connection.close()

    def _protocol(self) -> SandboxProtocol:
        return SandboxProtocol(self._config, self._connections, self._state, self._bounds)

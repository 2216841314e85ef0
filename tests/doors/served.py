"""A whole control plane with scripted runtimes behind a real listener, as the server process has it: every door is open on it.

`listening` is for tests that are coroutines; `in_a_thread` for clients that block.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amplifier_api_server.control_plane import server as process
from tests.hostile_runtime import Attacked, attacked

_SECONDS = 60.0


@dataclass
class Served:
    """`plane` at `http://127.0.0.1:{port}`."""

    plane: Attacked
    port: int
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def socket_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What `work` gives, in the server's own loop; for callers in another thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(_SECONDS)


@contextlib.asynccontextmanager
async def listening(folder: Path, **sections: Any) -> AsyncIterator[Served]:
    """`attacked`, with a socket."""
    async with attacked(folder, **sections) as plane:
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            server = process._Server(process._uvicorn_config(plane.app, plane.app.services.settings))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                yield Served(plane, listener.getsockname()[1], asyncio.get_running_loop())
            finally:
                server.should_exit = True
                await serving


@contextlib.contextmanager
def in_a_thread(folder: Path, **sections: Any) -> Iterator[Served]:
    """`listening`, in a loop of its own."""
    found: list[Served] = []
    ready, leaving = threading.Event(), threading.Event()

    async def serve() -> None:
        async with listening(folder, **sections) as served:
            found.append(served)
            ready.set()
            await asyncio.to_thread(leaving.wait)

    with ThreadPoolExecutor(1, "served") as pool:
        serving = pool.submit(lambda: asyncio.run(serve()))
        serving.add_done_callback(lambda _: ready.set())
        try:
            ready.wait(_SECONDS)
            if not found:
                serving.result(0)
            yield found[0]
        finally:
            leaving.set()
            serving.result(_SECONDS)

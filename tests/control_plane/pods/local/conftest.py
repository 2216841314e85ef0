"""A host of local sandboxes in a folder of its own, ended and removed after each test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from amplifier_api_server.control_plane import settings
from amplifier_api_server.control_plane.pods import sandbox_check
from amplifier_api_server.control_plane.pods.local import LocalLauncher
from amplifier_api_server.control_plane.pods.sockets import socket_dir
from amplifier_api_server.tenants.ids import RuntimeId, SessionId, new_runtime_id

STAND_IN = (Path(__file__).parent / "stand_in_runtime.py").read_text()
_works: dict[str, bool] = {}


async def ask(path: str, method: str, target: str, body: str = "", *, timeout_seconds: float = 60) -> dict:
    async with asyncio.timeout(timeout_seconds):
        reader, writer = await asyncio.open_unix_connection(path)
        encoded = body.encode()
        head = f"{method} {target} HTTP/1.1\r\nHost: runtime\r\nConnection: close\r\nContent-Length: {len(encoded)}\r\n\r\n"
        try:
            writer.write(head.encode() + encoded)
            answer = await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    return json.loads(answer.split(b"\r\n\r\n", 1)[1])


@dataclass
class Done:
    """How a script in a sandbox ended."""

    status: int
    output: str
    error: str


class Host:
    """Launchers over one data folder, one after the other as servers would be, and scripts in their sandboxes."""

    keeps_files = True

    def __init__(self, data_dir: Path, mode: str = "bubblewrap") -> None:
        self.data_dir = data_dir
        self.mode = mode
        self.gateways: dict[RuntimeId, socket.socket] = {}
        self._launchers: list[LocalLauncher] = []
        self.launcher = self.server()

    def server(self, *, program: str = STAND_IN, **overrides: object) -> LocalLauncher:
        """A launcher as a server starting now would have; the earlier one is left as it is."""
        chosen = settings.Sandbox.model_validate({"mode": self.mode, "min_free_disk": 0, **overrides})
        self.launcher = LocalLauncher(chosen, self.data_dir, self.gateway_path, program=program)
        self._launchers.append(self.launcher)
        return self.launcher

    def gateway_path(self, runtime_id: RuntimeId) -> str:
        path = str(socket_dir(self.data_dir) / f"{runtime_id}.gateway")
        if runtime_id not in self.gateways:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(path)
            listener.listen()
            self.gateways[runtime_id] = listener
        return path

    async def started(self) -> RuntimeId:
        runtime_id = new_runtime_id()
        await self.launcher.start(runtime_id)
        return runtime_id

    async def run(self, runtime_id: RuntimeId, how: str, script: str) -> Done:
        address = self.launcher.address(runtime_id)
        assert address is not None
        return Done(**await ask(str(address.path), "POST", f"/{how}", script))

    async def shell(self, runtime_id: RuntimeId, script: str) -> Done:
        return await self.run(runtime_id, "shell", script)

    async def python(self, runtime_id: RuntimeId, script: str) -> Done:
        return await self.run(runtime_id, "python", script)

    async def module(self, runtime_id: RuntimeId, script: str) -> Done:
        """Run it in the runtime's own process, as a collection's module would."""
        return await self.run(runtime_id, "exec", script)

    def sandbox(self, runtime_id: RuntimeId):
        return self.launcher._sandboxes[runtime_id]

    async def kill(self, runtime_id: RuntimeId) -> None:
        os.kill(self.sandbox(runtime_id).main.pid, signal.SIGKILL)

    async def answers(self, runtime_id: RuntimeId) -> bool:
        return (await ask(str(self.launcher.address(runtime_id).path), "GET", "/health"))["protocol_version"] >= 1

    def inside(self, runtime_id: RuntimeId, session_id: SessionId) -> str:
        """The session's folder as the runtime sees it."""
        if self.mode == "bubblewrap":
            return f"/workspace/{session_id}"
        return str(self.data_dir / "runtimes" / runtime_id / "workspace" / session_id)

    async def write(self, runtime_id: RuntimeId, session_id: SessionId, name: str, text: str) -> None:
        done = await self.shell(runtime_id, f"printf %s '{text}' > {self.inside(runtime_id, session_id)}/{name}")
        assert done.status == 0, done.error

    async def read(self, runtime_id: RuntimeId, session_id: SessionId, name: str) -> str | None:
        done = await self.shell(runtime_id, f"cat {self.inside(runtime_id, session_id)}/{name}")
        return done.output if done.status == 0 else None

    async def close(self) -> None:
        for launcher in self._launchers:
            await launcher.close()
        for gateway in self.gateways.values():
            gateway.close()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Short, so that sockets' paths fit: pytest's own temporary folders are too deep."""
    folder = Path(tempfile.mkdtemp(prefix="amp-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


async def require_sandboxes() -> None:
    if "works" not in _works:
        report = await sandbox_check.check(settings.Sandbox())
        _works["works"] = report.works
        if not report.works:
            print("NO SANDBOXES HERE, SO NOTHING OF THEM IS TESTED:", *report.problems, sep="\n  ")
    if not _works["works"]:
        pytest.skip("this machine can't make sandboxes; `amplifier-api-server doctor` says why")


@pytest.fixture
async def host(data_dir: Path) -> AsyncIterator[Host]:
    await require_sandboxes()
    one = Host(data_dir)
    yield one
    await one.close()

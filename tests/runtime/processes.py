"""A runtime as the launcher starts it: a process of its own, with descriptors handed in."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.runtime.conftest import Driver
from tests.runtime.fake_gateway import FakeGateway


class Process:
    def __init__(self, driver: Driver, process: subprocess.Popen[bytes]) -> None:
        self.driver = driver
        self.process = process

    async def ended(self, within_seconds: float) -> int:
        async with asyncio.timeout(within_seconds):
            while (status := self.process.poll()) is None:
                await asyncio.sleep(0.01)
        return status

    def descendants(self) -> list[int]:
        """Every living process below it, nearest first."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                except OSError:
                    continue
                if state != "Z":
                    children.setdefault(int(parent), []).append(int(entry.name))
        found = [self.process.pid]
        for pid in found:
            found += children.get(pid, [])
        return found[1:]

    def own(self) -> list[int]:
        """The sessions' own processes."""
        return [pid for pid in self.descendants() if _words(pid)[1:3] == ["-m", "amplifier_api_server.runtime"]]


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


@contextmanager
def started_runtime(folder: Path, gateway: FakeGateway, limits: str = "") -> Iterator[Process]:
    """`limits` are lines of Python that run in it first."""
    workspace, installed = folder / "w", folder / "c"
    workspace.mkdir()
    installed.mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "r"))
    listener.listen(16)
    gateway_fd = os.open(gateway.path, os.O_PATH)
    environment = {
        "PATH": os.environ["PATH"],
        "AMPLIFIER_LISTEN_FD": str(listener.fileno()),
        "AMPLIFIER_GATEWAY_FD": str(gateway_fd),
        "AMPLIFIER_WORKSPACE": str(workspace),
        "AMPLIFIER_COLLECTIONS": str(installed),
    }
    program = f"import runpy, resource\n{limits}\n"
    program += "runpy.run_module('amplifier_api_server.runtime', run_name='__main__', alter_sys=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        pass_fds=(listener.fileno(), gateway_fd),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    listener.close()
    os.close(gateway_fd)
    try:
        yield Process(Driver(str(folder / "r"), gateway, workspace, installed), process)
    finally:
        process.kill()
        process.communicate()

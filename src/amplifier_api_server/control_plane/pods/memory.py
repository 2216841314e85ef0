"""Runtimes that are tasks of this process: for tests of what is built on launchers, and for measuring it at a scale that
processes would not allow.

It isolates nothing and says so: what it "starts" is whatever `serve` listens with. Sessions' folders and collections are
noted, not kept. It can be told to fail in the ways a real one does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from amplifier_api_server.control_plane.pods.launcher import Address, LaunchError, Observed
from amplifier_api_server.control_plane.pods.trees import Size
from amplifier_api_server.tenants.ids import RuntimeId, SessionId, TenantId

Stop = Callable[[], Awaitable[None]]
Serve = Callable[[RuntimeId], Awaitable[tuple[Address, Stop]]]


@dataclass(slots=True)
class _Entry:
    address: Address
    stop: Stop
    running: bool = True
    reason: str = ""
    sessions: set[SessionId] = field(default_factory=set)
    collections: set[str] = field(default_factory=set)


class MemoryLauncher:
    """The launcher protocol over tasks."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._entries: dict[RuntimeId, _Entry] = {}
        self._wakes: list[Callable[[RuntimeId], None]] = []
        self._starting: dict[RuntimeId, asyncio.Lock] = {}
        self.start_error: str = ""  # when set, starts fail with it
        self.unseen: set[RuntimeId] = set()  # what `list` can't tell about now

    async def start(self, runtime_id: RuntimeId) -> None:
        async with self._starting.setdefault(runtime_id, asyncio.Lock()):
            if self.start_error:
                raise LaunchError(self.start_error)
            if runtime_id not in self._entries:
                address, stop = await self._serve(runtime_id)
                self._entries[runtime_id] = _Entry(address, stop)

    async def stop(self, runtime_id: RuntimeId, reason: str, *, grace_seconds: float = 2.0) -> None:
        entry = self._entries.pop(runtime_id, None)
        self._starting.pop(runtime_id, None)
        if entry is not None and entry.running:
            async with asyncio.timeout(grace_seconds + 1):
                await entry.stop()

    async def list(self) -> list[Observed]:
        return [
            Observed(one, None if one in self.unseen else entry.running, entry.address, entry.reason)
            for one, entry in self._entries.items()
        ]

    def address(self, runtime_id: RuntimeId) -> Address | None:
        entry = self._entries.get(runtime_id)
        return entry.address if entry is not None and entry.running else None

    def on_exit(self, wake: Callable[[RuntimeId], None]) -> None:
        self._wakes.append(wake)

    async def attach(self, runtime_id: RuntimeId, tenant_id: TenantId, session_id: SessionId) -> None:
        entry = self._entries.get(runtime_id)
        if entry is None or not entry.running:
            raise LaunchError(f"{runtime_id} is not running")
        entry.sessions.add(session_id)

    async def detach(self, runtime_id: RuntimeId, tenant_id: TenantId, session_id: SessionId) -> None:
        entry = self._entries.get(runtime_id)
        if entry is not None:
            entry.sessions.discard(session_id)

    async def copy(self, tenant_id: TenantId, source: SessionId, target: SessionId) -> None:
        if any(source in entry.sessions for entry in self._entries.values()):
            raise LaunchError(f"{source} is attached")

    async def size(self, tenant_id: TenantId, session_id: SessionId) -> Size | None:
        return None if any(session_id in entry.sessions for entry in self._entries.values()) else Size()

    def held(self, runtime_id: RuntimeId) -> Size | None:
        return Size()

    def on_growth(self, is_over: Callable[[RuntimeId, int], bool]) -> None:
        """Nothing grows here."""

    async def forget(self, tenant_id: TenantId, session_id: SessionId) -> None:
        for entry in self._entries.values():
            entry.sessions.discard(session_id)

    async def install(self, runtime_id: RuntimeId, content_hash: str, folder: str) -> None:
        entry = self._entries.get(runtime_id)
        if entry is None:
            raise LaunchError(f"{runtime_id} is not running")
        entry.collections.add(content_hash)

    async def crash(self, runtime_id: RuntimeId, reason: str = "killed") -> None:
        """Have it end by itself, as a killed process would."""
        entry = self._entries[runtime_id]
        entry.running, entry.reason = False, reason
        await entry.stop()
        for wake in self._wakes:
            wake(runtime_id)

    async def close(self) -> None:
        for runtime_id in list(self._entries):
            await self.stop(runtime_id, "closed")

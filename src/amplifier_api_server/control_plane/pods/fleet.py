"""The fleet: rows of runtimes and the processes behind them, brought together.

Owns starting, claiming and ending. Refuses to decide when (that is `plan`, and whoever needs a runtime) and to know what a
session is. Invariants: the row is written before the process is started; a claim is a compare-and-swap on the row, so a
runtime belongs to one tenant, for good; a runtime's end is told to `on_gone` once, after its row says so.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Protocol
from weakref import WeakValueDictionary

import structlog

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.pods.calls import Calls, RuntimeRefused
from amplifier_api_server.control_plane.pods.launcher import Address, Launcher, LaunchError
from amplifier_api_server.control_plane.readiness import Backoff, Readiness, told
from amplifier_api_server.control_plane.router.errors import RouterError
from amplifier_api_server.control_plane.router.pool import Pool
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.runtime import protocol
from amplifier_api_server.tenants.errors import Refused, Unavailable
from amplifier_api_server.tenants.ids import MemberId, RuntimeId, SessionId, TenantId, new_runtime_id
from amplifier_api_server.tenants.lifecycle import RuntimeStatus
from amplifier_api_server.tenants.repository import runtimes

log = structlog.get_logger(__name__)

# More starts at once only take the processors from each other: a start is CPU time, 0.2 s of it.
_STARTS_AT_ONCE = 2 * (os.cpu_count() or 1)
_CLAIM_TRIES = 4  # a warm runtime may die, or be taken by somebody else, while it is being claimed
_MAX_LOAD_SECONDS = 22.0  # of a session's modules: below the 30 s that the opening of a session is waited for
_MAX_SILENCE_SECONDS = 15.0  # of a session's own process; less where no call of a tool may take as long
_FIRST_PAUSE_SECONDS = 1.0  # after a start that failed
_LONGEST_PAUSE_SECONDS = 60.0
_TOO_MANY_FAILED = 3
_DID_NOT_START = "did not start"
_NO_START = "no sandbox can be started now; the server's operator is told why. Try again later"
_NOT_GONE = tuple(status for status in RuntimeStatus if status is not RuntimeStatus.GONE)


class Gateways(Protocol):
    """The sockets that runtimes reach the control plane by."""

    async def open(self, runtime_id: RuntimeId) -> str: ...

    async def close(self, runtime_id: RuntimeId) -> None: ...


class Places(Protocol):
    """The tenant's limit on sandboxes."""

    async def sandbox(self, principal: Principal, runtime_id: RuntimeId) -> object: ...

    async def release_sandbox(self, tenant_id: TenantId, runtime_id: RuntimeId) -> None: ...


@dataclass(frozen=True, slots=True)
class Need:
    """What a runtime is needed for."""

    principal: Principal
    collections_key: str = ""
    folders: Mapping[str, str] | None = None  # content hash -> the unpacked folder, of every collection in the key
    avoid: frozenset[RuntimeId] = frozenset()  # they said that they have no room now

    @property
    def tenant_id(self) -> TenantId:
        return self.principal.tenant_id


class Fleet:
    """Every runtime of this control plane."""

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        launcher: Launcher,
        gateways: Gateways,
        places: Places,
        pool: Pool,
        clock: Clock,
        telemetry: Telemetry,
        readiness: Readiness,
    ) -> None:
        self.settings = settings
        self.launcher = launcher
        self.calls = Calls(pool)
        self._database = database
        self._gateways = gateways
        self._places = places
        self._pool = pool
        self._clock = clock
        self._telemetry = telemetry
        self._readiness = readiness
        self._failed_starts = 0  # one after the other
        self.starts = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        self._starting: dict[RuntimeId, asyncio.Task[None]] = {}
        self._start_places = asyncio.Semaphore(_STARTS_AT_ONCE)
        self._promised: set[RuntimeId] = set()  # warm or starting, and somebody here is about to claim it
        self._ending: dict[RuntimeId, asyncio.Task[None]] = {}
        self._locks: WeakValueDictionary[TenantId, asyncio.Lock] = WeakValueDictionary()
        self.tenants: dict[RuntimeId, TenantId] = {}  # of claimed ones; the gateway asks this on every call
        self.sessions: dict[RuntimeId, dict[SessionId, MemberId]] = {}  # of claimed ones; kept by Residency
        self._private: dict[RuntimeId, TenantId] = {}  # claimed for one piece of work; they host no session
        self.default_provider: Callable[[], str] = lambda: "provider-openai"
        self.on_gone: Callable[[RuntimeId, str], Awaitable[None]] | None = None
        self.wake: Callable[[], None] = lambda: None
        self.is_closing = False
        self._start_seconds = settings.sandbox.start_timeout.total_seconds() + 5

    def address(self, runtime_id: RuntimeId) -> Address | None:
        return self.launcher.address(runtime_id)

    def owners(self) -> Mapping[RuntimeId, TenantId]:
        """Whose each claimed runtime is, those for one piece of work included."""
        return {**self.tenants, **self._private}

    # Starting.

    async def add(self) -> RuntimeId:
        """Write the row of one more runtime."""
        runtime_id = new_runtime_id()
        async with self._database.write() as db:
            await runtimes.add_of_all_tenants(db, runtime_id, self._clock.now())
        return runtime_id

    async def start(self, runtime_id: RuntimeId) -> None:
        """Start it and mark it warm. Callers at the same time share one start. Raises LaunchError; its row is gone then."""
        task = self._starting.get(runtime_id)
        if task is None:
            task = asyncio.create_task(self._start(runtime_id))
            self._starting[runtime_id] = task
            task.add_done_callback(lambda _: self._starting.pop(runtime_id, None))
        await asyncio.shield(task)

    async def _start(self, runtime_id: RuntimeId) -> None:
        begun = monotonic()
        try:
            await self._gateways.open(runtime_id)
            async with self._start_places, asyncio.timeout(self._start_seconds):
                await self.launcher.start(runtime_id)
        except (LaunchError, OSError, TimeoutError) as error:
            self._start_failed(error)
            await self.end(runtime_id, f"{_DID_NOT_START}: {error}")
            raise LaunchError(str(error) or "the sandbox did not start in time") from error
        self._failed_starts = 0
        self.starts.worked()
        self._readiness.works("sandboxes")
        async with self._database.write() as db:
            await runtimes.change_of_all_tenants(
                db, runtime_id, expected=[RuntimeStatus.STARTING], status=RuntimeStatus.WARM.value
            )
        self._telemetry.starts.labels("process").observe(monotonic() - begun)
        log.info("runtime warm", runtime_id=runtime_id, seconds=round(monotonic() - begun, 3))

    def _start_failed(self, error: Exception) -> None:
        """Leave starting alone for a while. One failure may be the moment's; the server is not ready for several."""
        self._failed_starts += 1
        self.starts.failed()
        self._readiness.failing("sandboxes", told(error), is_blocking=self._failed_starts >= _TOO_MANY_FAILED)

    # Claiming.

    async def acquire(self, need: Need) -> RuntimeId:
        """A runtime of the tenant with this set of collections and room for a session: one that it has, or a claimed one.

        Raises Refused (the tenant's sandboxes) and Unavailable (none can be had now).
        """
        if self.is_closing:
            raise Unavailable("the server is stopping; try again in a moment", code="stopping", retry_after_seconds=5)
        lock = self._locks.get(need.tenant_id)
        if lock is None:
            lock = self._locks[need.tenant_id] = asyncio.Lock()
        async with lock:
            found = await self._with_room(need)
            if found is not None:
                return found
            begun = monotonic()
            for attempt in range(_CLAIM_TRIES):
                async with self.spare() as (runtime_id, kind):
                    try:
                        if await self._claim(runtime_id, need):
                            self._telemetry.starts.labels(kind).observe(monotonic() - begun)
                            return runtime_id
                    except (RouterError, RuntimeRefused, LaunchError) as error:
                        log.warning("claim failed", runtime_id=runtime_id, attempt=attempt, error=str(error))
                        await self.end(runtime_id, "it failed while it was claimed")
                    finally:
                        self.wake()
            raise Unavailable("no sandbox could be had; try again", code="no_runtime", retry_after_seconds=2)

    async def _with_room(self, need: Need) -> RuntimeId | None:
        async with self._database.read() as db:
            rows = await runtimes.claimed(db, need.tenant_id)
        for row in rows:
            runtime_id = RuntimeId(row.id)
            if (
                row.collections_key == need.collections_key
                and self.tenants.get(runtime_id) == need.tenant_id
                and len(self.sessions.get(runtime_id, {})) < self.settings.sandbox.max_sessions_per_runtime
                and runtime_id not in need.avoid
                and self.launcher.address(runtime_id) is not None
            ):
                return runtime_id
        return None

    @asynccontextmanager
    async def spare(self) -> AsyncIterator[tuple[RuntimeId, str]]:
        """A warm runtime that nobody else here claims meanwhile, started if there is none; and which of the two it was.

        Raises Unavailable.
        """
        runtime_id, kind = await self._choose()
        self._promised.add(runtime_id)
        try:
            if kind == "cold":
                await self.start(runtime_id)
            yield runtime_id, kind
        except LaunchError as error:
            raise Unavailable(_NO_START, code="no_runtime", retry_after_seconds=5) from error
        finally:
            self._promised.discard(runtime_id)

    async def _choose(self) -> tuple[RuntimeId, str]:
        async with self._database.read() as db:
            warm = await runtimes.warm_of_all_tenants(db)
            rows = await runtimes.count_wanted_of_all_tenants(db)
        free = next((RuntimeId(one) for one in warm if one not in self._promised), None)
        if free is not None:
            return free, "warm"
        # One that is on its way already comes sooner than a new one.
        coming = next((one for one in self._starting if one not in self._promised), None)
        if coming is not None:
            return coming, "cold"
        if rows >= self.settings.sandbox.max_runtimes:
            raise Unavailable(
                "every sandbox of this server is taken; try again", code="no_runtime", retry_after_seconds=5
            )
        if (seconds := self.starts.wait_seconds) > 0:  # whoever asks meanwhile would start what fails again
            raise Unavailable(_NO_START, code="no_runtime", retry_after_seconds=math.ceil(seconds))
        return await self.add(), "cold"

    async def _claim(self, runtime_id: RuntimeId, need: Need) -> bool:
        await self._take_place(runtime_id, need)
        async with self._database.write() as db:
            won = await runtimes.claim(db, need.tenant_id, runtime_id, need.collections_key, self._clock.now())
        if not won:
            await self._places.release_sandbox(need.tenant_id, runtime_id)
            return False
        self.tenants[runtime_id] = need.tenant_id
        self.sessions[runtime_id] = {}
        address = self.launcher.address(runtime_id)
        if address is None:
            raise LaunchError("the runtime ended as it was claimed")
        for content_hash, folder in (need.folders or {}).items():
            await self.launcher.install(runtime_id, content_hash, folder)
        await self.calls.claim(address, self._identity(runtime_id, need.tenant_id))
        log.info("runtime claimed", runtime_id=runtime_id, tenant_id=need.tenant_id)
        return True

    def _identity(self, runtime_id: RuntimeId, tenant_id: TenantId) -> protocol.Claim:
        limits = self.settings.sessions
        return protocol.Claim(
            runtime_id=runtime_id,
            tenant_id=tenant_id,
            default_provider=self.default_provider(),
            tool_timeout_seconds=limits.tool_timeout.total_seconds(),
            tool_cpu_seconds=self.settings.sandbox.cpu_seconds_per_tool,
            turn_timeout_seconds=limits.turn_timeout.total_seconds(),
            approval_timeout_seconds=limits.approval_timeout.total_seconds(),
            model_idle_timeout_seconds=self.settings.models.idle_timeout.total_seconds() + 5,
            module_load_seconds=min(_MAX_LOAD_SECONDS, self.settings.sandbox.start_timeout.total_seconds()),
            module_silence_seconds=min(_MAX_SILENCE_SECONDS, limits.tool_timeout.total_seconds()),
        )

    @asynccontextmanager
    async def private(self, tenant_id: TenantId, purpose: str) -> AsyncIterator[tuple[RuntimeId, Address]]:
        """A runtime of the tenant that no session ever comes to, and that ends with the block.

        It takes none of the tenant's places: whoever asks bounds how many there are. `purpose` is said in its row, where
        sessions' have their set of collections. Raises Unavailable.
        """
        if self.is_closing:
            raise Unavailable("the server is stopping; try again in a moment", code="stopping", retry_after_seconds=5)
        runtime_id, address = await self._claim_privately(tenant_id, purpose)
        try:
            yield runtime_id, address
        finally:
            await asyncio.shield(self.end(runtime_id, f"{purpose}: done"))

    async def _claim_privately(self, tenant_id: TenantId, purpose: str) -> tuple[RuntimeId, Address]:
        for attempt in range(_CLAIM_TRIES):
            async with self.spare() as (runtime_id, _):
                try:
                    async with self._database.write() as db:
                        won = await runtimes.claim(db, tenant_id, runtime_id, purpose, self._clock.now())
                    if not won:
                        continue
                    self._private[runtime_id] = tenant_id
                    await self.set_idle(runtime_id, idle=False)  # it is in use until it ends
                    address = self.launcher.address(runtime_id)
                    if address is None:
                        raise LaunchError("the runtime ended as it was claimed")
                    await self.calls.claim(address, self._identity(runtime_id, tenant_id))
                except (RouterError, RuntimeRefused, LaunchError) as error:
                    log.warning("claim failed", runtime_id=runtime_id, attempt=attempt, error=str(error))
                    await self.end(runtime_id, "it failed while it was claimed")
                except BaseException:
                    await asyncio.shield(self.end(runtime_id, "it was claimed for nothing"))
                    raise
                else:
                    return runtime_id, address
                finally:
                    self.wake()
        raise Unavailable("no sandbox could be had; try again", code="no_runtime", retry_after_seconds=2)

    async def why_ended(self, runtime_id: RuntimeId) -> str:
        """Why a runtime that does not answer runs no more, in words: "killed: memory over 512 MiB". Empty while it runs."""
        for seen in await self.launcher.list():
            if seen.id == runtime_id:
                return "" if seen.running or seen.running is None else seen.reason or "its process has ended"
        async with self._database.read() as db:
            return await runtimes.reason_of_all_tenants(db, runtime_id) or "its process has ended"

    async def _take_place(self, runtime_id: RuntimeId, need: Need) -> None:
        """The tenant's place for one more sandbox; one that holds no session makes room for it."""
        try:
            await self._places.sandbox(need.principal, runtime_id)
        except Refused:
            idle = [one for one in self._of(need.tenant_id) if not self.sessions.get(one)]
            if not idle:
                raise
            await self.end(idle[0], "its tenant needs the place for another set of collections")
            await self._places.sandbox(need.principal, runtime_id)

    def _of(self, tenant_id: TenantId) -> Sequence[RuntimeId]:
        return [runtime_id for runtime_id, owner in self.tenants.items() if owner == tenant_id]

    # Ending.

    async def end(self, runtime_id: RuntimeId, reason: str) -> None:
        """Stop its process and let everything know. Callers at the same time share one end; idempotent."""
        task = self._ending.get(runtime_id)
        if task is None:
            task = asyncio.create_task(self._end(runtime_id, reason))
            self._ending[runtime_id] = task
            task.add_done_callback(lambda _: self._ending.pop(runtime_id, None))
        await asyncio.shield(task)

    async def _end(self, runtime_id: RuntimeId, reason: str) -> None:
        address = self.launcher.address(runtime_id)
        await self.launcher.stop(runtime_id, reason)
        if address is not None:
            self._pool.forget(address)
        async with self._database.write() as db:
            changed = await runtimes.change_of_all_tenants(
                db,
                runtime_id,
                expected=_NOT_GONE,
                status=RuntimeStatus.GONE.value,
                reason=reason[:200],
                gone_at=self._clock.now(),
            )
        if changed:
            report = log.debug if reason.startswith(_DID_NOT_START) else log.info  # `readiness` tells of those
            report("runtime gone", runtime_id=runtime_id, reason=reason)
        try:
            if self.on_gone is not None:
                await self.on_gone(runtime_id, reason)
        finally:  # its row says gone: no later pass would let go of the rest
            await self._gateways.close(runtime_id)
            tenant_id = self.tenants.pop(runtime_id, None)
            self._private.pop(runtime_id, None)
            self.sessions.pop(runtime_id, None)
            if tenant_id is not None:
                await self._places.release_sandbox(tenant_id, runtime_id)
            self.wake()

    async def end_tenant(self, tenant_id: TenantId, reason: str) -> None:
        """End everything of a tenant that was suspended or deleted."""
        private = [runtime_id for runtime_id, owner in self._private.items() if owner == tenant_id]
        await asyncio.gather(*(self.end(runtime_id, reason) for runtime_id in [*self._of(tenant_id), *private]))

    async def set_status(
        self, runtime_id: RuntimeId, expected: RuntimeStatus, status: RuntimeStatus, reason: str = ""
    ) -> None:
        async with self._database.write() as db:
            await runtimes.change_of_all_tenants(
                db, runtime_id, expected=[expected], status=status.value, reason=reason
            )

    async def draining(self) -> list[RuntimeId]:
        """Runtimes that wait for their last turns."""
        async with self._database.read() as db:
            rows = await runtimes.wanted_of_all_tenants(db)
        return [RuntimeId(row.id) for row in rows if row.status == RuntimeStatus.DRAINING]

    async def set_idle(self, runtime_id: RuntimeId, *, idle: bool) -> None:
        """Note since when the runtime has no session, or that it has one again."""
        async with self._database.write() as db:
            since = self._clock.now() if idle else None
            await runtimes.change_of_all_tenants(db, runtime_id, expected=[RuntimeStatus.CLAIMED], idle_since=since)

    async def close(self) -> None:
        """End them all, side by side."""
        self.is_closing = True
        known = [seen.id for seen in await self.launcher.list()]
        results = await asyncio.gather(*(self.end(one, "the server stops") for one in known), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                log.error("a runtime did not end", error=repr(result))
        for task in list(self._starting.values()):
            task.cancel()
        await self.launcher.close()

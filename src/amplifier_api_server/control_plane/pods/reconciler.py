"""The loop that keeps what runs and what should run together; and the sweeps that suspend and close sessions by age.

Decides nothing: `plan` and the sweeps' queries do. Every pass is idempotent and starts from what is read anew; a wake-up
only says "sooner". One bad item never ends a pass, one bad pass never ends the loop, and how old the last good pass is can
be asked (`finished_at`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import structlog

from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.pods.calls import RuntimeRefused
from amplifier_api_server.control_plane.pods.fleet import Fleet
from amplifier_api_server.control_plane.pods.plan import (
    Action,
    Add,
    Drain,
    MarkReachable,
    MarkUnreachable,
    Policy,
    Seen,
    Start,
    Stop,
    Wanted,
    plan,
)
from amplifier_api_server.control_plane.router.errors import RouterError
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.tenants.errors import Unavailable
from amplifier_api_server.tenants.ids import RuntimeId
from amplifier_api_server.tenants.lifecycle import RuntimeStatus
from amplifier_api_server.tenants.repository import runtimes, turns

log = structlog.get_logger(__name__)

_INTERVAL_SECONDS = 1.0
_PING_EVERY_SECONDS = 5.0
_PING_TIMEOUT_SECONDS = 3.0
_ACTION_TIMEOUT_SECONDS = 30.0
_SWEEP_TIMEOUT_SECONDS = 300.0  # of a hundred rows, each of which may take a sandbox's time-outs
_PINGS_AT_ONCE = 32

Sweep = Callable[[], Awaitable[None]]


class Reconciler:
    """Runs passes until it is stopped."""

    def __init__(
        self, *, fleet: Fleet, database: Database, clock: Clock, telemetry: Telemetry, sweeps: Sequence[Sweep] = ()
    ) -> None:
        sandbox = fleet.settings.sandbox
        self._fleet = fleet
        self._database = database
        self._clock = clock
        self._telemetry = telemetry
        self._sweeps = sweeps
        self._policy = Policy(
            warm=sandbox.warm,
            max_runtimes=sandbox.max_runtimes,
            start_timeout=sandbox.start_timeout,
            idle_timeout=sandbox.idle_timeout,
        )
        self._first_seen: dict[RuntimeId, float] = {}
        self._silent_since: dict[RuntimeId, float] = {}
        self._pinged_at: float | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._doing: dict[RuntimeId, asyncio.Task[None]] = {}
        self._sweeping: dict[str, asyncio.Task[None]] = {}
        self.finished_at: float | None = None
        fleet.wake = self.wake

    def wake(self) -> None:
        """Have the next pass begin soon."""
        self._wake.set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the loop, and what it was doing."""
        tasks = [task for task in (self._task, *self._doing.values(), *self._sweeping.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self.run_pass()
            except Exception:
                log.exception("a pass failed; the next one starts anew")
            try:
                async with asyncio.timeout(_INTERVAL_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def run_pass(self) -> None:
        """One pass: read both sides, plan, and begin what is to do; the sweeps too.

        Nothing of it waits for a sandbox: one tenant's, which answers as slowly as it may, must not hold up the others'
        (their leases are renewed by a sweep). `settle` waits.
        """
        now = self._clock.monotonic()
        wanted, seen = await self._wanted(), await self._seen(now)
        actions = plan(wanted, seen, self._policy, self._clock.now())
        for action in actions:
            if isinstance(action, Add):
                await self._add()
            elif action.id not in self._doing:
                self._doing_of(action.id, action)
        if self._pinged_at is None or now - self._pinged_at >= _PING_EVERY_SECONDS:
            self._pinged_at = now
            self._begin_sweep("ping", lambda: self._ping(wanted))
        for sweep in self._sweeps:
            self._begin_sweep(getattr(sweep, "__qualname__", repr(sweep)), sweep)
        self.finished_at = self._clock.monotonic()
        self._telemetry.reconciled_at.set(self._clock.now().timestamp())
        counts = Counter(row.status.value for row in wanted.values())
        for status in RuntimeStatus:
            self._telemetry.runtimes.labels(status.value).set(counts.get(status.value, 0))

    async def settle(self) -> None:
        """Wait until what passes have begun is done; for tests and for a start that wants warm runtimes."""
        while under_way := [*self._doing.values(), *self._sweeping.values()]:
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _wanted(self) -> dict[RuntimeId, Wanted]:
        async with self._database.read() as db:
            rows = await runtimes.wanted_of_all_tenants(db)
            busy = Counter(turn.runtime_id for turn in await turns.running_of_all_tenants(db))
        return {
            RuntimeId(row.id): Wanted(
                id=RuntimeId(row.id),
                status=RuntimeStatus(row.status),
                created_at=row.created_at,
                idle_since=row.idle_since if not self._fleet.sessions.get(RuntimeId(row.id)) else None,
                turns=busy.get(row.id, 0),
            )
            for row in rows
        }

    async def _seen(self, now: float) -> dict[RuntimeId, Seen]:
        async with asyncio.timeout(_ACTION_TIMEOUT_SECONDS):
            observed = await self._fleet.launcher.list()
        self._first_seen = {one.id: self._first_seen.get(one.id, now) for one in observed}
        self._silent_since = {id_: since for id_, since in self._silent_since.items() if id_ in self._first_seen}
        return {
            one.id: Seen(
                one.running,
                timedelta(seconds=now - self._first_seen[one.id]),
                self._silent_for(one.id, now),
                one.reason,
            )
            for one in observed
        }

    def _silent_for(self, runtime_id: RuntimeId, now: float) -> timedelta | None:
        since = self._silent_since.get(runtime_id)
        return None if since is None else timedelta(seconds=now - since)

    def _begin_sweep(self, name: str, sweep: Sweep) -> None:
        """Beside the loop, unless the last one still goes on."""
        if name not in self._sweeping:
            self._sweeping[name] = task = asyncio.create_task(self._sweep(name, sweep))
            task.add_done_callback(lambda _: self._sweeping.pop(name, None))

    async def _sweep(self, name: str, sweep: Sweep) -> None:
        try:
            async with asyncio.timeout(_SWEEP_TIMEOUT_SECONDS):
                await sweep()
        except Exception:
            log.exception("a sweep failed; the next pass tries again", sweep=name)

    async def _add(self) -> None:
        """Write a row at once, so that the next pass counts it, and begin to start it."""
        if self._fleet.is_closing:
            return
        try:
            runtime_id = await self._fleet.add()
        except Unavailable:
            log.exception("a runtime's row could not be written; the next pass plans it again")
        else:
            self._doing_of(runtime_id, Start(runtime_id))

    def _doing_of(self, runtime_id: RuntimeId, action: Action) -> None:
        """Do it beside the loop: a slow start must not hold up anybody's end. One thing at a time for each runtime."""
        task = asyncio.create_task(self._do(action))
        self._doing[runtime_id] = task
        task.add_done_callback(lambda _: self._doing.pop(runtime_id, None))

    async def _do(self, action: Action) -> None:
        fleet = self._fleet
        try:
            async with asyncio.timeout(_ACTION_TIMEOUT_SECONDS):
                match action:
                    case Start(id):
                        await fleet.start(id)
                    case Stop(id, reason):
                        await fleet.end(id, reason)
                    case MarkUnreachable(id):
                        await fleet.set_status(id, RuntimeStatus.CLAIMED, RuntimeStatus.UNREACHABLE)
                    case MarkReachable(id):
                        await fleet.set_status(id, RuntimeStatus.UNREACHABLE, RuntimeStatus.CLAIMED)
                    case Drain(id, reason):
                        await fleet.set_status(id, RuntimeStatus.CLAIMED, RuntimeStatus.DRAINING, reason)
        except Exception:
            log.exception("an action failed; the next pass plans it again", action=repr(action))

    async def _ping(self, wanted: dict[RuntimeId, Wanted]) -> None:
        """Ask every runtime whether it answers. A stopped one still exists: only this tells."""
        limit = asyncio.Semaphore(_PINGS_AT_ONCE)

        async def ping(runtime_id: RuntimeId) -> None:
            address = self._fleet.address(runtime_id)
            if address is None:
                return
            async with limit:
                try:
                    await self._fleet.calls.health(address, _PING_TIMEOUT_SECONDS)
                except (RouterError, RuntimeRefused):
                    self._silent_since.setdefault(runtime_id, self._clock.monotonic())
                else:
                    self._silent_since.pop(runtime_id, None)

        asked = [row.id for row in wanted.values() if row.status is not RuntimeStatus.STARTING]
        await asyncio.gather(*(ping(runtime_id) for runtime_id in asked))

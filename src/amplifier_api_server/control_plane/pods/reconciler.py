"""The loop that keeps what runs and what should run together; and the sweeps that suspend and close sessions by age.

Decides nothing: `plan` and the sweeps' queries do. Every pass is idempotent and starts from what is read anew; a wake-up
only says "sooner". One bad item never ends a pass, one bad pass never ends the loop, and how old the last good pass is can
be asked (`finished_at`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.pods.calls import RuntimeRefused
from amplifier_api_server.control_plane.pods.fleet import Fleet
from amplifier_api_server.control_plane.pods.launcher import LaunchError
from amplifier_api_server.control_plane.pods.plan import (
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
from amplifier_api_server.control_plane.readiness import Backoff, Readiness, Retries, told
from amplifier_api_server.control_plane.router.errors import RouterError
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.tenants.errors import DomainError
from amplifier_api_server.tenants.ids import RuntimeId
from amplifier_api_server.tenants.lifecycle import RuntimeStatus
from amplifier_api_server.tenants.models import Runtime
from amplifier_api_server.tenants.repository import runtimes, turns

_INTERVAL_SECONDS = 1.0
_PING_EVERY_SECONDS = 5.0
_PING_TIMEOUT_SECONDS = 3.0
_ACTION_TIMEOUT_SECONDS = 30.0
_SWEEP_TIMEOUT_SECONDS = 300.0  # of a hundred rows, each of which may take a sandbox's time-outs
_PINGS_AT_ONCE = 32

_LONGEST_PAUSE_SECONDS = 15.0  # of what fails: at half of the time after which `/ready` calls the loop stuck

Step = Start | Stop | MarkUnreachable | MarkReachable | Drain
Sweep = Callable[[], Awaitable[None]]


def _pauses() -> Backoff:
    return Backoff(_INTERVAL_SECONDS, _LONGEST_PAUSE_SECONDS)


class Reconciler:
    """Runs passes until it is stopped."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        database: Database,
        clock: Clock,
        telemetry: Telemetry,
        readiness: Readiness,
        sweeps: Sequence[Sweep] = (),
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
        self._readiness = readiness
        self._passes = Backoff(_INTERVAL_SECONDS, _LONGEST_PAUSE_SECONDS)
        self._actions = Retries(readiness, "runtimes", _pauses)
        self._sweeps_tried = Retries(readiness, "sweeps", _pauses)
        self._first_seen: dict[RuntimeId, float] = {}
        self._silent_since: dict[RuntimeId, float] = {}
        self._pinged_at: float | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._doing: dict[RuntimeId, asyncio.Task[None]] = {}
        self._sweeping: dict[str, asyncio.Task[None]] = {}
        # By the monotonic clock: when each runtime was wanted first, and with each time since which it is said to be idle.
        self._since: dict[str | tuple[str, datetime | None], float] = {}
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
            except Exception as error:  # noqa: BLE001 - `readiness` logs it
                self._passes.failed()
                known = isinstance(error, DomainError | OSError)
                self._readiness.failing("reconciler", told(error), error=None if known else error)
                await asyncio.sleep(self._passes.wait_seconds)  # nothing that wakes it makes it work sooner
            else:
                self._passes.worked()
                self._readiness.works("reconciler")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_INTERVAL_SECONDS):
                        await self._wake.wait()

    async def run_pass(self) -> None:
        """One pass: read both sides, plan, and begin what is to do; the sweeps too.

        Nothing of it waits for a sandbox: one tenant's, which answers as slowly as it may, must not hold up the others'
        (their leases are renewed by a sweep). `settle` waits.
        """
        now = self._clock.monotonic()
        wanted, seen = await self._wanted(now), await self._seen(now)
        policy = replace(self._policy, warm=0) if self._fleet.starts.wait_seconds else self._policy
        self._actions.keep(wanted.keys() | seen.keys())
        for action in plan(wanted, seen, policy):
            if isinstance(action, Add):
                await self._add()
            elif action.id not in self._doing and self._actions.may_try(action.id):
                self._doing_of(action.id, action)
        if self._pinged_at is None or now - self._pinged_at >= _PING_EVERY_SECONDS:
            self._pinged_at = now
            self._begin_sweep("ping", lambda: self._ping(wanted))
        for sweep in self._sweeps:
            self._begin_sweep(getattr(sweep, "__qualname__", repr(sweep)), sweep)
        self.finished_at = self._clock.monotonic()
        self._telemetry.reconciled_at.set(self._clock.now().timestamp())
        self._telemetry.sandboxes_up.set(sum(one.running is True for one in seen.values()))
        counts = Counter(row.status.value for row in wanted.values())
        for status in RuntimeStatus:
            self._telemetry.runtimes.labels(status.value).set(counts.get(status.value, 0))

    async def settle(self) -> None:
        """Wait until what passes have begun is done; for tests and for a start that wants warm runtimes."""
        while under_way := [*self._doing.values(), *self._sweeping.values()]:
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _wanted(self, now: float) -> dict[RuntimeId, Wanted]:
        async with self._database.read() as db:
            rows = await runtimes.wanted_of_all_tenants(db)
            busy = Counter(turn.runtime_id for turn in await turns.running_of_all_tenants(db))
        self._since = {key: self._since.get(key, now) for row in rows for key in (row.id, (row.id, row.idle_since))}
        return {
            RuntimeId(row.id): Wanted(
                id=RuntimeId(row.id),
                status=RuntimeStatus(row.status),
                wanted_for=timedelta(seconds=now - self._since[row.id]),
                idle_for=self._idle_for(row, now),
                turns=busy.get(row.id, 0),
            )
            for row in rows
        }

    def _idle_for(self, row: Runtime, now: float) -> timedelta | None:
        if row.idle_since is None or self._fleet.sessions.get(RuntimeId(row.id)):
            return None
        return timedelta(seconds=now - self._since[row.id, row.idle_since])

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
        if name not in self._sweeping and self._sweeps_tried.may_try(name):
            self._sweeping[name] = task = asyncio.create_task(self._sweep(name, sweep))
            task.add_done_callback(lambda _: self._sweeping.pop(name, None))

    async def _sweep(self, name: str, sweep: Sweep) -> None:
        try:
            async with asyncio.timeout(_SWEEP_TIMEOUT_SECONDS):
                await sweep()
        except Exception as error:  # noqa: BLE001 - `readiness` logs it
            self._sweeps_tried.failed(name, name, error)
        else:
            self._sweeps_tried.worked(name)

    async def _add(self) -> None:
        """Write a row at once, so that the next pass counts it, and begin to start it."""
        if self._fleet.is_closing:
            return
        runtime_id = await self._fleet.add()
        self._doing_of(runtime_id, Start(runtime_id))

    def _doing_of(self, runtime_id: RuntimeId, action: Step) -> None:
        """Do it beside the loop: a slow start must not hold up anybody's end. One thing at a time for each runtime."""
        task = asyncio.create_task(self._do(action))
        self._doing[runtime_id] = task
        task.add_done_callback(lambda _: self._doing.pop(runtime_id, None))

    async def _do(self, action: Step) -> None:
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
        except LaunchError:
            pass  # the fleet has told it, and waits with the next start
        except Exception as error:  # noqa: BLE001 - `readiness` logs it
            self._actions.failed(action.id, type(action).__name__, error)
        else:
            self._actions.worked(action.id)

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

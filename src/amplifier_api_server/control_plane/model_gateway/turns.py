"""The turns that run now, and what their model calls used.

Owns the answer to "does this turn run in this runtime?" and each call's usage until it is recorded. Refuses to know the
database and HTTP. Invariant: a finished call's usage is handed over exactly once, by a step or by `finish`, whichever
way the call ended; no call begins after `finish` was called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol
from weakref import WeakValueDictionary

import structlog

from amplifier_api_server.control_plane.limits.backend import Budget, LimitsBackend
from amplifier_api_server.control_plane.model_gateway.budget import Allowance, Room
from amplifier_api_server.tenants.ids import MemberId, RuntimeId, SessionId, TenantId, TurnId

log = structlog.get_logger(__name__)

_STEP_SECONDS = 15.0  # for a step to be written
_GRACE_SECONDS = 5.0  # beyond the drain, for a call that was told to end


@dataclass(frozen=True, slots=True)
class CallUsage:
    """What one model call used. `estimated`: the provider's own count did not arrive, ours stands in."""

    call_id: str
    model: str
    provider: str
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    estimated: bool
    finished_at: datetime
    cached_tokens: int = 0  # of the prompt: read from the provider's cache
    cache_write_tokens: int = 0  # of the prompt: written to it
    reasoning_tokens: int = 0  # of the completion
    cost_microdollars: int | None = None  # None: no price is known
    own_key: bool = False  # it went out with the tenant's own key


class Call(Protocol):
    """A model call in flight, as a turn sees it."""

    def used_so_far(self) -> CallUsage | None:
        """What it would be charged with if it ended now; None where that is nothing, or was handed to the turn."""

    def end(self, *, abort: bool) -> None:
        """Read no further than it must: nothing more when aborted, else for the drain's time. Safe to call again."""

    async def ended(self) -> None:
        """Returns when its usage was handed to the turn."""


@dataclass(slots=True, eq=False)
class MeteredTurn:
    """A turn that runs: whose it is, what it reserved, what it used. `budget` None: nothing limits its tokens."""

    tenant_id: TenantId
    member_id: MemberId
    session_id: SessionId
    turn_id: TurnId
    runtime_id: RuntimeId
    budget: Budget | None = None
    reserved: int = 0
    tier: str = "default"  # of the tenant: which models it may ask for
    allowance: Allowance = field(init=False)
    asking: int = field(default=0, init=False)  # requests for model calls, from before they are read to their end
    calls: set[Call] = field(default_factory=set, init=False)
    pending: list[CallUsage] = field(default_factory=list, init=False)  # finished and not recorded
    is_finishing: bool = field(default=False, init=False)
    step: asyncio.Task[None] | None = field(default=None, init=False)  # writes finished calls

    def unrecorded(self) -> list[CallUsage]:
        """What its calls used that the ledger does not have, as far as that is known now."""
        return [*self.pending, *(usage for call in self.calls if (usage := call.used_so_far()) is not None)]


OnStep = Callable[[MeteredTurn, Sequence[CallUsage]], Awaitable[None]]


class RunningTurns:
    """The registry. Of this process alone: a turn's model calls come to where its runtime is connected."""

    def __init__(
        self, backend: LimitsBackend | None, *, drain_seconds: float = 2.0, on_step: OnStep | None = None
    ) -> None:
        self._backend = backend
        self._drain_seconds = drain_seconds
        self._on_step = on_step
        self._turns: dict[TurnId, MeteredTurn] = {}
        self._rooms: WeakValueDictionary[str, Room] = WeakValueDictionary()  # of each budget that a running turn has

    def begin(self, turn: MeteredTurn) -> None:
        """From now on the turn's runtime may call models for it."""
        if turn.turn_id in self._turns:
            raise ValueError(f"{turn.turn_id} runs already")
        room = self._rooms.setdefault(turn.budget.key, Room()) if turn.budget is not None else None
        turn.allowance = Allowance(self._backend, turn.budget, turn.reserved, room)
        self._turns[turn.turn_id] = turn

    def move(self, turn_id: TurnId, runtime_id: RuntimeId) -> None:
        """The turn, which was begun nowhere yet, runs in this runtime; the one that it was meant for is gone."""
        turn = self._turns.get(turn_id)
        if turn is not None:
            turn.runtime_id = runtime_id

    def get(self, runtime_id: RuntimeId, turn_id: str) -> MeteredTurn | None:
        """The turn, if it runs in this very runtime and has not begun to finish."""
        turn = self._turns.get(TurnId(turn_id))
        if turn is None or turn.runtime_id != runtime_id or turn.is_finishing:
            return None
        return turn

    def of_runtime(self, runtime_id: RuntimeId) -> list[TurnId]:
        """The turns that run in a runtime, those that are finishing among them: what is lost when it is."""
        return [turn.turn_id for turn in self._turns.values() if turn.runtime_id == runtime_id]

    def __len__(self) -> int:
        return len(self._turns)

    def __iter__(self) -> Iterator[MeteredTurn]:
        return iter(list(self._turns.values()))

    def call_began(self, turn: MeteredTurn, call: Call) -> bool:
        """Count a call in; what earlier calls used is written meanwhile. False: the turn finishes already."""
        if turn.is_finishing:
            return False
        turn.calls.add(call)
        if self._on_step is not None and turn.pending and (turn.step is None or turn.step.done()):
            turn.step = asyncio.create_task(self._write(turn, self._on_step))
        return True

    def call_used(self, turn: MeteredTurn, usage: CallUsage) -> None:
        """What one attempt of a call used. One that the provider refused, or that never reached it, used nothing."""
        turn.pending.append(usage)
        if self._turns.get(turn.turn_id) is not turn:  # its end waited for this call for as long as it could
            log.error("gateway:usage_came_too_late", request_id=turn.turn_id, call_id=usage.call_id)

    def call_ended(self, turn: MeteredTurn, call: Call) -> None:
        """Count a call out, after all that it used."""
        turn.calls.discard(call)

    async def finish(self, turn_id: TurnId, *, abort: bool) -> list[CallUsage]:
        """End the turn here: no new call, calls in flight end, and all usage that was not recorded is returned.

        `abort` ends them at once; else a stream is read on for as long as the drain allows, to learn what the provider
        counted. Exactly once: a second finish, also one at the same time, waits for the same end and gets nothing; it
        may hurry the first by `abort`. Takes at most the drain and a grace.
        """
        turn = self._turns.get(turn_id)
        if turn is None:
            return []
        turn.is_finishing = True
        calls = list(turn.calls)
        for call in calls:
            call.end(abort=abort)
        waits = [asyncio.ensure_future(call.ended()) for call in calls]
        if turn.step is not None:
            waits.append(asyncio.ensure_future(asyncio.shield(turn.step)))
        if waits:
            _, late = await asyncio.wait(waits, timeout=self._drain_seconds + _GRACE_SECONDS)
            for wait in late:
                log.error("gateway:call_did_not_end", request_id=turn_id)
                wait.cancel()
        await turn.allowance.close()
        if self._turns.get(turn_id) is not turn:
            return []
        del self._turns[turn_id]
        usages, turn.pending = turn.pending, []
        return usages

    async def _write(self, turn: MeteredTurn, on_step: OnStep) -> None:
        """Hand finished calls over; those that were not taken stay pending."""
        usages = list(turn.pending)
        try:
            async with asyncio.timeout(_STEP_SECONDS):
                await on_step(turn, usages)
        except Exception:
            log.exception("gateway:step_not_written", request_id=turn.turn_id, calls=len(usages))
            return
        written = {usage.call_id for usage in usages}
        turn.pending = [usage for usage in turn.pending if usage.call_id not in written]

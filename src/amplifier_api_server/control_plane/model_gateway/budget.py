"""How many tokens a running turn may still use, and what is reserved of them for its model calls.

Owns the arithmetic of one turn's reservation, its growing and its giving back. Refuses to know HTTP, streams and settling:
the turn's end settles what was used. Invariant: what a call may use at most is reserved before the call is made, and what
it did not use is free again, for all turns of the tenant, when it ends.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from dataclasses import dataclass, field, replace

import structlog

from amplifier_api_server.control_plane.limits.backend import Budget, LimitsBackend

log = structlog.get_logger(__name__)

STEP_TOKENS = 1024  # what a call takes at a time beyond what it reserved
_BACKEND_SECONDS = 5.0
_ROOM_SECONDS = 30.0  # how long a call waits for running calls of the tenant to give back what they don't use

_FACTOR_BOUNDS = (1.0, 16.0)
_FACTOR_MEMORY = 4096
_FACTOR_WEIGHT = 0.1  # of the latest count, where it was below


@dataclass(eq=False)
class Room:
    """The calls in flight that hold a part of one budget, whichever turn they are of."""

    calls: int = 0
    _freed: asyncio.Event = field(default_factory=asyncio.Event)

    def free(self) -> None:
        """Something was given back: whoever waits looks again."""
        self._freed.set()
        self._freed = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        """Until something is given back. False: not within this time."""
        try:
            async with asyncio.timeout(seconds):
                await self._freed.wait()
        except TimeoutError:
            return False
        return True


class Allowance:
    """What one turn reserved and what it used of that. Calls of the turn share it. Without a limit it only counts."""

    def __init__(
        self, backend: LimitsBackend | None, budget: Budget | None, reserved: int, room: Room | None = None
    ) -> None:
        self._backend = backend
        self._budget = budget if budget is not None and budget.limit is not None else None
        self._reserved = self._at_first = reserved
        self._used = 0  # by calls that ended, and reserved for those that run
        self._room = room or Room()
        self._changing = asyncio.Lock()  # one change of the reservation at a time
        self._shrinking: asyncio.Task[None] | None = None

    @property
    def is_limited(self) -> bool:
        return self._budget is not None and self._backend is not None

    @property
    def used(self) -> int:
        return self._used

    @property
    def left(self) -> int:
        """Reserved and not used; below 0 when a provider counted more than we had."""
        return self._reserved - self._used

    async def begin_call(self, least: int, useful: int, wanted: int) -> int:
        """Reserve for one call up to `wanted` of what is left; 0 where that is less than `least`.

        Where it is less than `useful` and calls in flight hold a part of the budget, their end is waited for, a while:
        most use far less than they reserved.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _ROOM_SECONDS
        while self.is_limited and self._room.calls and await self._reach() < useful:
            if not await self._room.wait(until - loop.time()):
                break
        got = await self._take(least, wanted)
        self._room.calls += got > 0
        return got

    def end_call(self, reserved: int, used: int) -> None:
        """The call that holds `reserved` has ended and used this much: the rest is given back."""
        self._used += used - reserved
        self._room.calls -= 1
        if self.is_limited and self._excess > 0 and (self._shrinking is None or self._shrinking.done()):
            self._shrinking = asyncio.create_task(self._shrink())
        else:
            self._room.free()

    async def take(self, tokens: int) -> bool:
        """Use `tokens` more than were reserved for a call, if they can be had; else False, and none is used."""
        return await self._take(tokens, tokens) == tokens

    async def close(self) -> None:
        """Wait for a change that is under way, so that nothing is changed after the turn's settling."""
        if self._shrinking is not None:
            await asyncio.wait([self._shrinking], timeout=_BACKEND_SECONDS)

    @property
    def _excess(self) -> int:
        """Reserved, and neither used nor what the turn began with."""
        return self._reserved - max(self._used, self._at_first)

    async def _take(self, least: int, wanted: int) -> int:
        if not self.is_limited:
            self._used += wanted
            return wanted
        if self.left < wanted:
            async with self._changing:
                if (lacking := wanted - self.left) > 0:
                    self._reserved += await self._extend(max(STEP_TOKENS, lacking))
        got = min(wanted, self.left)
        if got < max(1, least):
            return 0
        self._used += got
        return got

    async def _reach(self) -> int:
        """About how many tokens could be had now, reserved by this turn or by nobody."""
        assert self._backend is not None
        assert self._budget is not None
        try:
            async with asyncio.timeout(_BACKEND_SECONDS):
                standing = await self._backend.standing(self._budget)
        except Exception:
            log.exception("gateway:limits_unreachable", holder=self._budget.holder)
            return max(0, self.left)
        return max(0, self.left) + max(0, standing.remaining or 0)

    async def _extend(self, tokens: int) -> int:
        assert self._backend is not None
        assert self._budget is not None
        try:
            async with asyncio.timeout(_BACKEND_SECONDS):
                return await self._backend.extend(replace(self._budget, amount=tokens, at_least=1))
        except Exception:  # limits that can't be asked give nothing: a budget is not overrun because Redis is away
            log.exception("gateway:limits_unreachable", holder=self._budget.holder)
            return 0

    async def _shrink(self) -> None:
        assert self._backend is not None
        assert self._budget is not None
        async with self._changing:
            # Given back here first: what the backend then can't be told expires with the turn's lease, or is settled.
            excess = max(0, self._excess)
            self._reserved -= excess
            try:
                async with asyncio.timeout(_BACKEND_SECONDS):
                    await self._backend.give_back(self._budget.key, self._budget.holder, excess)
            except Exception:
                log.exception("gateway:limits_unreachable", holder=self._budget.holder)
        self._room.free()


class PromptEstimates:
    """By how much providers count more than we estimate, learned for each tenant and model from their own counts.

    It rises at once and sinks slowly, never below the estimate: prompts that are cheap to estimate do not pay for others.
    For each tenant apart: one that writes in a script of many tokens a byte must not change what another is refused for.
    """

    def __init__(self) -> None:
        self._factors: OrderedDict[tuple[str, str], float] = OrderedDict()

    def tokens(self, tenant_id: str, model: str, estimate: int) -> int:
        return max(1, math.ceil(estimate * self._factors.get((tenant_id, model), 1.0)))

    def learn(self, tenant_id: str, model: str, estimate: int, prompt_tokens: int) -> None:
        """Take a provider's count into account; forgets the tenant and model that were learned longest ago."""
        if prompt_tokens < 1 or estimate < 1:
            return
        low, high = _FACTOR_BOUNDS
        seen = min(high, max(low, prompt_tokens / estimate))
        before = self._factors.pop((tenant_id, model), low)
        self._factors[tenant_id, model] = max(seen, before + (seen - before) * _FACTOR_WEIGHT)
        if len(self._factors) > _FACTOR_MEMORY:
            self._factors.popitem(last=False)

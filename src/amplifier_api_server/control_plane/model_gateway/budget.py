"""How many tokens a running turn may still use, and what a request is guessed to cost before anybody counted it.

Owns the arithmetic of one turn's reservation and the growing of it. Refuses to know HTTP, streams and settling: the
turn's end settles what was used. Invariant: by our own count no token passes that was not reserved first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import replace

import structlog

from amplifier_api_server.control_plane.limits.backend import Budget, LimitsBackend

log = structlog.get_logger(__name__)

STEP_TOKENS = 1024  # a reservation grows by this much; it starts to when half of it is left
_BACKEND_SECONDS = 5.0
_ATTEMPTS = 3

_DEFAULT_BYTES_A_TOKEN = 4.0
_RATIO_BOUNDS = (1.0, 16.0)
_RATIO_MEMORY = 4096
_RATIO_WEIGHT = 0.3  # of the latest count


class Allowance:
    """What one turn reserved and what it used of that. Calls of the turn share it. Without a limit it only counts."""

    def __init__(self, backend: LimitsBackend | None, budget: Budget | None, reserved: int) -> None:
        self._backend = backend
        self._budget = budget if budget is not None and budget.limit is not None else None
        self._reserved = reserved
        self._used = 0
        self._growing: asyncio.Task[int] | None = None
        self._is_refused = False  # by the latest attempt to grow

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

    def use(self, tokens: int) -> None:
        """Count tokens as used; a correction may be negative. Starts to grow the reservation ahead of need."""
        self._used += tokens
        if self.is_limited and tokens > 0 and self.left < STEP_TOKENS // 2 and not self._is_refused:
            self._grow(STEP_TOKENS)

    async def take(self, tokens: int) -> bool:
        """Use `tokens` if they are reserved, growing the reservation if need be; else False, and none is used."""
        if not self.is_limited:
            self._used += tokens
            return True
        # Growth that was under way may have been for less than is wanted here, and another call may have used it first.
        for _ in range(_ATTEMPTS):
            if self.left >= tokens:
                self.use(tokens)
                return True
            await asyncio.shield(self._grow(max(STEP_TOKENS, tokens - self.left)))
            if self._is_refused:
                break
        if self.left < tokens:
            return False
        self.use(tokens)
        return True

    async def reach(self) -> int | None:
        """About how many tokens could still be had, reserved and not; None without a limit."""
        if self._backend is None or self._budget is None:
            return None
        try:
            async with asyncio.timeout(_BACKEND_SECONDS):
                standing = await self._backend.standing(self._budget)
        except Exception:
            log.exception("gateway:limits_unreachable", holder=self._budget.holder)
            return max(0, self.left)
        return max(0, self.left) + max(0, standing.remaining or 0)

    async def close(self) -> None:
        """Wait for growth that is under way, so that nothing is added after the turn's settling."""
        if self._growing is not None:
            await asyncio.wait([self._growing], timeout=_BACKEND_SECONDS)

    def _grow(self, tokens: int) -> asyncio.Task[int]:
        if self._growing is None or self._growing.done():
            self._growing = asyncio.create_task(self._extend(tokens))
        return self._growing

    async def _extend(self, tokens: int) -> int:
        assert self._backend is not None
        assert self._budget is not None
        try:
            async with asyncio.timeout(_BACKEND_SECONDS):
                added = await self._backend.extend(replace(self._budget, amount=tokens, at_least=1))
        except Exception:  # limits that can't be asked give nothing: a budget is not overrun because Redis is away
            log.exception("gateway:limits_unreachable", holder=self._budget.holder)
            added = 0
        self._reserved += added
        self._is_refused = added == 0
        return added


class PromptEstimates:
    """Bytes a token, learned for each tenant and model from providers' own counts.

    For each tenant apart: one that writes in a script of many tokens a byte must not change what another is refused
    for.
    """

    def __init__(self) -> None:
        self._ratios: OrderedDict[tuple[str, str], float] = OrderedDict()

    def tokens(self, tenant_id: str, model: str, prompt_bytes: int) -> int:
        ratio = self._ratios.get((tenant_id, model), _DEFAULT_BYTES_A_TOKEN)
        return max(1, round(prompt_bytes / ratio))

    def learn(self, tenant_id: str, model: str, prompt_bytes: int, prompt_tokens: int) -> None:
        """Take a provider's count into account; forgets the tenant and model that were learned longest ago."""
        if prompt_tokens < 1 or prompt_bytes < 1:
            return
        low, high = _RATIO_BOUNDS
        seen = min(high, max(low, prompt_bytes / prompt_tokens))
        before = self._ratios.pop((tenant_id, model), seen)
        self._ratios[tenant_id, model] = before + (seen - before) * _RATIO_WEIGHT
        if len(self._ratios) > _RATIO_MEMORY:
            self._ratios.popitem(last=False)

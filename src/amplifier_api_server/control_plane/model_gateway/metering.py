"""One attempt's tokens: what it took of its turn's allowance, and what it used at last.

Owns the arithmetic between a provider's count, our own and the allowance. Refuses to know HTTP. Invariants: what was not
reserved does not pass; an attempt's usage is handed to the turn exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from amplifier_api_server.control_plane.model_gateway.budget import PromptEstimates
from amplifier_api_server.control_plane.model_gateway.dialects.dialect import SMALL_ALLOWANCE, Reader, Request
from amplifier_api_server.control_plane.model_gateway.targets import Counted, Target, cost_microdollars
from amplifier_api_server.control_plane.model_gateway.turns import CallUsage, MeteredTurn


@dataclass(slots=True)
class Meter:
    """Of one attempt. `begin` it, ask `may_pass` for what passes, and charge it at the end."""

    turn: MeteredTurn
    request: Request
    target: Target
    reader: Reader
    estimates: PromptEstimates
    is_metered: bool
    bound: int | None = None  # of one choice, where it is ours and not the request's own
    _charged: int = 0  # tokens of the turn's allowance
    _prompt_estimate: int = 0

    async def begin(self) -> bool:
        """Take the prompt, and choose the bound. False: the budget is spent."""
        if not self.is_metered:
            return True
        self._prompt_estimate = self.estimates.tokens(self.turn.tenant_id, self.target.model, self.request.prompt_bytes)
        # One token more than the prompt: a call that could not say anything is not made.
        if not await self.turn.allowance.take(self._prompt_estimate + 1):
            return False
        self._charged = self._prompt_estimate + 1
        self._charge_to(self._prompt_estimate)
        await self._choose_bound()
        return True

    async def may_pass(self, before: int) -> bool:
        """Whether what was just read may pass, by the reader's count; `before`: that count until then."""
        tokens = self.reader.completion_tokens - before
        if tokens <= 0 or not self.is_metered:
            return True
        allowance = self.turn.allowance
        if not allowance.is_limited or allowance.left >= tokens:
            allowance.use(tokens)
        elif not await allowance.take(tokens):
            return False
        self._charged += tokens
        return True

    async def may_pass_whole(self) -> bool:
        """Whether an answer in one piece may pass."""
        counted, _ = self.counted()
        more = counted.total_tokens - self._charged
        if not self.is_metered or more <= 0:
            return True
        if not await self.turn.allowance.take(more):
            return False
        self._charged += more
        return True

    @property
    def is_at_bound(self) -> bool:
        """It was our bound, the budget's, at which the model stopped."""
        counted, is_final = self.counted()
        return self.bound is not None and (not is_final or counted.completion_tokens >= self.bound)

    def counted(self) -> tuple[Counted, bool]:
        """What was used, as far as it is known now; and whether that is the provider's own count of all of it."""
        reader, counted = self.reader, self.reader.counted
        if counted is None:
            prompt, completion = self._prompt_estimate, reader.completion_tokens
            return Counted(prompt, completion, prompt + completion), False
        if reader.is_final:
            prompt = counted.prompt_tokens or self._prompt_estimate
            return _with_prompt(counted, prompt, counted.completion_tokens, counted.total_tokens), True
        prompt, completion = counted.prompt_tokens or self._prompt_estimate, reader.completion_tokens
        return _with_prompt(counted, prompt, completion, prompt + completion), False

    def usage(self, call_id: str, at: datetime) -> CallUsage:
        counted, is_final = self.counted()
        return CallUsage(
            call_id=call_id,
            model=self.target.model,
            provider=self.target.provider.name,
            prompt_tokens=counted.prompt_tokens,
            completion_tokens=counted.completion_tokens,
            total_tokens=counted.total_tokens,
            estimated=not is_final,
            finished_at=at,
            cached_tokens=counted.cached_tokens,
            cache_write_tokens=counted.cache_write_tokens,
            reasoning_tokens=counted.reasoning_tokens,
            cost_microdollars=cost_microdollars(counted, self.target.price),
            own_key=self.target.is_own_key,
        )

    def charge(self, usage: CallUsage | None) -> None:
        """Put the allowance right by what was used; None: nothing was."""
        if not self.is_metered:
            return
        self._charge_to(usage.total_tokens if usage is not None else 0)
        if usage is not None and not usage.estimated:
            self.estimates.learn(self.turn.tenant_id, self.target.model, self.request.prompt_bytes, usage.prompt_tokens)

    async def _choose_bound(self) -> None:
        """Bound the answer where the budget is nearer than the request's own bound.

        A request without a bound gets one only when little is left: a large one might be above what the model takes.
        """
        if not self.turn.allowance.is_limited:
            return
        reach = await self.turn.allowance.reach()
        assert reach is not None
        wanted = self.request.max_tokens
        each = max(self.request.least_bound, reach // self.request.choices)
        if each <= SMALL_ALLOWANCE if wanted is None else each < wanted:
            self.bound = each

    def _charge_to(self, tokens: int) -> None:
        self.turn.allowance.use(tokens - self._charged)
        self._charged = tokens


def _with_prompt(counted: Counted, prompt: int, completion: int, total: int) -> Counted:
    return Counted(
        prompt,
        completion,
        max(total, prompt + completion) if prompt != counted.prompt_tokens else total,
        cached_tokens=min(counted.cached_tokens, prompt),
        cache_write_tokens=min(counted.cache_write_tokens, prompt),
        reasoning_tokens=min(counted.reasoning_tokens, completion),
        cache_write_long_tokens=counted.cache_write_long_tokens,
    )

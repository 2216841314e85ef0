"""One attempt's tokens: what is reserved for it before it goes out, and what it used at last.

Owns the arithmetic between a provider's count, our own and the allowance. Refuses to know HTTP. Invariants: the prompt and
the longest answer that the provider is asked for are reserved before it is asked; an attempt's usage is handed to the
turn exactly once; what the provider did not count, or can't have counted right, counts by its length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from amplifier_api_server.control_plane.model_gateway.budget import PromptEstimates
from amplifier_api_server.control_plane.model_gateway.dialects.dialect import SMALL_ALLOWANCE, Reader, Request
from amplifier_api_server.control_plane.model_gateway.targets import Counted, Target, cost_microdollars
from amplifier_api_server.control_plane.model_gateway.turns import CallUsage, MeteredTurn

_LEAST_ANSWER = 8  # tokens: a call that could say less is of no use to anybody
_UNKNOWN_WINDOW = 200_000  # tokens, of a model that the catalogue doesn't know
# A count that says that a token had more than this is none; of short texts it is not worth asking.
_BYTES_A_TOKEN_AT_MOST = 16  # of an answer, on average
_ESTIMATES_A_TOKEN_AT_MOST = 64  # of a prompt, by our estimate; some don't count what was in their cache
_SHORT = 512
_SILENT_TOKENS_A_SECOND = 100  # what a fast model thinks unseen, in a stream that was given up before it was counted


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
    is_budgets: bool = False  # the bound is what the budget leaves; else it is the model's own
    excess: int = 0  # tokens that the latest answer "no" was about
    _is_begun: bool = False
    _charged: int = 0  # tokens of the turn's allowance
    _prompt_estimate: int = 0
    _unseen: int = 0  # tokens that the provider may have made and nobody saw

    async def begin(self) -> bool:
        """Reserve what the call may cost at most, and choose the bound of its answer. False: the budget is spent."""
        if not self.is_metered:
            return True
        prompt = self._prompt_estimate = self._estimated()
        request, choices = self.request, self.request.choices
        if not self.turn.allowance.is_limited:
            self._charged = await self.turn.allowance.begin_call(prompt, prompt, prompt)
            self._is_begun = True
            return True
        wanted = request.max_tokens or self._longest_answer(prompt)
        least = min(wanted, max(_LEAST_ANSWER, request.least_bound))
        needs = (prompt + choices * each for each in (least, min(wanted, SMALL_ALLOWANCE), wanted))
        self._charged = await self.turn.allowance.begin_call(*needs)
        self._is_begun = self._charged > 0
        each = (self._charged - prompt) // choices
        self.is_budgets = each < wanted
        if self.is_budgets or request.max_tokens is None:
            self.bound = each
        return self._is_begun

    async def may_pass(self) -> bool:
        """Whether what was read so far may pass: it was reserved, or can be had now."""
        if not self.is_metered:
            return True
        counted = self.reader.counted
        total = self._prompt_estimate + self.reader.completion_tokens if counted is None else self._total()
        more = total - self._charged
        if more <= 0:
            return True
        if not await self.turn.allowance.take(more):
            self.excess = more
            return False
        self._charged += more
        return True

    @property
    def is_at_bound(self) -> bool:
        """It was the budget's bound at which the model stopped."""
        counted, is_final = self.counted()
        return self.is_budgets and (not is_final or counted.completion_tokens >= (self.bound or 0))

    def give_up(self, seconds: float) -> None:
        """It was sent, and is read no further `seconds` later: what the provider made of it till then counts.

        Of a stream that is what was seen, and what a model may have thought before it said anything. An answer in one piece
        is made to its end, seen or not: it counts as all that was reserved.
        """
        if self.reader.counted is not None or not self.turn.allowance.is_limited:
            return
        reserved = max(0, self._charged - self._prompt_estimate)
        is_silent = self.request.streams and not self.reader.completion_tokens
        self._unseen = min(reserved, int(seconds) * _SILENT_TOKENS_A_SECOND) if is_silent else 0
        if not self.request.streams:
            self._unseen = reserved

    def go_on(self) -> None:
        """It was not given up after all."""
        self._unseen = 0

    def counted(self) -> tuple[Counted, bool]:
        """What was used, as far as it is known now; and whether that is the provider's own count of all of it."""
        reader, counted = self.reader, self.reader.counted
        if counted is None:
            prompt, completion = self._prompt_estimate, max(self._unseen, reader.completion_tokens)
            return Counted(prompt, completion, prompt + completion), False
        prompt, completion, is_final = counted.prompt_tokens, counted.completion_tokens, reader.is_final
        if not is_final or completion * _BYTES_A_TOKEN_AT_MOST + _SHORT < reader.said_bytes:
            completion, is_final = max(completion, reader.completion_tokens), False
        if prompt * _ESTIMATES_A_TOKEN_AT_MOST + _SHORT * (prompt > 0) < self.request.text_tokens:
            prompt, is_final = self._prompt_estimate, is_final and prompt == 0
        if (prompt, completion) == (counted.prompt_tokens, counted.completion_tokens):
            return counted, is_final
        total = max(counted.total_tokens if reader.is_final else 0, prompt + completion)
        return _with(counted, prompt, completion, total), is_final

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
            cost_microdollars=self._cost(counted),
            own_key=self.target.is_own_key,
        )

    def charge(self, usage: CallUsage | None) -> None:
        """Put the allowance right by what was used; None: nothing was."""
        if not self._is_begun:
            return
        self._is_begun = False
        self.turn.allowance.end_call(self._charged, usage.total_tokens if usage is not None else 0)
        if usage is not None and not usage.estimated:
            estimate = self.request.text_tokens + self.request.file_tokens
            self.estimates.learn(self.turn.tenant_id, self.target.model, estimate, usage.prompt_tokens)

    def _estimated(self) -> int:
        """The prompt's tokens, no more than the model reads, where that is known."""
        request, window = self.request, self.target.context_window
        estimate = request.text_tokens + request.file_tokens
        estimate = self.estimates.tokens(self.turn.tenant_id, self.target.model, estimate)
        if request.has_unseen:
            estimate = max(estimate, window or _UNKNOWN_WINDOW)
        return min(estimate, window or estimate)

    def _longest_answer(self, prompt: int) -> int:
        """The bound of a request that has none: the model's own, as far as that is known."""
        target = self.target
        longest = target.longest_answer or (SMALL_ALLOWANCE if target.context_window is None else target.context_window)
        if target.context_window is not None:
            longest = min(longest, target.context_window - prompt)
        return max(longest, _LEAST_ANSWER, self.request.least_bound)

    def _cost(self, counted: Counted) -> int | None:
        """At the price of the model that was asked for, or of the one that has answered, if it is dearer."""
        target, served = self.target, self.reader.served
        prices = [target.price]
        if served is not None and served != target.model and target.price_of is not None:
            prices.append(target.price_of(served))
        return max((cost for one in prices if (cost := cost_microdollars(counted, one)) is not None), default=None)

    def _total(self) -> int:
        return self.counted()[0].total_tokens


def _with(counted: Counted, prompt: int, completion: int, total: int) -> Counted:
    return replace(
        counted,
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total,
        cached_tokens=min(counted.cached_tokens, prompt),
        cache_write_tokens=min(counted.cache_write_tokens, prompt),
        reasoning_tokens=min(counted.reasoning_tokens, completion),
    )

"""What a turn has used so far, and the ledger's rows of it. Pure.

Invariant: the sum of a turn's rows is what the turn is said to have used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from amplifier_api_server.control_plane.money import dollars
from amplifier_api_server.runtime import protocol
from amplifier_api_server.tenants.models import Turn, Usage


class CallUsage(Protocol):
    """What one model call used, as the model gateway says it."""

    @property
    def call_id(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...
    @property
    def estimated(self) -> bool: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def cache_write_tokens(self) -> int: ...
    @property
    def reasoning_tokens(self) -> int: ...
    @property
    def cost_microdollars(self) -> int | None: ...
    @property
    def own_key(self) -> bool: ...


class Whose(Protocol):
    """The turn that calls were made in."""

    @property
    def tenant_id(self) -> str: ...
    @property
    def member_id(self) -> str: ...
    @property
    def session_id(self) -> str: ...
    @property
    def id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Spent:
    """A sum of calls. Its cost is known where each call's is."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_microdollars: int | None = 0

    @classmethod
    def of_row(cls, turn: Turn) -> Spent:
        """As the turn's row has it."""
        return cls(
            turn.prompt_tokens,
            turn.completion_tokens,
            turn.cached_tokens,
            turn.reasoning_tokens,
            turn.cost_microdollars,
        )

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def plus(self, calls: Sequence[CallUsage]) -> Spent:
        found = self
        for call in calls:
            costs = found.cost_microdollars, call.cost_microdollars
            found = replace(
                found,
                prompt_tokens=found.prompt_tokens + call.prompt_tokens,
                completion_tokens=found.completion_tokens + call.completion_tokens,
                cached_tokens=found.cached_tokens + call.cached_tokens,
                reasoning_tokens=found.reasoning_tokens + call.reasoning_tokens,
                cost_microdollars=None if costs[0] is None or costs[1] is None else costs[0] + costs[1],
            )
        return found

    @property
    def usage(self) -> protocol.Usage:
        """As clients are told it."""
        return protocol.Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.total_tokens,
            cached_tokens=self.cached_tokens,
            reasoning_tokens=self.reasoning_tokens,
            cost_usd=dollars(self.cost_microdollars),
        )


@dataclass(slots=True)
class Tally:
    """What a turn has used so far: written to the ledger, and not yet."""

    written: Spent = Spent()
    is_counted: bool = False  # a ledger row with turns=1 exists
    pending: list[CallUsage] = field(default_factory=list)

    def spent(self) -> Spent:
        return self.written.plus(self.pending)


def ledger_rows(turn: Whose, calls: Sequence[CallUsage], now: datetime, *, count_turn: bool) -> list[Usage]:
    """Rows of `calls`; the first counts the turn if no row did so far, and there is one even without a call."""
    rows = [
        Usage(
            **_same(turn, now),
            source=f"call:{call.call_id}",
            model=call.model,
            provider=call.provider,
            prompt_tokens=call.prompt_tokens,
            completion_tokens=call.completion_tokens,
            total_tokens=call.prompt_tokens + call.completion_tokens,
            cached_tokens=call.cached_tokens,
            cache_write_tokens=call.cache_write_tokens,
            reasoning_tokens=call.reasoning_tokens,
            cost_microdollars=call.cost_microdollars,
            own_key=call.own_key,
            estimated=call.estimated,
        )
        for call in calls
    ]
    if count_turn:
        if not rows:
            rows.append(Usage(**_same(turn, now), source=f"turn:{turn.id}", model="", cost_microdollars=0))
        rows[0].turns = 1
    return rows


def _same(turn: Whose, now: datetime) -> dict[str, Any]:
    return {
        "tenant_id": turn.tenant_id,
        "member_id": turn.member_id,
        "session_id": turn.session_id,
        "turn_id": turn.id,
        "day": now.date(),
        "recorded_at": now,
    }

"""What a turn used is the sum of its rows in the ledger, however its calls were split into steps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane.model_gateway.turns import CallUsage
from amplifier_api_server.control_plane.sessions.tally import Spent, Tally, ledger_rows

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
TOKENS = st.integers(0, 10**7)


@dataclass
class Whose:
    tenant_id: str = "ten_1"
    member_id: str = "mem_1"
    session_id: str = "sess_1"
    id: str = "req_1"


def call(
    number: int, prompt: int, completion: int, cached: int, reasoning: int, cost: int | None, own: bool
) -> CallUsage:
    return CallUsage(
        call_id=f"call_{number}",
        model="m",
        provider="p",
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        estimated=False,
        finished_at=NOW,
        cached_tokens=cached,
        reasoning_tokens=reasoning,
        cost_microdollars=cost,
        own_key=own,
    )


STEPS = st.lists(
    st.lists(st.tuples(TOKENS, TOKENS, TOKENS, TOKENS, st.none() | st.integers(0, 10**9), st.booleans()), max_size=4),
    max_size=5,
)


@given(STEPS)
def test_the_turn_is_the_sum_of_its_rows_and_counted_once(steps):
    tally, rows, number = Tally(), [], 0
    for step in steps:
        calls = []
        for one in step:
            calls.append(call(number, *one))
            number += 1
        rows += ledger_rows(Whose(), calls, NOW, count_turn=not tally.is_counted)
        tally.written, tally.is_counted = tally.written.plus(calls), True
    rows += ledger_rows(Whose(), [], NOW, count_turn=not tally.is_counted)
    spent = tally.spent()
    for name in ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens"):
        assert getattr(spent, name) == sum(getattr(row, name) for row in rows), name
    costs = [row.cost_microdollars for row in rows]
    assert spent.cost_microdollars == (None if None in costs else sum(costs))
    assert sum(row.turns for row in rows) == 1
    assert len({row.source for row in rows}) == len(rows)


def test_a_turn_without_a_call_cost_nothing_and_one_without_a_price_cost_nobody_knows_what():
    assert Spent().usage.cost_usd == "0.000000"
    unpriced = Spent().plus(
        [call(1, 1, 1, 0, 0, 5, False), call(2, 1, 1, 0, 0, None, False), call(3, 1, 1, 0, 0, 5, True)]
    )
    assert unpriced.usage.cost_usd is None
    assert unpriced.usage.total_tokens == 6

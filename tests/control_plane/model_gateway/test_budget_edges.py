"""A finite budget: what passes, what is cut, and that no more than the budget ever passes."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amplifier_api_server.control_plane.clock import SystemClock
from amplifier_api_server.control_plane.limits.backend import Budget
from amplifier_api_server.control_plane.limits.memory import MemoryLimits
from amplifier_api_server.control_plane.model_gateway.budget import Allowance, PromptEstimates
from amplifier_api_server.control_plane.model_gateway.dialects.prompts import text_tokens

from .conftest import CHAT, ask, naming, streamed
from .scripted_upstream import DONE, answering, delta, usage_chunk, whole_answer


def endless(*, pace: float = 0):
    async def script(peer):
        await peer.stream()
        while True:
            await peer.chunk(delta("a"))
            await asyncio.sleep(pace)

    return script


async def test_a_spent_budget_is_402_and_asks_no_provider(house, upstream):
    client = await house.runtime()
    await house.turn(limit=3)
    got = await client.post(CHAT, json=ask(), headers=naming())
    assert (got.status_code, got.json()["code"], got.json()["error"]["code"]) == (
        402,
        "quota_exceeded",
        "quota_exceeded",
    )
    assert upstream.asked == []
    assert await house.turns.finish("req_1", abort=False) == []


async def test_a_stream_is_cut_at_the_budgets_edge_and_says_why(house, upstream):
    upstream.script = endless()
    client = await house.runtime()
    await house.turn(limit=5000, reserve=100)
    got = await streamed(client)
    assert got.error_code == "quota_exceeded"
    [usage] = await house.turns.finish("req_1", abort=False)
    assert usage.total_tokens == 5000
    assert usage.completion_tokens == len(got.text)
    # Nothing is left for a second turn.
    assert (await house.limits.standing(Budget("tokens:ten_1", "t", 5000, "x", 1, 1, 60))).remaining == 0


@pytest.mark.parametrize(
    "event",
    [
        b"data: x\n\n",
        b"data: [1, 2]\n\n",
        b'data: {"choices":[{"delta":{"content":"a"},"logprobs":[-Infinity]}]}\n\n',
        rb'data: {"choices":[{"delta":{"content":"\ud83d"}}]}' + b"\n\n",
        b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n',
    ],
)
async def test_what_can_hardly_be_read_or_not_at_all_counts_all_the_same(house, upstream, event):
    upstream.script = answering(event * 600, delta("", "stop"), DONE)
    client = await house.runtime()
    await house.turn(limit=300)
    async with client.stream("POST", CHAT, json=ask(stream=True), headers=naming()) as answer:
        got = b"".join([part async for part in answer.aiter_raw()])
    assert b"quota_exceeded" in got
    [usage] = await house.turns.finish("req_1", abort=False)
    assert usage.total_tokens == 300
    assert got.count(event) == usage.completion_tokens


async def test_the_next_call_of_a_cut_turn_is_402(house, upstream):
    upstream.script = endless()
    client = await house.runtime()
    await house.turn(limit=200)
    await streamed(client)
    assert (await client.post(CHAT, json=ask(), headers=naming())).status_code == 402


async def test_a_stream_grows_its_reservation_as_it_goes(house, upstream):
    upstream.script = answering(*[delta("a") for _ in range(6000)], delta("", "stop"), usage_chunk(20, 6000), DONE)
    client = await house.runtime()
    await house.turn(limit=100_000, reserve=100)
    got = await streamed(client)
    assert got.error_code is None
    assert len(got.text) == 6000
    standing = await house.limits.standing(Budget("tokens:ten_1", "t", 100_000, "x", 1, 1, 60))
    assert 6000 < standing.reserved < 8200


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, 4096),  # what every model takes
        ({"max_tokens": 50_000}, 50_000),
        ({"max_completion_tokens": 900_000}, "clamped"),
    ],
)
async def test_a_bound_is_only_ever_lowered(house, upstream, asked, sent):
    upstream.script = answering(delta("a", "stop"), DONE)
    client = await house.runtime()
    await house.turn(limit=100_000)
    await streamed(client, ask(**asked))
    body = upstream.asked[0].json
    got = body.get("max_tokens", body.get("max_completion_tokens"))
    if sent == "clamped":
        assert 99_900 < got < 100_000
        assert "max_tokens" not in body
    else:
        assert got == sent


async def test_near_the_edge_a_bound_is_added_so_that_the_provider_stops_too(house, upstream):
    upstream.script = answering(delta("a", "stop"), DONE)
    client = await house.runtime()
    await house.turn(limit=1000)
    await streamed(client, ask(n=2))
    assert 470 < upstream.asked[0].json["max_tokens"] <= 490


async def test_a_model_that_stops_at_the_budgets_bound_is_named_quota_exceeded_with_its_true_count(house, upstream):
    async def script(peer):
        bound = peer.asked.json["max_tokens"]
        await peer.stream()
        for _ in range(bound):
            await peer.chunk(delta("a"))
        await peer.chunk(delta("", "length"))
        await peer.chunk(usage_chunk(12, bound))
        await peer.chunk(DONE)
        await peer.end()

    upstream.script = script
    client = await house.runtime()
    await house.turn(limit=200)
    got = await streamed(client)
    assert got.error_code == "quota_exceeded"
    [usage] = await house.turns.finish("req_1", abort=False)
    assert (usage.prompt_tokens, usage.estimated) == (12, False)
    assert usage.total_tokens <= 200


async def test_a_model_that_stops_at_a_bound_of_its_own_is_left_alone(house, upstream):
    stream = [delta("a"), delta("", "length"), usage_chunk(12, 1), DONE]
    upstream.script = answering(*stream)
    client = await house.runtime()
    await house.turn(limit=200)
    got = await streamed(client)
    assert got.body == stream[0] + stream[1] + DONE


async def test_an_answer_in_one_piece_that_went_over_is_402_and_counted(house, upstream):
    async def script(peer):
        await peer.whole(200, whole_answer("x", 10, 9000))

    upstream.script = script
    client = await house.runtime()
    await house.turn(limit=500)
    assert (await client.post(CHAT, json=ask(), headers=naming())).status_code == 402
    assert (await house.turns.finish("req_1", abort=False))[0].total_tokens == 9010


async def test_a_running_count_of_the_provider_is_what_is_counted(build, upstream):
    house = await build(provider={"continuous_usage": True})

    async def script(peer):
        await peer.stream()
        said = 0
        while True:
            said += 10
            usage = {"prompt_tokens": 5, "completion_tokens": said, "total_tokens": said + 5}
            await peer.chunk(delta("a", usage=usage))
            await asyncio.sleep(0)

    upstream.script = script
    client = await house.runtime()
    await house.turn(limit=300)
    got = await streamed(client)
    assert upstream.asked[0].json["stream_options"]["continuous_usage_stats"] is True
    assert got.error_code == "quota_exceeded"
    [usage] = await house.turns.finish("req_1", abort=False)
    assert not usage.estimated
    assert 260 <= usage.total_tokens <= 300
    assert usage.completion_tokens == 10 * len(got.text)


@settings(max_examples=200, deadline=None)
@given(
    limit=st.integers(1, 5000),
    reserve=st.integers(1, 3000),
    calls=st.lists(st.lists(st.integers(1, 700), max_size=12), min_size=1, max_size=5),
    other=st.integers(0, 3000),
)
def test_whatever_calls_take_at_once_no_more_than_the_budget_passes(limit, reserve, calls, other):
    async def run():
        limits = MemoryLimits(SystemClock())
        budget = Budget("k", "tokens_per_day", limit, "req", reserve, 1, 60)
        reserved = (await limits.take([budget])).amounts["req"]
        passed = 0
        if other:  # another turn of the tenant takes a part
            await limits.take([Budget("k", "tokens_per_day", limit, "other", other, 1, 60)])
        allowance = Allowance(limits, budget, reserved)

        async def call(wanted):
            nonlocal passed
            for tokens in wanted:
                if await allowance.take(tokens):
                    passed += tokens
                await asyncio.sleep(0)

        await asyncio.gather(*map(call, calls))
        await allowance.close()
        standing = await limits.standing(budget)
        assert passed == allowance.used <= limit
        assert passed <= standing.reserved <= limit

    asyncio.run(run())


async def test_limits_that_cannot_be_asked_let_nothing_more_pass():
    class Away(MemoryLimits):
        async def extend(self, budget):
            raise ConnectionError("away")

    allowance = Allowance(Away(SystemClock()), Budget("k", "t", 10_000, "req", 100, 1, 60), 100)
    assert await allowance.take(100)
    assert not await allowance.take(1)


def test_a_tenants_texts_teach_nothing_about_another_tenants():
    estimates = PromptEstimates()
    estimates.learn("ten_a", "m", 1000, 4000)
    assert estimates.tokens("ten_a", "m", 1000) == 4000
    assert estimates.tokens("ten_b", "m", 1000) == 1000


def test_a_prompt_that_is_cheap_to_estimate_pays_for_no_other():
    estimates = PromptEstimates()
    for _ in range(50):
        estimates.learn("ten_a", "m", 1000, 10)
    assert estimates.tokens("ten_a", "m", 1000) == 1000


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 10**7), st.integers(-5, 10**7))), st.integers(0, 10**8))
def test_an_estimate_is_within_reason_whatever_providers_count(learned, estimate):
    estimates = PromptEstimates()
    for seen, counted in learned:
        estimates.learn("t", "m", seen, counted)
    assert max(1, estimate) <= estimates.tokens("t", "m", estimate) <= 16 * estimate + 1


@pytest.mark.parametrize(
    ("text", "most"),  # tokens that a tokenizer makes of it at most
    [
        ("The quick brown fox jumps over the lazy dog. " * 20, 220),
        ("xq zj kv " * 100, 600),
        ("1 2 3 4 " * 100, 800),
        ("}{)(][" * 100, 600),
        ("\U0001f9ff" * 100, 400),
    ],
)
def test_no_text_has_more_than_two_and_two_thirds_of_the_tokens_that_are_reserved_for_it(text, most):
    assert text_tokens(text.encode()) >= most * 3 / 8

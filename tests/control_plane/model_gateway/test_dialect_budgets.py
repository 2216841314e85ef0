"""A finite budget in every dialect: what is cut, how that is told, and that the true count is what is paid."""

from __future__ import annotations

import json

import pytest

from .conftest import told
from .scripted_upstream import answering
from .spoken import Messages, Responses

BOUNDS = {"chat": "max_tokens", "responses": "max_output_tokens", "messages": "max_tokens"}


async def asked(house, spoken, limit, **more):
    client = await house.runtime()
    await house.turn(limit=limit)
    got = await told(client, spoken.path, spoken.ask(**{"stream": True} | more))
    return got, await house.turns.finish("req_1", abort=False)


async def test_a_spent_budget_is_402_in_the_dialects_shape_and_asks_nobody(spoken_house, upstream, spoken):
    got, usages = await asked(await spoken_house(), spoken, 3)
    assert (got.status, got.json["code"], usages, upstream.asked) == (402, "quota_exceeded", [], [])
    assert got.json["error"]["type"] == ("billing_error" if spoken.name == "messages" else "insufficient_quota")
    assert got.headers["x-should-retry"] == "false"


async def test_a_stream_is_cut_at_the_budgets_edge_and_says_why(spoken_house, upstream, spoken):
    upstream.script = answering(*spoken.stream(["a"] * 500))
    got, [usage] = await asked(await spoken_house(), spoken, 200)
    assert spoken.code(got) == "quota_exceeded"
    assert (usage.completion_tokens, usage.total_tokens <= 200) == (len(spoken.text(got)), True)
    assert got.is_broken_off is (spoken.name == "messages")


async def test_the_provider_is_bound_by_what_is_left(spoken_house, upstream, spoken):
    upstream.script = answering(*spoken.stream(["a"]))
    await asked(await spoken_house(), spoken, 1000)
    assert 900 < upstream.asked[0].json[BOUNDS[spoken.name]] < 1000


async def test_an_answer_in_one_piece_that_went_over_is_402_and_paid_for(spoken_house, upstream, spoken):
    async def script(peer):
        await peer.whole(200, spoken.whole("x", 10, 9000))

    upstream.script = script
    got, [usage] = await asked(await spoken_house(), spoken, 500, stream=False)
    assert (got.status, usage.total_tokens, usage.estimated) == (402, 9010, False)


async def test_tokens_that_nobody_saw_are_paid_for_though_the_answer_is_cut(spoken_house, upstream, spoken):
    upstream.script = answering(*spoken.stream(["a", "b"], 10, 9000))  # it thought at length
    got, [usage] = await asked(await spoken_house(), spoken, 6000)
    assert (spoken.text(got), spoken.code(got)) == ("ab", "quota_exceeded")
    assert (usage.completion_tokens, usage.estimated) == (9000, False)


async def test_a_response_is_ended_as_the_vendor_ends_one_at_a_bound(build, upstream):
    spoken = Responses()
    upstream.script = answering(*spoken.stream(["word "] * 300))
    got, [usage] = await asked(await build(), spoken, 100)
    last = got.data[-1]
    assert (last["type"], last["response"]["status"], last["response"]["id"]) == (
        "response.incomplete",
        "incomplete",
        "resp_1",
    )
    assert last["response"]["incomplete_details"]["reason"] == "max_output_tokens"
    [item] = last["response"]["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", spoken.text(got))
    assert last["sequence_number"] == got.data[-2]["sequence_number"] + 1
    assert usage.completion_tokens == spoken.text(got).count("word")


@pytest.mark.parametrize("is_at_bound", [True, False])
async def test_a_model_that_stops_at_the_budgets_bound_is_told_from_one_that_stops_at_its_own(
    build, upstream, is_at_bound
):
    for spoken in (Responses(), Messages()):

        async def script(peer, spoken=spoken):
            bound = peer.asked.json[BOUNDS[spoken.name]]
            counted = bound if is_at_bound else 2
            details = {"incomplete_details": {"reason": "max_output_tokens"}}
            ends = {"kind": "incomplete", **details} if spoken.name == "responses" else {"stop": "max_tokens"}
            await answering(*spoken.stream(["a", "b"], 10, counted, **ends))(peer)

        upstream.script = script
        got, [usage] = await asked(await build(provider={"dialect": spoken.dialect}), spoken, 200)
        assert spoken.code(got) == ("quota_exceeded" if is_at_bound else None)
        assert (spoken.text(got), usage.estimated) == ("ab", False)
        assert got.is_broken_off is (is_at_bound and spoken.name == "messages")


async def test_a_bound_is_not_lower_than_the_vendor_takes(build, upstream):
    upstream.script = answering(*Responses().stream(["a"]))
    got, _ = await asked(await build(), Responses(), 30)
    assert (got.status, upstream.asked) == (402, [])
    await asked(await build(), Responses(), 40)
    assert 16 <= upstream.asked[0].json["max_output_tokens"] < 24
    upstream.script = answering(*Messages().stream(["a"]))
    thinking = {"type": "enabled", "budget_tokens": 32_000}
    house = await build(provider={"dialect": "anthropic"})
    got, _ = await asked(house, Messages(), 1025, thinking=thinking)
    assert (got.status, len(upstream.asked)) == (402, 1)
    house = await build(provider={"dialect": "anthropic"})
    await asked(house, Messages(), 1100, thinking=thinking)
    bound = upstream.asked[1].json["max_tokens"]
    assert 1025 <= bound < 1100
    assert upstream.asked[1].json["thinking"] == {"type": "enabled", "budget_tokens": bound - 1}


async def test_a_picture_is_not_estimated_by_its_base64(build, upstream):
    data = "A" * 400_000
    parts = {
        "/v1/responses": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": data}]}]},
        "/v1/messages": {
            "max_tokens": 9,
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "source": {"type": "base64", "media_type": "x", "data": data}}],
                }
            ],
        },
    }
    for spoken in (Responses(), Messages()):
        upstream.script = answering(*spoken.stream(["a"]))
        house = await build(provider={"dialect": spoken.dialect})
        client = await house.runtime()
        await house.turn(limit=5000)
        got = await told(client, spoken.path, parts[spoken.path] | {"stream": True})
        assert got.status == 200, json.loads(got.body)
        await house.turns.finish("req_1", abort=False)

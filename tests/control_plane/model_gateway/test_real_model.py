"""Through the gateway to a real model: real streams, true counts."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from .conftest import CHAT, ask, naming, streamed


@pytest.fixture
async def with_model(build, real_model):
    return await build(provider={"base_url": real_model.base_url, "models": (), "api_key": None}, idle_timeout=60)


async def asked_directly(real_model, body: dict) -> dict:
    async with httpx2.AsyncClient(timeout=60) as client:
        return (await client.post(f"{real_model.base_url}/chat/completions", json=body)).json()


async def test_a_stream_has_the_models_own_count(with_model, real_model):
    client = await with_model.runtime()
    await with_model.turn()
    body = ask("Once upon a time", max_tokens=16, temperature=0, seed=1)
    got = await streamed(client, body | {"stream_options": {"include_usage": True}})
    direct = await asked_directly(real_model, body)
    [usage] = await with_model.turns.finish("req_1", abort=False)
    assert got.error_code is None
    assert got.text == direct["choices"][0]["message"]["content"]
    assert len(got.events) > 8
    assert usage.estimated is False
    assert usage.prompt_tokens == direct["usage"]["prompt_tokens"]
    assert usage.completion_tokens == direct["usage"]["completion_tokens"] <= 16
    assert usage.total_tokens == direct["usage"]["total_tokens"]
    assert usage.model == real_model.name


async def test_a_budget_cuts_a_real_stream(with_model):
    client = await with_model.runtime()
    await with_model.turn(limit=60)
    got = await streamed(client, ask("Count: one two three four five six", temperature=0))
    assert got.error_code == "quota_exceeded"
    [usage] = await with_model.turns.finish("req_1", abort=False)
    assert usage.completion_tokens > 5
    assert usage.completion_tokens == len([one for one in got.events[:-1] if one["choices"][0]["delta"].get("content")])
    assert usage.total_tokens <= 65  # the prompt was an estimate until the model counted it


async def test_cancelling_a_real_stream_frees_the_model(with_model):
    client = await with_model.runtime()
    await with_model.turn()
    async with client.stream(
        "POST", CHAT, json=ask("Tell me", stream=True, max_tokens=3000), headers=naming()
    ) as answer:
        parts = answer.aiter_raw()
        for _ in range(5):
            await anext(parts)
        async with asyncio.timeout(60):
            [usage] = await with_model.turns.finish("req_1", abort=True)
    assert usage.estimated
    assert 1 <= usage.completion_tokens < 200

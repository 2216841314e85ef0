"""What every dialect keeps: bytes as they came, the provider's own count, and an honest end."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from .conftest import KEY, naming, told
from .scripted_upstream import answering
from .spoken import Messages, Responses, named


async def asked(house, upstream, spoken, chunks, **more):
    """One streamed call of these chunks; what the sandbox got, and what was counted."""
    upstream.script = answering(*chunks)
    client = await house.runtime()
    await house.turn()
    got = await told(client, spoken.path, spoken.ask(stream=True, **more))
    return got, await house.turns.finish("req_1", abort=False)


async def test_a_stream_passes_byte_for_byte_and_is_counted_by_the_provider(spoken_house, upstream, spoken):
    chunks = spoken.stream(["Hel", "lo ", "wörld 🌍"], prompt=11, completion=7)
    got, [usage] = await asked(await spoken_house(), upstream, spoken, chunks)
    assert (got.status, got.body) == (200, b"".join(chunks))
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.estimated) == (11, 7, 18, False)
    assert not got.is_broken_off


async def test_an_answer_in_one_piece_passes_byte_for_byte(spoken_house, upstream, spoken):
    house = await spoken_house()
    body = b" \n" + spoken.whole("hi", 7, 3)[:-1] + b',\t"unknown":  [1.50, "\\u00fc", null] }\r\n'

    async def script(peer):
        await peer.whole(200, body)

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    got = await told(client, spoken.path, spoken.ask())
    assert (got.status, got.body) == (200, body)
    [usage] = await house.turns.finish("req_1", abort=False)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated) == (7, 3, False)


@pytest.mark.parametrize("size", [1, 2, 7, 100, 1_000_000])
async def test_chunks_may_fall_anywhere_whatever_else_is_in_the_stream(spoken_house, upstream, spoken, size):
    first, *rest = spoken.stream(["Grüße, ", "Welt 🌍"], completion=5)
    oddities = b': a comment\r\n\r\nevent: x.unknown\ndata:{"type":"x.unknown", "new" :1}\n\nid: 7\nretry: 9\n\n'
    stream = first + oddities + b"".join(rest[:-1]).replace(b"\n", b"\r\n") + rest[-1]
    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    got, [usage] = await asked(await spoken_house(), upstream, spoken, chunks)
    assert got.body == stream
    assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated) == (11, 5, False)


async def test_a_stream_that_ends_early_ends_in_an_error_and_is_counted(spoken_house, upstream, spoken):
    chunks = spoken.stream(["a", "b", "c"])
    cut = chunks[: chunks.index(next(one for one in chunks if b'"b"' in one)) + 1]
    got, [usage] = await asked(await spoken_house(), upstream, spoken, cut)
    assert got.body.startswith(b"".join(cut))
    assert (spoken.text(got), spoken.code(got)) == ("ab", "provider_unavailable")
    assert (usage.completion_tokens, usage.estimated) == (2, True)
    assert got.is_broken_off is (spoken.name == "messages")  # whose clients would take a clean end for the whole


async def test_a_connection_that_breaks_in_mid_stream_ends_in_an_error(spoken_house, upstream, spoken):
    chunks = spoken.stream(["a", "b", "c"])

    async def script(peer):
        await peer.stream()
        await peer.chunk(b"".join(chunks[:5]))
        await peer.raw(b"40\r\ndata: {")
        peer.writer.close()

    house = await spoken_house(retries=2)
    upstream.script = script
    client = await house.runtime()
    await house.turn()
    got = await told(client, spoken.path, spoken.ask(stream=True))
    assert (got.status, spoken.code(got)) == (200, "provider_unavailable")
    assert len(upstream.asked) == 1  # never again once bytes reached the sandbox


async def test_an_error_in_mid_stream_passes_as_the_provider_said_it(spoken_house, upstream, spoken):
    chunks = spoken.stream(["a", "b"])[:-2]
    chunks = [*chunks[: next(i for i, one in enumerate(chunks) if b'"a"' in one) + 1], spoken.error_event()]
    got, [usage] = await asked(await spoken_house(retries=2), upstream, spoken, chunks)
    assert got.body == b"".join(chunks)
    assert (usage.completion_tokens, usage.estimated) == (1, True)
    assert len(upstream.asked) == 1


async def test_without_a_count_from_the_provider_ours_stands_in_and_says_so(spoken_house, upstream, spoken):
    chunks = spoken.stream([f"word{i}" for i in range(20)], usage=False)
    got, [usage] = await asked(await spoken_house(), upstream, spoken, chunks)
    assert got.body == b"".join(chunks)
    assert (usage.completion_tokens, usage.estimated) == (20, True)


async def test_silence_in_mid_stream_is_given_up(spoken_house, upstream, spoken):
    chunks = spoken.stream(["a", "b"])

    async def script(peer):
        await peer.stream()
        await peer.chunk(b"".join(chunks[:4]))
        await peer.hung_up()

    house = await spoken_house(idle_timeout=timedelta(seconds=0.15))
    upstream.script = script
    client = await house.runtime()
    await house.turn()
    got = await told(client, spoken.path, spoken.ask(stream=True))
    assert spoken.code(got) == "provider_unavailable"
    assert "silent" in got.data[-1].get("detail", "")


async def test_a_huge_event_and_a_huge_answer_are_cut(spoken_house, upstream, spoken):
    house = await spoken_house(max_response=1_000_000)
    first = b"".join(spoken.stream(["a"])[: 1 if spoken.name == "chat" else 4])  # with a word

    async def script(peer):
        await peer.stream()
        await peer.chunk(first)
        while True:
            await peer.chunk(b"data: " + b"x" * 60_000 + (b"\n\n" if len(upstream.asked) == 1 else b""))

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    for _ in range(2):
        got = await told(client, spoken.path, spoken.ask(stream=True))
        assert (got.status, len(got.body) <= 1_001_000) == (200, True)
        assert b"larger than allowed" in got.body


@pytest.mark.parametrize(
    ("kind", "body"), [("text/html", b"<html>"), ("application/json", b"[1]"), ("text/plain", b"")]
)
async def test_an_answer_that_is_none_is_told_in_the_dialects_shape(spoken_house, upstream, spoken, kind, body):
    async def script(peer):
        await peer.whole(200, body, content_type=kind)

    upstream.script = script
    house = await spoken_house()
    client = await house.runtime()
    await house.turn()
    got = await told(client, spoken.path, spoken.ask(stream=True))
    assert (got.status, got.json["code"]) == (502, "provider_unavailable")
    assert got.json.get("type") == ("error" if spoken.name == "messages" else None)
    assert got.json["error"]["message"] == got.json["detail"]
    assert await house.turns.finish("req_1", abort=False) == []


async def test_a_key_that_the_provider_echoes_is_redacted(spoken_house, upstream, spoken):
    got, _ = await asked(await spoken_house(), upstream, spoken, spoken.stream([f"it is {KEY}"]))
    assert (KEY in got.body.decode(), spoken.text(got)) == (False, "it is [redacted]")


async def test_what_is_no_request_is_400_in_the_dialects_shape(spoken_house, spoken):
    house = await spoken_house()
    client = await house.runtime()
    await house.turn()
    for body in [{}, {"input": 1, "messages": 1}, spoken.ask() | {"model": 7}]:
        got = await told(client, spoken.path, body)
        assert (got.status, got.json["code"]) == (400, "invalid_request")
        assert got.json["error"]["type"] == "invalid_request_error"


async def test_the_provider_gets_the_key_as_its_vendor_wants_it_and_nothing_of_the_sandboxs(
    spoken_house, upstream, spoken
):
    house = await spoken_house()
    upstream.script = answering(*spoken.stream(["x"]))
    client = await house.runtime()
    await house.turn()
    own = {"Authorization": "Bearer mine", "X-Api-Key": "mine", "X-Evil": "1", "OpenAI-Organization": "o"}
    personal = {"metadata": {"user_id": "alice"}, "service_tier": "priority", "top_p": 0.5}
    personal |= {} if spoken.name == "messages" else {"user": "alice", "safety_identifier": "alice"}
    await client.post(spoken.path, json=spoken.ask(stream=True, **personal), headers=naming() | own)
    [asked] = upstream.asked
    assert asked.path == spoken.path
    assert "alice" not in asked.body.decode()
    assert "mine" not in str(asked.headers)
    assert {"x-evil", "openai-organization"}.isdisjoint(asked.headers)
    assert ("service_tier" in asked.json, asked.json["top_p"], asked.json["model"]) == (False, 0.5, "m")
    key = asked.headers.get("x-api-key") if spoken.name == "messages" else asked.headers.get("authorization")
    assert key == (KEY if spoken.name == "messages" else f"Bearer {KEY}")


async def test_responses_are_asked_for_without_a_memory(build, upstream):
    house = await build()
    upstream.script = answering(*Responses().stream(["x"]))
    client = await house.runtime()
    await house.turn()
    stateful = {"store": True, "previous_response_id": "resp_0", "conversation": "c", "background": True}
    include = {"include": ["reasoning.encrypted_content"], "prompt_cache_key": "k"}
    await told(client, "/v1/responses", Responses().ask(stream=True, **stateful, **include))
    sent = upstream.asked[0].json
    assert {"previous_response_id", "conversation", "background"}.isdisjoint(sent)
    assert sent["store"] is False
    assert {"include": sent["include"], "prompt_cache_key": sent["prompt_cache_key"]} == include


async def test_messages_pass_on_the_version_and_betas_alone(build, upstream):
    house = await build(provider={"dialect": "anthropic"})
    upstream.script = answering(*Messages().stream(["x"]))
    client = await house.runtime()
    await house.turn()
    given = {"anthropic-version": "2099-01-01", "anthropic-beta": "a-1,b-2", "anthropic-dangerous": "x"}
    await client.post("/v1/messages?beta=true", json=Messages().ask(stream=True), headers=naming() | given)
    headers = upstream.asked[0].headers
    assert (headers["anthropic-version"], headers["anthropic-beta"]) == ("2099-01-01", "a-1,b-2")
    assert "anthropic-dangerous" not in headers


async def test_cached_and_reasoning_tokens_are_told_apart(build, upstream):
    told_by = {
        "/v1/chat/completions": {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "prompt_tokens_details": {"cached_tokens": 60},
            "completion_tokens_details": {"reasoning_tokens": 30},
        },
        "/v1/responses": {
            "input_tokens": 100,
            "output_tokens": 50,
            "input_tokens_details": {"cached_tokens": 60},
            "output_tokens_details": {"reasoning_tokens": 30},
        },
        "/v1/messages": {
            "input_tokens": 30,
            "cache_read_input_tokens": 60,
            "cache_creation_input_tokens": 10,
            "cache_creation": {"ephemeral_5m_input_tokens": 6, "ephemeral_1h_input_tokens": 4},
            "output_tokens": 50,
            "output_tokens_details": {"thinking_tokens": 30},
        },
    }

    async def script(peer):
        kind = {"type": "message", "content": []} if peer.asked.path == "/v1/messages" else {"output": []}
        await peer.whole(
            200, json.dumps(kind | {"choices": [{"message": {}}], "usage": told_by[peer.asked.path]}).encode()
        )

    upstream.script = script
    for number, path in enumerate(told_by):
        house = await build(provider={"dialect": "anthropic" if path == "/v1/messages" else "openai"})
        client = await house.runtime(f"run_{number}")
        await house.turn(runtime_id=f"run_{number}")
        await told(client, path, Messages().ask(input="x"))
        [usage] = await house.turns.finish("req_1", abort=False)
        assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (100, 50, 60)
        assert (usage.reasoning_tokens, usage.cache_write_tokens) == (30, 10 if path == "/v1/messages" else 0)


async def test_a_messages_stream_is_counted_by_its_start_and_its_latest_delta(build, upstream):
    house = await build(provider={"dialect": "anthropic"})
    spoken = Messages()
    more = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 40}}
    start = spoken.beginning(3, cache_read_input_tokens=70, cache_creation_input_tokens=20)
    chunks = [*start, spoken.delta("a"), named(more), named({"type": "message_stop"})]
    _, [usage] = await asked(house, upstream, spoken, chunks)
    assert (usage.prompt_tokens, usage.cached_tokens, usage.cache_write_tokens) == (93, 70, 20)
    assert (usage.completion_tokens, usage.estimated) == (40, False)


async def test_counting_a_prompts_tokens_is_the_providers_answer_and_free(build, upstream):
    house = await build(provider={"dialect": "anthropic"})

    async def script(peer):
        await peer.whole(200, b'{"input_tokens":  42}')

    upstream.script = script
    client = await house.runtime()
    await house.turn(limit=3)  # not enough for any call
    got = await told(client, "/v1/messages/count_tokens", {"model": "m", "messages": [], "metadata": {"user_id": "u"}})
    assert (got.status, got.body) == (200, b'{"input_tokens":  42}')
    assert (upstream.asked[0].path, upstream.asked[0].json) == (
        "/v1/messages/count_tokens",
        {"model": "m", "messages": []},
    )
    assert await house.turns.finish("req_1", abort=False) == []
    assert (await told(client, "/v1/messages/count_tokens", {"messages": []})).status == 403  # the turn is over


async def test_models_are_told_in_the_shape_of_the_vendor_whose_client_asks(build):
    house = await build(provider={"dialect": "anthropic", "models": ("claude-opus-4-1", "m")})
    client = await house.runtime()
    version = {"anthropic-version": "2023-06-01"}
    got = (await client.get("/v1/models/claude-opus-4-1", headers=version)).json()
    assert (got["type"], got["id"]) == ("model", "claude-opus-4-1")
    listed = (await client.get("/v1/models", headers=version)).json()
    assert ([one["id"] for one in listed["data"]], listed["has_more"]) == (["default", "claude-opus-4-1", "m"], False)
    assert (await client.get("/v1/models/m")).json()["object"] == "model"
    missing = await client.get("/v1/models/nothing", headers=version)
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")


async def test_a_dialect_that_no_provider_speaks_is_404(build):
    house = await build(provider={"responses": False})
    client = await house.runtime()
    await house.turn()
    got = await told(client, "/v1/responses", Responses().ask(model="m"))
    assert (got.status, got.json["code"]) == (404, "model_not_found")
    got = await told(client, "/v1/messages", Messages().ask(model="m"))
    assert (got.status, got.json["error"]["type"]) == (404, "not_found_error")

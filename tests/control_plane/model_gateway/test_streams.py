"""Answers of providers that behave, and of those that don't, as the sandbox and the ledger see them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from .conftest import CHAT, KEY, ask, naming, streamed
from .scripted_upstream import DONE, answering, delta, event, usage_chunk, whole_answer


async def usages(house, turn_id="req_1", abort=False):
    return await house.turns.finish(turn_id, abort=abort)


async def test_a_stream_passes_byte_for_byte_and_is_counted_by_the_provider(house, upstream):
    chunks = [delta("Hel"), delta("lo"), delta("", "stop"), usage_chunk(11, 2), DONE]
    upstream.script = answering(*chunks)
    client = await house.runtime()
    await house.turn()
    got = await streamed(client, ask(stream_options={"include_usage": True}))
    assert (got.status, got.body) == (200, b"".join(chunks))
    [usage] = await usages(house)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (11, 2, 13)
    assert (usage.model, usage.provider, usage.estimated) == ("m", "up", False)


async def test_the_usage_chunk_that_nobody_asked_for_is_left_out(house, upstream):
    upstream.script = answering(delta("Hi"), delta("", "stop"), usage_chunk(11, 1), DONE)
    client = await house.runtime()
    await house.turn()
    got = await streamed(client)
    assert got.body == delta("Hi") + delta("", "stop") + DONE
    assert (await usages(house))[0].total_tokens == 12


async def test_an_answer_in_one_piece_passes_as_it_is(house, upstream):
    body = whole_answer("hi", 7, 3)

    async def script(peer):
        await peer.whole(200, body)

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    got = await client.post(CHAT, json=ask(), headers=naming())
    assert (got.status_code, got.content) == (200, body)
    assert (await usages(house))[0].total_tokens == 10


async def test_the_provider_gets_the_key_and_nothing_of_the_sandbox_but_its_question(house, upstream):
    upstream.script = answering(delta("x", "stop"), DONE)
    client = await house.runtime()
    await house.turn()
    body = ask(stream=True, user="alice", metadata={"a": "b"}, store=True, service_tier="priority", temperature=0.5)
    await client.post(
        CHAT, json=body, headers=naming() | {"Authorization": "Bearer mine", "X-Evil": "1", "Cookie": "c"}
    )
    [asked] = upstream.asked
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert set(asked.headers) == {
        "host",
        "accept",
        "accept-encoding",
        "content-type",
        "user-agent",
        "authorization",
        "content-length",
    }
    assert asked.json == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "temperature": 0.5,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
async def test_chunks_may_fall_anywhere(house, upstream, size):
    stream = b": hello\r\n\r\n" + delta("Grüße, ") + delta("Welt 🌍") + b"data:" + delta("!", "stop")[6:]
    stream += b'data: {"choices": [],\r\ndata: "usage": {"prompt_tokens": 5, "completion_tokens": 3}}\r\n\r\n' + DONE
    upstream.script = answering(*[stream[i : i + size] for i in range(0, len(stream), size)])
    client = await house.runtime()
    await house.turn()
    got = await streamed(client, ask(stream_options={"include_usage": True}))
    assert got.body == stream
    [usage] = await usages(house)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated) == (5, 3, False)


async def test_a_stream_without_done_is_whole_if_the_model_said_that_it_finished(house, upstream):
    upstream.script = answering(delta("a"), delta("b", "stop"), usage_chunk(3, 2))
    client = await house.runtime()
    await house.turn()
    got = await streamed(client)
    assert (got.text, got.error_code) == ("ab", None)
    assert (await usages(house))[0].estimated is False


async def test_a_stream_that_ends_early_ends_in_an_error_and_is_counted(house, upstream):
    upstream.script = answering(delta("a"), delta("b"))
    client = await house.runtime()
    await house.turn()
    got = await streamed(client)
    assert (got.text, got.error_code) == ("ab", "provider_unavailable")
    [usage] = await usages(house)
    assert usage.estimated
    assert usage.completion_tokens == 2


async def test_a_connection_that_breaks_in_mid_stream_ends_in_an_error_and_is_counted(house, upstream):
    async def script(peer):
        await peer.stream()
        await peer.chunk(delta("a") + delta("b") + delta("c"))
        await peer.raw(b"40\r\ndata: {")
        peer.writer.close()

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    got = await streamed(client)
    assert (got.text, got.error_code) == ("abc", "provider_unavailable")
    assert (await usages(house))[0].completion_tokens == 3


async def test_an_error_in_mid_stream_passes_as_the_provider_said_it(house, upstream):
    error = event({"error": {"message": "overloaded", "type": "server_error", "code": "overloaded"}})
    upstream.script = answering(delta("a"), error)
    client = await house.runtime()
    await house.turn()
    got = await streamed(client)
    assert got.body == delta("a") + error
    [usage] = await usages(house)
    assert (usage.completion_tokens, usage.estimated) == (1, True)


async def test_without_a_count_from_the_provider_ours_stands_in_and_says_so(house, upstream):
    upstream.script = answering(*[delta(f"word{i}") for i in range(20)], delta("", "stop"), DONE)
    client = await house.runtime()
    await house.turn()
    await streamed(client, ask("four letters a token " * 20))
    [usage] = await usages(house)
    assert usage.estimated
    assert usage.completion_tokens == 20
    assert 100 < usage.prompt_tokens < 140


async def test_a_silent_provider_is_given_up_after_the_idle_timeout(build, upstream):
    house = await build(idle_timeout=timedelta(seconds=0.15))

    async def script(peer):
        await peer.stream()
        await peer.chunk(delta("a"))
        await peer.hung_up()

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    got = await streamed(client)
    assert (got.text, got.error_code) == ("a", "provider_unavailable")
    assert (await usages(house))[0].completion_tokens == 1


async def test_a_provider_that_never_answers_is_504_and_costs_nothing(build, upstream):
    house = await build(idle_timeout=timedelta(seconds=0.1))

    async def script(peer):
        await peer.hung_up()

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    got = await client.post(CHAT, json=ask(stream=True), headers=naming())
    assert got.status_code == 504
    assert got.json()["code"] == got.json()["error"]["code"] == "provider_unavailable"
    assert await usages(house) == []


async def test_a_call_has_an_end_even_where_bytes_keep_coming(build, upstream):
    house = await build(call_timeout=timedelta(seconds=0.3))

    async def script(peer):
        await peer.stream()
        while True:
            await peer.chunk(delta("a"))
            await asyncio.sleep(0.02)

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    got = await streamed(client)
    assert got.error_code == "provider_unavailable"
    assert (await usages(house))[0].completion_tokens == len(got.text)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_an_answer_larger_than_allowed_is_cut(build, upstream, is_stream):
    house = await build(max_response=2_000_000)

    async def script(peer):
        await peer.stream("text/event-stream" if is_stream else "application/json")
        for _ in range(100_000):
            await peer.chunk(delta("x" * 1000))

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    if is_stream:
        got = await streamed(client)
        assert got.error_code == "provider_unavailable"
        assert len(got.body) <= 2_000_000
    else:
        assert (await client.post(CHAT, json=ask(), headers=naming())).status_code == 502


async def test_one_endless_event_is_cut(build, upstream):
    house = await build()

    async def script(peer):
        await peer.stream()
        await peer.raw(b"FFFFFFF\r\ndata: ")
        while True:
            await peer.raw(b"x" * 65536)

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    got = await client.post(CHAT, json=ask(stream=True), headers=naming())
    assert got.status_code == 502


async def test_a_reader_that_lags_slows_the_provider(house, upstream):
    sent = 0
    body = delta("x" * 10_000)

    async def script(peer):
        nonlocal sent
        peer.writer.transport.set_write_buffer_limits(0)
        await peer.stream()
        for _ in range(3000):
            await peer.chunk(body)
            sent += len(body)
        await peer.chunk(delta("", "stop") + DONE)
        await peer.end()

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    async with client.stream("POST", CHAT, json=ask(stream=True), headers=naming()) as answer:
        parts = answer.aiter_raw()
        await anext(parts)
        before = -1
        while sent != before:  # until nothing moves any more
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 20_000_000  # sockets' own buffers and ours
        async for _ in parts:
            pass
    assert sent == 3000 * len(body)


async def test_two_calls_share_one_kept_connection(house, upstream):
    upstream.script = answering(delta("x", "stop"), DONE)
    client = await house.runtime()
    await house.turn()
    for _ in range(3):
        await streamed(client)
        await asyncio.sleep(0.01)
    assert (len(upstream.asked), upstream.connections) == (3, 1)


async def test_a_kept_connection_that_the_provider_closes_is_not_the_next_calls_trouble(house, upstream):
    async def script(peer):
        await answering(delta("x", "stop"), DONE)(peer)
        if len(upstream.asked) == 1:
            await peer.read_request()  # the next one is met by a closed door
            peer.cut()

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    await streamed(client)
    await asyncio.sleep(0.01)
    got = await streamed(client)
    assert (got.text, got.error_code) == ("x", None)
    assert upstream.connections == 2


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("text/html", b"<html>"), ("application/json", b"[1]"), ("application/json", b"{"), ("text/plain", b"")],
)
async def test_an_answer_that_is_no_completion_is_502(house, upstream, content_type, body):
    async def script(peer):
        await peer.whole(200, body, content_type=content_type)

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    got = await client.post(CHAT, json=ask(), headers=naming())
    assert (got.status_code, got.json()["code"]) == (502, "provider_unavailable")


async def test_what_is_not_http_is_502(house, upstream):
    async def script(peer):
        await peer.raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    got = await client.post(CHAT, json=ask(), headers=naming())
    assert (got.status_code, got.json()["code"]) == (502, "provider_unavailable")

"""The demo: what it obeys, what it counts, and that it says what it is."""

from __future__ import annotations

import time

import httpx2
import orjson
import pytest

from amplifier_api_server.control_plane.model_gateway.demo import Demo
from amplifier_api_server.control_plane.model_gateway.demo_answers import reply_to, token_count, tokens_of

from .conftest import CHAT, ask, naming, streamed

BASH = {"type": "function", "function": {"name": "bash", "description": "runs", "parameters": {"type": "object"}}}


@pytest.fixture
async def demo_house(build):
    return await build(provider=False)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def test_what_hooks_remind_a_model_of_is_no_prompt():
    reminder = user('<system-reminder source="a-hook">use bash {"command": "no"}</system-reminder>')
    prompt = user('use bash {"command": "id"}')
    (call,) = reply_to([prompt, reminder], {"bash"}, None).calls
    assert orjson.loads(call.arguments) == {"command": "id"}
    answered = [
        prompt,
        reminder,
        {"role": "assistant", "tool_calls": [call.as_json()]},
        {"role": "tool", "tool_call_id": call.id, "content": "root"},
        reminder,
    ]
    assert "".join(reply_to(answered, {"bash"}, None).tokens) == "The tool bash answered: root"
    assert "system-reminder" in "".join(reply_to([reminder], set(), None).tokens)


async def test_it_serves_where_nothing_is_configured_and_says_what_it_is(demo_house):
    assert demo_house.gateway.is_demo
    client = await demo_house.runtime()
    await demo_house.turn()
    listed = (await client.get("/v1/models")).json()["data"]
    assert [(one["id"], one["owned_by"]) for one in listed] == [
        ("default", "amplifier"),
        ("demo", "demo"),
        ("demo-messages/demo", "demo-messages"),
    ]
    got = (await client.post(CHAT, json=ask("what is love?"), headers=naming())).json()
    assert "demo model" in got["choices"][0]["message"]["content"]
    assert "demo" in got["system_fingerprint"]
    assert got["usage"]["completion_tokens"] > 5


async def test_it_streams_exactly_as_many_tokens_as_it_is_told(demo_house):
    client = await demo_house.runtime()
    await demo_house.turn()
    got = await streamed(client, ask("stream 25", stream_options={"include_usage": True}))
    deltas = [one for one in got.events[:-1] if one["choices"] and one["choices"][0]["delta"].get("content")]
    assert len(deltas) == 25
    assert got.events[-2]["usage"]["completion_tokens"] == 25
    [usage] = await demo_house.turns.finish("req_1", abort=False)
    assert (usage.completion_tokens, usage.estimated, usage.model) == (25, False, "demo")


async def test_it_keeps_its_pace_and_begins_at_once(demo_house):
    client = await demo_house.runtime()
    await demo_house.turn()
    started = time.perf_counter()
    async with client.stream("POST", CHAT, json=ask("stream 20 at 40/s", stream=True), headers=naming()) as answer:
        times = [time.perf_counter() - started async for _ in answer.aiter_raw()]
    assert times[0] < 0.45 < times[-1], "the first does not wait for its turn"


async def test_the_same_question_gets_the_same_bytes(demo_house):
    client = await demo_house.runtime()
    await demo_house.turn()
    assert (await streamed(client)).body == (await streamed(client)).body


async def test_one_piece_and_a_stream_say_and_count_the_same(demo_house):
    client = await demo_house.runtime()
    await demo_house.turn()
    whole = (await client.post(CHAT, json=ask("hello there"), headers=naming())).json()
    got = await streamed(client, ask("hello there", stream_options={"include_usage": True}))
    assert got.text == whole["choices"][0]["message"]["content"]
    assert got.events[-2]["usage"] == whole["usage"]


async def test_it_calls_tools_at_once_and_reports_their_results(demo_house):
    client = await demo_house.runtime()
    await demo_house.turn()
    prompt = 'use bash {"command": "echo 42"}\nuse bash {"command": "exit 3"}'
    got = await streamed(client, ask(prompt, tools=[BASH]))
    calls = [call for one in got.events[:-1] for call in one["choices"][0]["delta"].get("tool_calls", ())]
    assert [orjson.loads(call["function"]["arguments"])["command"] for call in calls] == ["echo 42", "exit 3"]
    assert [call["index"] for call in calls] == [0, 1]
    assert got.events[-2]["choices"][0]["finish_reason"] == "tool_calls"
    messages = [
        user(prompt),
        {"role": "assistant", "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "content": f"out {i}"} for i, call in enumerate(calls)),
    ]
    report = await streamed(client, ask(tools=[BASH]) | {"messages": messages})
    assert "The tool bash answered: out 0" in report.text
    assert "out 1" in report.text
    assert report.events[-2]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("prompt", ["use knife {}", 'use bash {"a": ', "use bash {1}"])
def test_a_call_that_it_can_not_make_it_explains(prompt):
    reply = reply_to([user(prompt)], {"bash"}, None)
    assert "can't call" in "".join(reply.tokens)
    assert reply.calls == []


@pytest.mark.parametrize(
    "prompt", ["please use bash", "I use bash {} daily", "the stream 5 at", "stream", "stream x", ""]
)
def test_only_a_line_of_its_own_is_obeyed(prompt):
    reply = reply_to([user(prompt)], {"bash"}, None)
    assert reply.calls == []
    assert "demo model" in "".join(reply.tokens)


def test_it_obeys_the_last_user_message_only():
    reply = reply_to([user("stream 500"), {"role": "assistant", "content": "x"}, user("hi")], set(), None)
    assert "demo model" in "".join(reply.tokens)


def test_a_new_question_after_a_tools_result_is_a_new_question():
    call = {"id": "c", "type": "function", "function": {"name": "bash", "arguments": "{}"}}
    messages = [
        user("use bash {}"),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "secret"},
        {"role": "assistant", "content": "done"},
        user("stream 3"),
    ]
    assert len(reply_to(messages, {"bash"}, None).tokens) == 3


def test_it_stops_at_the_bound_it_is_given():
    reply = reply_to([user("stream 100")], set(), 7)
    assert (len(reply.tokens), reply.finish_reason) == (7, "length")


def test_tokens_joined_are_the_text():
    for text in ["Hello, wörld!", "  a  b ", "\n\n", "supercalifragilistic", "日本語 テキスト", "a\tb\r\nc"]:
        assert "".join(tokens_of(text)) == text


def test_every_message_counts():
    assert token_count(user("one two three")) > token_count(user("one")) > 3


async def test_a_stranger_on_the_machine_gets_nothing_from_it():
    demo = Demo()
    url = await demo.start()
    try:
        async with httpx2.AsyncClient() as client:
            assert (await client.get(f"{url}/models")).status_code == 401
            for body in [b"", b"{}", b'{"messages": 1}', b'{"messages": [1]}', b'{"messages": [], "model": "x"}']:
                headers = {"Authorization": f"Bearer {demo.providers[0].api_key.get_secret_value()}"}
                got = await client.post(f"{url}/chat/completions", content=body, headers=headers)
                assert got.status_code in {400, 404}
    finally:
        await demo.stop()

"""The vendors' own clients, over real sockets, against the gateway: with the demo behind it, and with a provider that fails."""

from __future__ import annotations

import anthropic
import httpx
import httpx2
import openai
import pytest

from .conftest import naming
from .scripted_upstream import answering
from .spoken import Messages, Responses

SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}}
USE = 'use bash {"command": "echo 42"}'


async def openai_client(house, **options) -> openai.AsyncOpenAI:
    transport = httpx.AsyncHTTPTransport(uds=await house.listeners.open("run_1"))
    http_client = httpx.AsyncClient(transport=transport)
    given = {
        "api_key": "dummy",
        "base_url": "http://gateway/v1",
        "default_headers": naming(),
        "http_client": http_client,
    }
    return await house.stack.enter_async_context(openai.AsyncOpenAI(**(given | options)))


async def anthropic_client(house, **options) -> anthropic.AsyncAnthropic:
    transport = httpx2.AsyncHTTPTransport(uds=await house.listeners.open("run_1"))
    http_client = httpx2.AsyncClient(transport=transport)
    given = {"api_key": "dummy", "base_url": "http://gateway", "default_headers": naming(), "http_client": http_client}
    return await house.stack.enter_async_context(anthropic.AsyncAnthropic(**(given | options)))


@pytest.fixture
async def demo_house(build):
    house = await build(provider=False)
    await house.turn()
    return house


# The demo, in each dialect.


async def test_what_the_gateway_does_not_have_is_told_so_that_each_client_shows_it(demo_house):
    with pytest.raises(
        openai.NotFoundError, match="the gateway has no POST /v1/embeddings; it has POST /v1/chat"
    ) as got:
        await (await openai_client(demo_house)).embeddings.create(model="m", input="x")
    assert (got.value.code, got.value.body["type"]) == ("no_such_path", "invalid_request_error")
    client = await anthropic_client(demo_house)
    with pytest.raises(anthropic.NotFoundError, match="the gateway has no GET /v1/messages/batches") as refused:
        await client.messages.batches.list()
    assert refused.value.body["error"]["type"] == "not_found_error"


async def test_chat_completions_are_created_streamed_and_call_tools(demo_house):
    client = await openai_client(demo_house)
    user = {"role": "user", "content": "hello"}
    whole = await client.chat.completions.create(model="gpt-whatever", messages=[user], reasoning_effort="low")
    assert "demo model" in whole.choices[0].message.content
    assert whole.usage.completion_tokens_details.reasoning_tokens > 0
    stream = await client.chat.completions.create(
        model="m", messages=[user], stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices).startswith("This is the demo")
    assert chunks[-1].usage.total_tokens > 0
    tools = [{"type": "function", "function": {"name": "bash", "parameters": SCHEMA}}]
    said = await client.chat.completions.create(model="m", messages=[user | {"content": USE}], tools=tools)
    [call] = said.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("bash", '{"command":"echo 42"}')


async def test_responses_are_created_streamed_and_call_tools(demo_house):
    client = await openai_client(demo_house)
    whole = await client.responses.create(model="gpt-whatever", input="hello", reasoning={"effort": "low"})
    assert ("demo model" in whole.output_text, whole.status) == (True, "completed")
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    assert whole.usage.output_tokens_details.reasoning_tokens > 0
    tools = [{"type": "function", "name": "bash", "parameters": SCHEMA, "strict": False}]
    async with client.responses.stream(model="m", input=USE, tools=tools, store=True) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_response()
    assert {"response.created", "response.function_call_arguments.delta", "response.completed"} <= kinds
    [call] = final.output
    assert (call.type, call.name, call.arguments) == ("function_call", "bash", '{"command":"echo 42"}')
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "42"}]
    conversation = [{"role": "user", "content": USE}, call.model_dump(exclude_none=True), *results]
    async with client.responses.stream(model="m", input=conversation, reasoning={"summary": "auto"}) as stream:
        texts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert "".join(texts) == final.output_text == "The tool bash answered: 42"


async def test_messages_are_created_streamed_counted_and_call_tools(demo_house):
    client = await anthropic_client(demo_house)
    user = {"role": "user", "content": "hello"}
    thinking = {"type": "enabled", "budget_tokens": 1024}
    whole = await client.messages.create(model="claude-x", max_tokens=4000, messages=[user], thinking=thinking)
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert ("demo model" in whole.content[1].text, whole.stop_reason) == (True, "end_turn")
    tools = [{"name": "bash", "input_schema": SCHEMA}]
    asked = [{"role": "user", "content": [{"type": "text", "text": USE}]}]
    async with client.messages.stream(
        model="claude-x", max_tokens=4000, messages=asked, tools=tools, thinking=thinking
    ) as stream:
        final = await stream.get_final_message()
    thought, call = final.content
    assert (thought.type, call.type, call.name, call.input) == ("thinking", "tool_use", "bash", {"command": "echo 42"})
    assert (final.stop_reason, final.usage.output_tokens > 0) == ("tool_use", True)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "42"}]}
    back = [
        {"role": "assistant", "content": [thought.model_dump(), call.model_dump()]},
        {"role": "user", "content": [result]},
    ]
    async with client.messages.stream(model="claude-x", max_tokens=4000, messages=[*asked, *back]) as stream:
        assert "".join([text async for text in stream.text_stream]) == "The tool bash answered: 42"
    count = await client.messages.count_tokens(model="claude-x", messages=[user])
    assert count.input_tokens > 3


async def test_both_clients_list_and_find_models(demo_house):
    listed = [one.id async for one in (await openai_client(demo_house)).models.list()]
    assert listed[:2] == ["default", "demo"]
    client = await anthropic_client(demo_house)
    assert [one.id async for one in client.models.list()] == ["default", "demo-messages/demo"]
    assert (await client.models.retrieve("claude-x")).id == "claude-x"


async def test_an_anthropic_client_with_a_bearer_token_is_as_welcome(demo_house):
    client = await anthropic_client(demo_house, api_key=None, auth_token="dummy")
    answer = await client.messages.create(model="m", max_tokens=99, messages=[{"role": "user", "content": "hi"}])
    assert answer.role == "assistant"


# Failures.


async def calls_of(house):
    """One call of each kind, by its client, each as often as the client likes."""
    openai_one, anthropic_one = await openai_client(house, max_retries=3), await anthropic_client(house, max_retries=3)
    user = [{"role": "user", "content": "hello"}]
    return {
        "chat": lambda: openai_one.chat.completions.create(model="default", messages=user),
        "responses": lambda: openai_one.responses.create(model="default", input="hello"),
        "messages": lambda: anthropic_one.messages.create(model="default", max_tokens=9, messages=user),
    }


async def test_a_spent_budget_fails_at_once_and_is_not_tried_again(spoken_house, upstream, spoken):
    house = await spoken_house()
    await house.turn(limit=2)
    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as failed:
        await (await calls_of(house))[spoken.name]()
    assert failed.value.status_code == 402
    assert "quota_exceeded" in str(failed.value.body)
    assert failed.value.response.num_bytes_downloaded < 1000
    assert upstream.asked == []


async def test_a_refused_key_is_asked_with_once(spoken_house, upstream, spoken):
    async def script(peer):
        await peer.whole(401, spoken.error("invalid_api_key"))

    upstream.script = script
    house = await spoken_house(retries=2)
    await house.turn()
    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as failed:
        await (await calls_of(house))[spoken.name]()
    assert (failed.value.status_code, len(upstream.asked)) == (502, 1)


async def test_what_the_gateway_tried_as_often_as_it_may_is_not_multiplied_by_the_client(
    spoken_house, upstream, spoken
):
    async def script(peer):
        await peer.whole(500, spoken.error("server_error"))

    upstream.script = script
    house = await spoken_house(retries=1)
    await house.turn()
    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as failed:
        await (await calls_of(house))[spoken.name]()
    assert (failed.value.status_code, len(upstream.asked)) == (502, 2)


async def test_an_error_of_the_request_is_raised_as_the_vendors_own(spoken_house, upstream, spoken):
    async def script(peer):
        await peer.whole(400, spoken.error("invalid_request_error", "too long"))

    upstream.script = script
    house = await spoken_house()
    await house.turn()
    with pytest.raises((openai.BadRequestError, anthropic.BadRequestError), match="too long"):
        await (await calls_of(house))[spoken.name]()
    assert len(upstream.asked) == 1


async def test_a_cut_stream_of_messages_never_passes_for_a_whole_one(build, upstream):
    upstream.script = answering(*Messages().stream(["a", "b"])[:5])
    house = await build(provider={"dialect": "anthropic"})
    await house.turn()
    client = await anthropic_client(house)
    user = [{"role": "user", "content": "hi"}]
    seen = ""

    async def read():
        nonlocal seen
        async with client.messages.stream(model="m", max_tokens=9, messages=user) as stream:
            async for text in stream.text_stream:
                seen += text

    with pytest.raises(anthropic.APIStatusError, match="provider_unavailable"):
        await read()
    assert seen == "ab"


async def test_a_cut_stream_of_responses_never_passes_for_a_whole_one(build, upstream):
    upstream.script = answering(*Responses().stream(["a", "b"])[:5])
    house = await build()
    await house.turn()
    client = await openai_client(house)
    with pytest.raises(openai.APIError, match="before the answer was complete"):
        async with client.responses.stream(model="m", input="hi") as stream:
            await stream.get_final_response()


async def test_a_response_at_the_budgets_edge_is_incomplete_and_the_next_is_402(build, upstream):
    upstream.script = answering(*Responses().stream(["word "] * 300))
    house = await build()
    await house.turn(limit=100)
    client = await openai_client(house)
    events = [event async for event in await client.responses.create(model="m", input="hi", stream=True)]
    assert (events[-1].type, events[-1].response.status) == ("response.incomplete", "incomplete")
    assert events[-1].response.output_text.startswith("word word")
    with pytest.raises(openai.APIStatusError) as failed:
        await client.responses.create(model="m", input="hi")
    assert failed.value.status_code == 402

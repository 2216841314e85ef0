"""The three dialects as a session speaks them: what a request says, and what any division of a stream into chunks gives."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest
from amplifier_core import ChatRequest, LLMError, Message, ToolSpec
from hypothesis import given, settings
from hypothesis import strategies as st

from amplifier_api_server.runtime.dialects import chat_completions, messages, responses, sse
from amplifier_api_server.runtime.dialects.answer import Answer
from amplifier_api_server.runtime.dialects.calls import call_of

PNG = {"type": "base64", "media_type": "image/png", "data": "aGk="}
REQUEST = ChatRequest(
    messages=[
        Message(role="system", content="be brief"),
        Message(role="user", content=[{"type": "text", "text": "what is it"}, {"type": "image", "source": PNG}]),
        Message(
            role="assistant", content="I look", tool_calls=[{"id": "a", "tool": "bash", "arguments": {"command": "ls"}}]
        ),
        Message(role="tool", tool_call_id="a", name="bash", content="out"),
        Message(role="user", content="go on"),
    ],
    tools=[ToolSpec(name="bash", description="d", parameters={"type": "object", "properties": {}})],
    temperature=0.5,
    max_output_tokens=9,
)


def body(dialect: ModuleType, **config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dialect.body_of(call_of(REQUEST, "m", config, {}))))


def test_chat_completions_say_everything_in_their_words():
    told = body(chat_completions, default_model="ignored", base_url="ignored", top_p=0.1)
    assert told["messages"] == [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is it"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
            ],
        },
        {
            "role": "assistant",
            "content": "I look",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "bash", "arguments": '{"command":"ls"}'}}
            ],
        },
        {"role": "tool", "content": "out", "tool_call_id": "a"},
        {"role": "user", "content": "go on"},
    ]
    assert {name: told[name] for name in ("model", "temperature", "top_p", "max_tokens", "stream")} == {
        "model": "m",
        "temperature": 0.5,
        "top_p": 0.1,
        "max_tokens": 9,
        "stream": True,
    }
    assert told["tools"][0]["function"]["name"] == "bash"
    assert "base_url" not in told


def test_messages_say_everything_in_their_words():
    told = body(messages, enable_prompt_caching=False)
    assert told["system"] in ("be brief", [{"type": "text", "text": "be brief"}])
    assert [one["role"] for one in told["messages"]] == ["user", "assistant", "user"]
    first, called, result = (one["content"] for one in told["messages"])
    assert first[1] == {"type": "image", "source": PNG}
    assert called[-1] == {"type": "tool_use", "id": "a", "name": "bash", "input": {"command": "ls"}}
    assert result[0]["type"] == "tool_result"
    assert result[0]["tool_use_id"] == "a"
    assert result[-1]["text"] == "go on"
    assert told["max_tokens"] == 9
    assert told["tools"][0]["input_schema"] == {"type": "object", "properties": {}}


def test_responses_say_everything_in_their_words():
    told = body(responses)
    kinds = [one.get("type") or one["role"] for one in told["input"]]
    assert kinds.count("function_call") == kinds.count("function_call_output") == 1
    call = next(one for one in told["input"] if one.get("type") == "function_call")
    assert (call["call_id"], call["name"], json.loads(call["arguments"])) == ("a", "bash", {"command": "ls"})
    assert "be brief" in json.dumps(told)
    assert told["max_output_tokens"] == 9
    assert told["stream"] is True
    assert "previous_response_id" not in told


def test_thinking_goes_back_to_the_model_that_thought_it_as_it_was():
    thought = {"type": "thinking", "thinking": "hm", "signature": "s1g"}
    request = ChatRequest(
        messages=[
            Message(role="user", content="a"),
            Message(
                role="assistant",
                content=[thought, {"type": "text", "text": "I look"}],
                tool_calls=[{"id": "a", "tool": "bash", "arguments": {}}],
            ),
            Message(role="tool", tool_call_id="a", content="out"),
        ]
    )
    told = json.loads(
        json.dumps(messages.body_of(call_of(request, "m", {"extended_thinking": True, "max_tokens": 50_000}, {})))
    )
    assert told["messages"][1]["content"][0] == thought


def lines(*events: Any, named: bool = False) -> bytes:
    out = b""
    for event in events:
        out += f"event: {event['type']}\n".encode() if named else b""
        out += (
            b"data: "
            + (event if isinstance(event, bytes) else json.dumps(event, ensure_ascii=False).encode())
            + b"\n\n"
        )
    return out


def choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


CHAT = b": hello\r\n\r\n" + lines(
    choice({"role": "assistant", "content": "Grüße, "}),
    choice({"content": "世界 🙂"}),
    choice({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "bash", "arguments": '{"comm'}}]}),
    choice({"tool_calls": [{"index": 0, "function": {"arguments": 'and": "ls"}'}}]}),
    choice({}, "tool_calls"),
    {
        "choices": [],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 7,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    },
    b"[DONE]",
)
MESSAGES = lines(
    {
        "type": "message_start",
        "message": {"usage": {"input_tokens": 3, "cache_read_input_tokens": 2, "output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Grüße, "}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "世界 🙂"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "content_block_start",
        "index": 1,
        "content_block": {"type": "tool_use", "id": "c1", "name": "bash", "input": {}},
    },
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"comm'}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": 'and": "ls"}'}},
    {"type": "content_block_stop", "index": 1},
    {"type": "something_new", "x": 1},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 7}},
    {"type": "message_stop"},
    named=True,
)
_ITEM = {"type": "function_call", "id": "fc", "call_id": "c1", "name": "bash"}
RESPONSES = lines(
    {"type": "response.created", "response": {"id": "r", "status": "in_progress"}},
    {
        "type": "response.output_item.added",
        "output_index": 0,
        "item": {"type": "message", "id": "m", "role": "assistant"},
    },
    {"type": "response.output_text.delta", "output_index": 0, "item_id": "m", "content_index": 0, "delta": "Grüße, "},
    {"type": "response.output_text.delta", "output_index": 0, "item_id": "m", "content_index": 0, "delta": "世界 🙂"},
    {"type": "response.output_item.added", "output_index": 1, "item": _ITEM | {"arguments": ""}},
    {"type": "response.function_call_arguments.delta", "output_index": 1, "item_id": "fc", "delta": '{"comm'},
    {"type": "response.function_call_arguments.delta", "output_index": 1, "item_id": "fc", "delta": 'and": "ls"}'},
    {"type": "response.output_item.done", "output_index": 1, "item": _ITEM | {"arguments": '{"command": "ls"}'}},
    {
        "type": "response.completed",
        "response": {
            "id": "r",
            "status": "completed",
            "output": [],
            "usage": {
                "input_tokens": 5,
                "output_tokens": 7,
                "total_tokens": 12,
                "input_tokens_details": {"cached_tokens": 2},
            },
        },
    },
    named=True,
)
STREAMS = [(chat_completions, CHAT), (messages, MESSAGES), (responses, RESPONSES)]
NAMES = ["chat", "messages", "responses"]


def read(dialect: ModuleType, chunks: list[bytes]) -> tuple[Any, str, bool]:
    shown: list[str] = []
    answer = Answer(shown.append, "p")
    reader, events = dialect.Reader(answer), sse.Events("p")
    for found in [*(events.feed(chunk) for chunk in chunks), events.finish()]:
        for event in found:
            reader.done() if event == sse.DONE else reader.take(event)
    return answer.response("m"), "".join(shown), reader.is_done


@pytest.mark.parametrize(("dialect", "stream"), STREAMS, ids=NAMES)
def test_a_stream_is_an_answer(dialect: ModuleType, stream: bytes):
    response, shown, is_done = read(dialect, [stream])
    assert is_done
    assert shown == "Grüße, 世界 🙂"
    (call,) = response.tool_calls
    assert (call.id, call.name, call.arguments) == ("c1", "bash", {"command": "ls"})
    assert (response.usage.input_tokens, response.usage.output_tokens) == (5, 7)
    assert response.usage.cache_read_tokens == 2


@pytest.mark.parametrize(("dialect", "stream"), STREAMS, ids=NAMES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_division_into_chunks_gives_the_same(dialect: ModuleType, stream: bytes, data: st.DataObject):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=12)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    response, shown, is_done = read(dialect, chunks)
    whole = read(dialect, [stream])
    assert (response.model_dump(), shown, is_done) == (whole[0].model_dump(), whole[1], whole[2])


@pytest.mark.parametrize(("dialect", "stream"), STREAMS, ids=NAMES)
def test_a_stream_that_is_cut_is_not_done(dialect: ModuleType, stream: bytes):
    ends = {
        "chat": b'data: {"choices": [{"index": 0, "delta": {}',
        "messages": b"event: message_delta",
        "responses": b"event: response.completed",
    }
    cut = stream[: stream.index(ends[NAMES[[one for one, _ in STREAMS].index(dialect)]])]
    assert not read(dialect, [cut])[2]


@pytest.mark.parametrize(
    ("dialect", "event"),
    [
        (chat_completions, {"error": {"message": "overloaded", "type": "server_error"}}),
        (messages, {"type": "error", "error": {"type": "overloaded_error", "message": "overloaded"}}),
        (
            responses,
            {
                "type": "response.failed",
                "response": {"status": "failed", "error": {"code": "server_error", "message": "overloaded"}},
            },
        ),
    ],
    ids=NAMES,
)
def test_an_error_in_mid_stream_is_raised(dialect: ModuleType, event: dict[str, Any]):
    with pytest.raises(LLMError, match="overloaded"):
        read(dialect, [lines(event)])


@pytest.mark.parametrize("dialect", [chat_completions, messages, responses], ids=NAMES)
def test_what_is_no_json_is_an_error(dialect: ModuleType):
    with pytest.raises(LLMError):
        read(dialect, [b"data: {nonsense\n\n"])

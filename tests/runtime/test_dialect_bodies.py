"""What goes to a model, of any transcript whatever: by the vendors' own types, and by what their types can't say."""

from __future__ import annotations

import json
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
from amplifier_core import ChatRequest, Message, ToolSpec
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming
from pydantic import TypeAdapter

from amplifier_api_server.runtime.dialects import chat_completions, messages, responses
from amplifier_api_server.runtime.dialects.calls import Choice, call_of, choice_of
from amplifier_api_server.runtime.dialects.conversation import Conversation, ModelTurn, Turn, UserTurn, conversation_of
from amplifier_api_server.runtime.modules.context_simple.view import fitted

TYPES = {
    chat_completions: TypeAdapter(CompletionCreateParamsStreaming),
    responses: TypeAdapter(ResponseCreateParamsStreaming),
    messages: TypeAdapter(MessageCreateParamsStreaming),
}
DIALECTS = list(TYPES)
NAMES = ["chat", "responses", "messages"]
TOOL = ToolSpec(name="bash", description="d", parameters={"type": "object", "properties": {}})
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "sig"}
REASONING = {"type": "thinking", "thinking": "hm", "content": ["encrypted", "rs_1"]}
REDACTED = {"type": "redacted_thinking", "data": "xyz"}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
BY_URL = {"type": "image", "source": {"type": "url", "url": "https://pictures.example/cat.png"}}


def body(dialect: ModuleType, said: list[dict[str, Any]], model: str = "m", **config: Any) -> dict[str, Any]:
    """The body, after the vendor's own types took it."""
    asked = {name: config.pop(name) for name in list(config) if name in ChatRequest.model_fields}
    request = ChatRequest(messages=[Message(**one) for one in said], **asked)
    told = json.loads(json.dumps(dialect.body_of(call_of(request, model, config, {}))))
    consumed(TYPES[dialect].validate_python(told))
    return told


def consumed(value: Any) -> None:
    """Look at all of it: pydantic checks an Iterable's items when they are taken."""
    if isinstance(value, dict):
        for one in value.values():
            consumed(one)
    elif not isinstance(value, str) and hasattr(value, "__iter__"):
        for one in value:
            consumed(one)


def is_sound(conversation: Conversation) -> bool:
    """What every dialect demands, said once."""
    turns = conversation.turns
    ids = [call.id for turn in turns if isinstance(turn, ModelTurn) for call in turn.calls]
    return (
        bool(turns)
        and isinstance(turns[0], UserTurn)
        and not any(isinstance(turn, ModelTurn) and turn.is_empty for turn in turns)
        and not any(isinstance(turn, UserTurn) and not turn.parts for turn in turns)
        and all(type(one) is not type(other) or is_answered(one) for one, other in pairwise(turns))
        and (isinstance(turns[-1], UserTurn) or is_answered(turns[-1]))
        and len(ids) == len(set(ids))
    )


def is_answered(turn: Turn) -> bool:
    return isinstance(turn, ModelTurn) and bool(turn.calls) and all(call.result for call in turn.calls)


def user(text: Any = "hi") -> dict[str, Any]:
    return {"role": "user", "content": text}


def called(*ids: str, content: Any = "") -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"id": one, "tool": "bash", "arguments": {"command": "ls"}} for one in ids],
    }


def result(call_id: str, content: Any = "out") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "name": "bash", "content": content}


text_block = st.sampled_from(["", " ", "x", "ü😀"]).map(lambda text: {"type": "text", "text": text})
blocks = st.lists(st.one_of(text_block, st.sampled_from([THOUGHT, REASONING, REDACTED, IMAGE, BY_URL])), max_size=4)
ids = st.sampled_from(["a", "b", "c", "with space", "x" * 80, "ä"])
any_message = st.one_of(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["user", "assistant", "system", "developer"]),
        st.one_of(st.sampled_from(["", " ", "words"]), blocks),
    ),
    st.builds(lambda some, content: called(*some, content=content), st.lists(ids, min_size=1, max_size=3), blocks),
    st.builds(result, ids, st.one_of(st.sampled_from(["", "out"]), blocks)),
    st.builds(
        lambda call_id: user([{"type": "tool_result", "tool_call_id": call_id, "output": {"a": 1}}]),
        ids,
    ),
)


@given(st.lists(any_message, max_size=12), st.sampled_from([{}, {"extended_thinking": True}]))
@settings(max_examples=300, deadline=None)
def test_any_transcript_is_a_request_that_every_vendor_takes(said: list[dict[str, Any]], config: dict[str, Any]):
    assert is_sound(conversation_of([Message(**one) for one in said]))
    hold_chat(body(chat_completions, said, tools=[TOOL], **config))
    hold_responses(body(responses, said, tools=[TOOL], **config))
    hold_messages(body(messages, said, tools=[TOOL], **config))


def hold_chat(told: dict[str, Any]) -> None:
    said = [one for one in told["messages"] if one["role"] != "system"]
    assert said[0]["role"] == "user"
    waiting: list[str] = []
    for one in said:
        if one["role"] == "tool":
            assert one["tool_call_id"] == waiting.pop(0)
            continue
        assert not waiting
        assert one["content"] or one.get("tool_calls")
        waiting = [call["id"] for call in one.get("tool_calls", [])]
    assert not waiting
    assert said[-1]["role"] in ("user", "tool")


def hold_responses(told: dict[str, Any]) -> None:
    made = [one["call_id"] for one in told["input"] if one["type"] == "function_call"]
    answered = [one["call_id"] for one in told["input"] if one["type"] == "function_call_output"]
    assert made == answered
    assert len(made) == len(set(made))
    assert told["store"] is False
    for one, following in zip(told["input"], [*told["input"][1:], {}], strict=True):
        if one["type"] == "reasoning":  # it must stand before what came of it
            assert following.get("role") == "assistant" or following["type"] in ("reasoning", "function_call")


def hold_messages(told: dict[str, Any]) -> None:
    roles = [one["role"] for one in told["messages"]]
    assert roles[0] == roles[-1] == "user"
    assert all(one != other for one, other in pairwise(roles))
    waiting: list[str] = []
    for message in told["messages"]:
        kinds = [part["type"] for part in message["content"]]
        assert kinds
        results = [part["tool_use_id"] for part in message["content"] if part["type"] == "tool_result"]
        assert results == waiting
        assert kinds[: len(results)] == ["tool_result"] * len(results)
        waiting = [part["id"] for part in message["content"] if part["type"] == "tool_use"]
        assert all(part["text"].strip() for part in message["content"] if part["type"] == "text")
    assert json.dumps(told).count('"cache_control"') <= 4
    if "thinking" in told:
        assert told["max_tokens"] > told["thinking"]["budget_tokens"] >= 1024


@given(st.lists(any_message, max_size=12), st.integers(0, 400))
@settings(max_examples=150, deadline=None)
def test_what_compaction_leaves_of_any_transcript_is_a_request_too(said: list[dict[str, Any]], room: int):
    hold_messages(body(messages, fitted(said, room), tools=[TOOL]))
    hold_chat(body(chat_completions, fitted(said, room), tools=[TOOL]))


def test_what_is_said_between_a_call_and_its_result_comes_behind_it():
    said = [
        user(),
        called("a", "b"),
        {"role": "system", "content": "psst"},
        result("b"),
        user("more"),
        result("a", "A"),
    ]
    sent = body(chat_completions, said)["messages"]
    assert [(one["role"], one["content"]) for one in sent] == [
        ("user", "hi"),
        ("assistant", None),
        ("tool", "A"),
        ("tool", "out"),
        ("user", "<system-reminder>\npsst\n</system-reminder>\n\nmore"),
    ]


def test_doubled_and_odd_call_ids_are_made_plain_and_stay_with_their_results():
    said = [
        user(),
        called("a b"),
        result("a b", "1"),
        called("a b"),
        result("a b", "2"),
        called("a_b"),
        result("a_b", "3"),
    ]
    sent = body(messages, said)["messages"]
    pairs = [(one["content"][0], other["content"][0]) for one, other in zip(sent[1::2], sent[2::2], strict=True)]
    assert len({call["id"] for call, _ in pairs}) == 3
    assert all(call["id"] == told["tool_use_id"] for call, told in pairs)
    assert [told["content"][0]["text"] for _, told in pairs] == ["1", "2", "3"]


def test_calls_are_read_in_every_form_that_the_ecosystem_keeps_them_in():
    forms = [
        {"tool_calls": [{"id": "a", "tool": "bash", "arguments": {"x": 1}}], "content": ""},
        {"tool_calls": [{"id": "a", "function": {"name": "bash", "arguments": '{"x":1}'}}], "content": ""},
        {"content": [{"type": "tool_call", "id": "a", "name": "bash", "input": {"x": 1}}]},
    ]
    for form in forms:
        sent = body(messages, [user(), {"role": "assistant", **form}, result("a")])["messages"]
        assert sent[1]["content"] == [{"type": "tool_use", "id": "a", "name": "bash", "input": {"x": 1}}]


@pytest.mark.parametrize(
    ("dialect", "image", "expected"),
    [
        (chat_completions, IMAGE, {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}),
        (chat_completions, BY_URL, {"type": "image_url", "image_url": {"url": "https://pictures.example/cat.png"}}),
        (responses, IMAGE, {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "auto"}),
        (responses, BY_URL, {"type": "input_image", "image_url": "https://pictures.example/cat.png", "detail": "auto"}),
        (messages, IMAGE, IMAGE),
        (messages, BY_URL, BY_URL),
        (messages, {"type": "image", "source": {"url": "data:image/png;base64,aGk="}}, IMAGE),
    ],
)
def test_an_image_of_the_user(dialect: ModuleType, image: dict[str, Any], expected: dict[str, Any]):
    sent = body(dialect, [user([{"type": "text", "text": "look"}, image])], enable_prompt_caching=False)
    assert (sent.get("messages") or sent["input"])[-1]["content"][1] == expected


def test_an_image_of_a_tool():
    said = [user(), called("a"), result("a", [{"type": "text", "text": "a cat"}, IMAGE])]
    of_messages = body(messages, said, enable_prompt_caching=False)["messages"][-1]["content"][0]
    assert [part["type"] for part in of_messages["content"]] == ["text", "image"]
    assert [part["type"] for part in body(responses, said)["input"][-1]["output"]] == ["input_text", "input_image"]
    tool, shown = body(chat_completions, said)["messages"][-2:]
    assert (tool["content"], shown["role"], shown["content"][0]["type"]) == ("a cat", "user", "image_url")


# Thinking


def test_thoughts_go_back_to_the_model_that_had_them_and_to_no_other():
    thoughtful = called("a", content=[THOUGHT, REDACTED, {"type": "text", "text": "so"}]) | {"metadata": {"model": "m"}}
    said = [user(), thoughtful, result("a")]
    sent = body(messages, said, extended_thinking=True, max_tokens=9000)
    assert [part["type"] for part in sent["messages"][1]["content"]] == [
        *("thinking", "redacted_thinking", "text", "tool_use")
    ]
    assert sent["thinking"] == {"type": "enabled", "budget_tokens": 9000 - 1024}
    other = body(messages, said, model="n", extended_thinking=True)
    assert [part["type"] for part in other["messages"][1]["content"]] == ["text", "tool_use"]
    assert "thinking" not in other  # it can't begin in the middle of a turn
    assert "hm" not in str(body(chat_completions, said))


def test_encrypted_reasoning_goes_back_and_nothing_is_kept_at_the_provider():
    said = [user(), called("a", content=[REASONING]), result("a")]
    sent = body(responses, said, model="gpt-5.1")
    assert sent["input"][1] == {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "hm"}],
        "encrypted_content": "encrypted",
    }
    assert sent["include"] == ["reasoning.encrypted_content"]
    assert sent["reasoning"] == {"summary": "auto"}
    assert "include" not in body(responses, [user()], model="gpt-4.1")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"reasoning_effort": "low"}, {"type": "enabled", "budget_tokens": 4096}),
        ({"extended_thinking": True, "thinking_budget_tokens": 2000}, {"type": "enabled", "budget_tokens": 2000}),
        ({"extended_thinking": True, "thinking_type": "adaptive"}, {"type": "adaptive"}),
        ({"reasoning_effort": "none"}, None),
        ({"extended_thinking": True, "max_tokens": 1500}, None),
        ({}, None),
    ],
)
def test_how_much_is_thought_in_messages(config: dict[str, Any], expected: Any):
    sent = body(messages, [user()], temperature=0.3, **config)
    assert sent.get("thinking") == expected
    if expected is not None:
        assert "temperature" not in sent


def test_an_effort_is_the_openai_dialects_own_word():
    assert body(chat_completions, [user()], reasoning_effort="low")["reasoning_effort"] == "low"
    assert body(responses, [user()], reasoning_effort="low")["reasoning"]["effort"] == "low"
    assert "reasoning_effort" not in body(chat_completions, [user()], model="gpt-4.1", extended_thinking=True)
    assert (
        body(chat_completions, [user()], model="openai/o4-mini", extended_thinking=True)["reasoning_effort"] == "high"
    )


# What else a call says


@pytest.mark.parametrize(
    ("told", "choice"),
    [
        ("auto", Choice("auto")),
        ("any", Choice("required")),
        ("bash", Choice("tool", "bash")),
        ({"type": "function", "function": {"name": "bash"}}, Choice("tool", "bash")),
        ({"type": "tool", "name": "bash"}, Choice("tool", "bash")),
        ({"type": "any"}, Choice("required")),
        (None, None),
        ({}, None),
    ],
)
def test_a_tool_choice_is_read_in_any_vendors_words(told: Any, choice: Choice | None):
    assert choice_of(told) == choice


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("required", ["required", "required", {"type": "any"}]),
        ("none", ["none", "none", {"type": "none"}]),
        (
            "bash",
            [
                {"type": "function", "function": {"name": "bash"}},
                {"type": "function", "name": "bash"},
                {"type": "tool", "name": "bash"},
            ],
        ),
    ],
)
def test_a_tool_choice_in_each_dialect(choice: str, expected: list[Any]):
    assert [body(one, [user()], tools=[TOOL], tool_choice=choice)["tool_choice"] for one in DIALECTS] == expected


def test_a_bound_on_the_answer_in_each_dialects_words():
    assert body(chat_completions, [user()], max_tokens=7)["max_tokens"] == 7
    assert body(chat_completions, [user()], model="openai/gpt-5", max_tokens=7)["max_completion_tokens"] == 7
    assert body(responses, [user()], max_tokens=7)["max_output_tokens"] == 7
    assert body(messages, [user()], max_tokens=7)["max_tokens"] == 7
    assert body(messages, [user()])["max_tokens"] == messages.DEFAULT_MAX_TOKENS
    assert body(chat_completions, [user()], max_tokens=7, max_output_tokens=5)["max_tokens"] == 5


SCHEMA = {"type": "json_schema", "json_schema": {"type": "object"}, "strict": True}


def test_a_wished_form_in_each_dialect():
    named = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    chat, of_responses, of_messages = (body(one, [user()], response_format=SCHEMA) for one in DIALECTS)
    assert chat["response_format"] == {"type": "json_schema", "json_schema": named}
    assert of_responses["text"]["format"] == {"type": "json_schema", **named}
    assert '{"type":"object"}' in of_messages["system"][0]["text"]


def test_caching_is_hinted_at_tools_system_and_the_last_two_things_said():
    said = [{"role": "system", "content": "s"}, user("1"), {"role": "assistant", "content": "a"}, user("2")]
    said += [{"role": "assistant", "content": "b"}, user("3")]
    sent = body(messages, said, tools=[TOOL, TOOL.model_copy(update={"name": "other"})])
    mark = {"type": "ephemeral"}
    assert [tool.get("cache_control") for tool in sent["tools"]] == [None, mark]
    assert sent["system"][0]["cache_control"] == mark
    marks = [one["content"][-1].get("cache_control") for one in sent["messages"]]
    assert marks == [None, None, mark, None, mark]
    assert "cache_control" not in json.dumps(body(messages, said, tools=[TOOL], enable_prompt_caching=False))


def test_a_tool_of_the_vendors_own_goes_in_its_words():
    native = ToolSpec(name="web_search", parameters={}, type="web_search_20250305", max_uses=3)
    assert body(messages, [user()], tools=[native], enable_prompt_caching=False)["tools"] == [
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
    ]


@pytest.mark.parametrize("dialect", DIALECTS, ids=NAMES)
def test_keys_and_addresses_of_a_configuration_go_nowhere(dialect: ModuleType):
    sent = body(dialect, [user()], api_key="sk-secret", base_url="http://elsewhere.example", debug=True, retries=3)
    assert "secret" not in str(sent)
    assert "elsewhere" not in str(sent)
    assert not {"debug", "retries"} & set(sent)

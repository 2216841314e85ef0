"""Turns by each of the providers, over a real socket: thinking, usage, errors, and streams that misbehave."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amplifier_api_server.runtime.dialects import chat_completions, messages, responses, sse
from amplifier_api_server.runtime.dialects.answer import Answer
from tests.runtime.dialect_streams import REASONED, THOUGHTFUL, block, message, response, says_text, sent, text
from tests.runtime.fake_gateway import CutOff, Script, Write, answers, chunk, raw
from tests.runtime.hosting import Hosted, events, hosted, plan, tokens

CHAT = {"module": "provider-openai", "config": {"default_model": "m"}}
RESPONSES = {"module": "provider-openai", "config": {"default_model": "gpt-5.1", "api": "responses"}}
MESSAGES = {"module": "provider-anthropic", "config": {"default_model": "claude", "extended_thinking": True}}
PROVIDERS = {"chat": CHAT, "responses": RESPONSES, "messages": MESSAGES}
each = pytest.mark.parametrize("name", list(PROVIDERS))


@pytest.fixture
async def session() -> AsyncIterator[Hosted]:
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        async with hosted(Path(folder)) as one:
            yield one


def with_provider(provider: dict[str, Any], **config: Any) -> dict[str, Any]:
    made = {**provider, "config": {**provider["config"], **config}}
    return plan(tools=[{"module": "tool-todo", "config": {}}], providers=[made])


# Thinking


async def test_anthropics_thinking_is_not_shown_and_goes_back_as_it_was_also_in_another_runtime(session: Hosted):
    made = with_provider(MESSAGES)
    await session.open(made)
    session.gateway.scripts.extend([raw(message(*THOUGHTFUL, reason="tool_use")), raw(message(text(0, "done")))])
    turn = await session.ask()
    assert session.gateway.paths == ["/v1/messages", "/v1/messages"]
    assert tokens(turn) == "I look. done"
    back = session.gateway.requests[1]["messages"][1]["content"]
    assert back[:2] == [
        {"type": "thinking", "thinking": "let me see 🙂", "signature": "sig"},
        {"type": "redacted_thinking", "data": "xyz"},
    ]
    assert [part["type"] for part in back[2:]] == ["text", "tool_use"]
    kept = session.gateway.checkpoints[-1]["messages"]
    await session.open(made, transcript=kept)
    session.gateway.scripts.append(raw(message(text(0, "again"))))
    assert (await session.ask("more")).result.response == "again"
    assert session.gateway.requests[-1]["messages"][1]["content"] == back


async def test_openais_reasoning_is_not_shown_and_goes_back_encrypted(session: Hosted):
    await session.open(with_provider(RESPONSES))
    session.gateway.scripts.extend([raw(response(*REASONED)), raw(response(*says_text(0, "done")))])
    turn = await session.ask()
    assert session.gateway.paths == ["/v1/responses", "/v1/responses"]
    assert tokens(turn) == "I look. done"
    kinds = [one["type"] for one in session.gateway.requests[1]["input"]]
    assert kinds == ["message", "reasoning", "message", "function_call", "function_call_output"]
    assert session.gateway.requests[1]["input"][1]["encrypted_content"] == "enc"


async def test_thoughts_that_no_provider_takes_back_are_not_kept(session: Hosted):
    await session.open(with_provider(CHAT))
    stream = chunk({"reasoning_content": "hm"}) + chunk({"content": "so"}, "stop") + b"data: [DONE]\n\n"
    session.gateway.scripts.append(raw(stream))
    turn = await session.ask()
    assert tokens(turn) == "so"
    assert session.gateway.checkpoints[-1]["messages"][-1] == {"role": "assistant", "content": "so"}


# Counts


@pytest.mark.parametrize(
    ("name", "stream", "expected"),
    [
        (
            "messages",
            message(text(0, "x")),
            {"input_tokens": 13, "output_tokens": 20, "cache_read_tokens": 3, "cache_write_tokens": 4},
        ),
        (
            "responses",
            response(*says_text(0, "x")),
            {"input_tokens": 10, "output_tokens": 20, "cache_read_tokens": 3, "reasoning_tokens": 15},
        ),
        (
            "chat",
            chunk(
                {"content": "x"},
                "stop",
                usage={
                    "prompt_tokens": 10,
                    "completion_tokens": 20,
                    "prompt_tokens_details": {"cached_tokens": 3},
                    "completion_tokens_details": {"reasoning_tokens": 15},
                },
            ),
            {"input_tokens": 10, "output_tokens": 20, "cache_read_tokens": 3, "reasoning_tokens": 15},
        ),
        ("chat", chunk({"content": "x"}, "stop"), {}),
    ],
)
async def test_hooks_hear_what_was_read_from_a_cache_written_to_one_and_thought(
    session: Hosted, name: str, stream: bytes, expected: dict[str, int]
):
    await session.open(with_provider(PROVIDERS[name]))
    heard: list[dict[str, Any]] = []

    async def hear(_: str, data: dict[str, Any]) -> None:
        heard.append(data)

    session.host.listen("llm:response", hear)
    session.gateway.scripts.append(raw(stream))
    assert (await session.ask()).result.status == "completed"
    assert heard[0]["usage"] == expected
    assert heard[0]["status"] == "ok"


@pytest.mark.parametrize(
    ("name", "stream", "reason"),
    [
        ("messages", message(text(0, "x"), reason="max_tokens"), "length"),
        ("messages", message(text(0, "x"), reason="stop_sequence"), "stop"),
        ("messages", message(text(0, "x"), reason="refusal"), "content_filter"),
        ("messages", message(text(0, "x"), reason="pause_turn"), "pause_turn"),
        (
            "responses",
            response(*says_text(0, "x"), status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
            "length",
        ),
        ("responses", response(*says_text(0, "x")), "stop"),
        ("chat", chunk({"content": "x"}, "length"), "length"),
    ],
)
async def test_why_an_answer_stopped_is_told_in_the_same_words(session: Hosted, name: str, stream: bytes, reason: str):
    await session.open(with_provider(PROVIDERS[name]))
    heard: list[Any] = []

    async def hear(_: str, data: dict[str, Any]) -> None:
        heard.append(data["finish_reason"])

    session.host.listen("llm:response", hear)
    session.gateway.scripts.append(raw(stream))
    await session.ask()
    assert heard == [reason]


async def test_hooks_that_watch_a_stream_hear_its_pieces(session: Hosted):
    await session.open(with_provider(MESSAGES))
    heard: list[tuple[str, str]] = []

    async def hear(_: str, data: dict[str, Any]) -> None:
        heard.append((data["block_type"], data["text"]))

    session.host.listen("llm:stream_block_delta", hear)
    session.gateway.scripts.extend([raw(message(*THOUGHTFUL, reason="tool_use")), raw(message(text(0, "done")))])
    turn = await session.ask()
    joined = {kind: "".join(piece for one, piece in heard if one == kind) for kind, _ in heard}
    assert joined == {"thinking": "let me see 🙂", "text": "I look. done", "tool_use": '{"action": "list"}'}
    assert tokens(turn) == "I look. done"


# Errors


def body_of_error(name: str, kind: str) -> dict[str, Any]:
    error = {"message": "why", "type": kind, "code": None}
    return {"type": "error", "error": {"type": kind, "message": "why"}} if name == "messages" else {"error": error}


@each
@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (402, "quota_exceeded", "quota_exceeded"),
        (404, "not_found_error", "not_found_error"),
        (429, "rate_limit_error", "rate_limit_error"),
        (503, "overloaded_error", "overloaded_error"),
    ],
)
async def test_a_refusal_is_asked_once_and_keeps_its_code(
    session: Hosted, name: str, status: int, kind: str, code: str
):
    await session.open(with_provider(PROVIDERS[name]))
    session.gateway.default = answers(status, body_of_error(name, kind))
    turn = await session.ask()
    assert turn.result.problem["code"] == code
    assert len(session.gateway.requests) == 1


ERRORS_IN_STREAMS = [
    ("chat", sent({"error": {"message": "why", "code": "quota_exceeded"}}), "quota_exceeded"),
    ("messages", sent({"type": "error", "error": {"type": "overloaded_error", "message": "why"}}), "overloaded_error"),
    ("messages", sent({"type": "error", "error": {"type": "quota_exceeded", "message": "why"}}), "quota_exceeded"),
    ("responses", sent({"type": "error", "code": "rate_limit_exceeded", "message": "why"}), "rate_limit_exceeded"),
    ("responses", sent({"type": "error", "code": None, "message": "why"}), "model_failed"),
    ("responses", response(status="failed", error={"code": "server_error", "message": "why"}), "server_error"),
    ("responses", sent({"error": {"message": "why", "code": "quota_exceeded"}}), "quota_exceeded"),
    (
        "responses",
        response(status="incomplete", incomplete_details={"reason": "max_output_tokens", "code": "quota_exceeded"}),
        "quota_exceeded",
    ),
    (
        "messages",
        sent({"type": "error", "error": {"type": "billing_error", "message": "why", "code": "quota_exceeded"}}),
        "quota_exceeded",
    ),
]


@pytest.mark.parametrize(("name", "stream", "code"), ERRORS_IN_STREAMS)
async def test_an_error_in_mid_stream_fails_the_turn_by_name(session: Hosted, name: str, stream: bytes, code: str):
    begun = {"chat": chunk({"content": "a"}), "messages": sent(*text(0, "a")), "responses": sent(*says_text(0, "a"))}
    await session.open(with_provider(PROVIDERS[name]))
    session.gateway.scripts.append(raw(begun[name], stream))
    turn = await session.ask()
    assert turn.result.problem["code"] == code
    assert tokens(turn) == "a"
    assert session.gateway.checkpoints[-1].get("messages", []) == []


@each
async def test_a_stream_that_ends_early_is_no_answer(session: Hosted, name: str):
    begun = {"chat": chunk({"content": "a"}), "messages": sent(*text(0, "a")), "responses": sent(*says_text(0, "a"))}
    await session.open(with_provider(PROVIDERS[name]))

    async def broken(body: dict[str, Any], write: Write) -> None:
        await write(begun[name])
        raise CutOff

    scripts: list[Script] = [raw(begun[name]), broken]
    for script in scripts:
        session.gateway.scripts.append(script)
        assert (await session.ask()).result.problem["code"] == "model_failed"


@each
@pytest.mark.parametrize("pings", [False, True])
async def test_a_silent_model_is_given_up_also_when_it_goes_on_pinging(session: Hosted, name: str, pings: bool):
    session.claim = session.claim.model_copy(update={"model_idle_timeout_seconds": 0.1})
    await session.open(with_provider(PROVIDERS[name]))

    async def silent(body: dict[str, Any], write: Write) -> None:
        await write(b": hello\n\n")
        while True:
            await asyncio.sleep(0.02)
            if pings:
                await write(b": ping\n\n" if name == "chat" else sent({"type": "ping"}))

    session.gateway.scripts.append(silent)
    assert (await session.ask()).result.problem["code"] == "model_timeout"


async def test_arguments_that_were_cut_off_are_an_error_that_the_model_reads(session: Hosted):
    await session.open(with_provider(MESSAGES))
    half = block(
        0,
        {"type": "tool_use", "id": "toolu_1", "name": "todo", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"action": "li'},
    )
    session.gateway.scripts.extend([raw(message(half, reason="max_tokens")), raw(message(text(0, "sorry")))])
    turn = await session.ask()
    assert turn.result.response == "sorry"
    result = session.gateway.requests[-1]["messages"][-1]["content"][0]
    assert "not JSON" in result["content"][0]["text"]


WHOLE = {
    "chat": {"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]},
    "messages": {"type": "message", "content": [{"type": "text", "text": "whole"}], "stop_reason": "end_turn"},
    "responses": {
        "status": "completed",
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "whole"}]}],
    },
}


@each
async def test_an_answer_that_is_not_streamed_is_taken_too(session: Hosted, name: str):
    await session.open(with_provider(PROVIDERS[name]))
    session.gateway.scripts.append(answers(200, WHOLE[name]))
    turn = await session.ask()
    assert (tokens(turn), turn.result.status) == ("whole", "completed")
    assert [event for event, _ in events(turn)] == ["token", "complete"]


async def test_a_filter_that_leaves_nothing_is_told_by_name(session: Hosted):
    await session.open(with_provider(MESSAGES))
    session.gateway.scripts.append(raw(message(reason="refusal")))
    assert (await session.ask()).result.problem["code"] == "content_filtered"


# Models and configuration

LISTED = [
    {"id": "claude", "context_window": 200_000, "max_output_tokens": 64_000},
    {"id": "small", "context_window": 8_000, "max_output_tokens": 8_000},
    {"id": "unknown"},
    {"no": "id"},
]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 50_000),  # a quarter of the window
        ({"default_model": "anthropic/claude"}, 50_000),
        ({"default_model": "small"}, 2_000),
        ({"default_model": "unknown"}, messages.DEFAULT_MAX_TOKENS),
        ({"max_tokens": 77}, 77),
    ],
)
async def test_an_answer_to_anthropic_is_bounded_by_what_the_model_can_say(
    session: Hosted, config: dict[str, Any], expected: int
):
    session.gateway.models = LISTED
    session.gateway.default = raw(message(text(0, "x")))
    await session.open(with_provider(MESSAGES, extended_thinking=False, **config))
    await session.ask()
    assert session.gateway.requests[-1]["max_tokens"] == expected


async def test_a_provider_lists_what_the_gateway_lists(session: Hosted):
    session.gateway.models = LISTED
    host = await session.open(with_provider(MESSAGES))
    provider = host.providers["anthropic"]
    assert [one.id for one in await provider.list_models()] == ["claude", "small", "unknown"]
    assert provider.get_info().defaults == {
        "model": "claude",
        "context_window": 200_000,
        "max_output_tokens": 50_000,
    }
    assert await provider.limits("small") == (8_000, 2_000)


@pytest.mark.parametrize(
    ("module", "config", "model"),
    [
        ("provider-azure-openai", {"default_deployment": "gpt-4o"}, "gpt-4o"),
        ("provider-azure-openai", {"provider": "azure", "default_model": "gpt-4o"}, "azure/gpt-4o"),
        ("provider-ollama", {"provider": "ollama", "default_model": "ollama/qwen"}, "ollama/qwen"),
        ("provider-vllm", {}, "default"),
    ],
)
async def test_a_providers_model_and_the_gateways_provider_for_it(
    session: Hosted, module: str, config: dict[str, Any], model: str
):
    host = await session.open(with_provider({"module": module, "config": config}))
    assert list(host.providers) == [module.removeprefix("provider-")]
    await session.ask()
    assert session.gateway.requests[-1]["model"] == model


# Streams in any division

STREAMS: list[tuple[ModuleType, bytes]] = [
    (messages, message(*THOUGHTFUL, reason="tool_use")),
    (responses, response(*REASONED)),
    (chat_completions, chunk({"reasoning": "let me see 🙂"}) + chunk({"content": "ü"}, "stop") + b"data: [DONE]"),
]


@pytest.mark.parametrize(("dialect", "stream"), STREAMS, ids=["messages", "responses", "chat"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_thinking_comes_out_the_same_in_any_division(
    dialect: ModuleType, stream: bytes, line_end: bytes, data: st.DataObject
):
    stream = b": hello\n\nretry: 10\n" + stream
    stream = stream.replace(b"\n", line_end)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=20)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(dialect, pieces) == read(dialect, [stream.replace(line_end, b"\n")])
    assert read(dialect, [stream[at : at + 1] for at in range(len(stream))]) == read(dialect, pieces)


def read(dialect: ModuleType, pieces: list[bytes]) -> tuple[Any, str, bool]:
    shown: list[str] = []
    answer = Answer(shown.append, "p")
    reader, stream = dialect.Reader(answer), sse.Events("p")
    for found in [*(stream.feed(one) for one in pieces), stream.finish()]:
        for event in found:
            if isinstance(event, str):
                reader.done()
            else:
                reader.take(event)
    return answer.response("m").model_dump(), "".join(shown), reader.is_done

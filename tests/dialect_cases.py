"""What providers really send, and what is to be made of it: one table for whoever reads the dialects.

A row is a stream, or one answer, as it comes from a provider, and the answer that it is. The runtime reads all of it; the model
gateway reads what it counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

BASH = {"type": "function", "name": "bash"}
LS, PWD = '{"command":"ls"}', '{"command":"pwd"}'
SMILE = "\U0001f600"


@dataclass(frozen=True)
class Case:
    name: str
    dialect: Literal["chat", "messages", "responses"]
    sent: bytes
    text: str = ""
    calls: Sequence[tuple[str, Any]] = ()  # names and arguments, in their order
    ids: Sequence[str] | None = None
    finish: str = "stop"
    usage: dict[str, int] = field(default_factory=dict)  # by core's names
    thinking: str = ""
    fails: str | None = None  # the code of the failure, "" where it has none
    is_stream: bool = True


def events(*told: Any) -> bytes:
    """Each as an event's data: bytes as they are, all else as JSON."""
    return b"".join(b"data: " + (one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n\n" for one in told)


# Chat completions.


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}], **more}


def call(arguments: str | None = None, *, name: str | None = None, **more: Any) -> dict[str, Any]:
    """A piece of a call; `more` are its `id` and `index`."""
    function = {"name": name, "arguments": arguments}
    return {**more, "function": {key: value for key, value in function.items() if value is not None}}


def calls(*pieces: dict[str, Any]) -> dict[str, Any]:
    return chunk({"tool_calls": list(pieces)})


END = chunk(finish="tool_calls")
DONE = b"[DONE]"
TWO = [("bash", {"command": "ls"}), ("bash", {"command": "pwd"})]


def chat_calls(name: str, *told: Any, of: Sequence[tuple[str, Any]] = TWO, ids: Sequence[str] | None = None) -> Case:
    return Case(name, "chat", events(*told, END, DONE), calls=of, finish="tool_calls", ids=ids)


CHAT = [
    chat_calls(
        "two calls that both have index 0",
        calls(call(LS, name="bash", id="a", index=0)),
        calls(call(PWD, name="bash", id="b", index=0)),
        ids=["a", "b"],
    ),
    chat_calls(
        "the same, in pieces",
        calls(call('{"command"', name="bash", id="a", index=0)),
        calls(call(':"ls"}', index=0)),
        calls(call('{"command"', name="bash", id="b", index=0)),
        calls(call(':"pwd"}', index=0)),
        ids=["a", "b"],
    ),
    chat_calls(
        "two calls of index 0 whose pieces alternate, each with its id",
        calls(call('{"command"', name="bash", id="a", index=0)),
        calls(call('{"command"', name="bash", id="b", index=0)),
        calls(call(':"ls"}', id="a", index=0)),
        calls(call(':"pwd"}', id="b", index=0)),
    ),
    chat_calls(
        "two calls without an index",
        calls(call(LS, name="bash", id="a")),
        calls(call(PWD, name="bash", id="b")),
    ),
    chat_calls(
        "the second call has no index",
        calls(call('{"command":', name="bash", id="a", index=0)),
        calls(call('"ls"}', index=0)),
        calls(call('{"command":', name="bash", id="b")),
        calls(call('"pwd"}')),
    ),
    chat_calls(
        "two calls with neither an index nor an id",
        calls(call(LS, name="bash")),
        calls(call('{"command":', name="bash")),
        calls(call('"pwd"}')),
    ),
    chat_calls(
        "two calls in one chunk, with neither an index nor an id",
        calls(call(LS, name="bash"), call(PWD, name="bash")),
    ),
    chat_calls(
        "two calls that share an id",
        calls(call('{"command":', name="bash", id="call", index=0)),
        calls(call('{"command":', name="bash", id="call", index=1)),
        calls(call('"ls"}', index=0), call('"pwd"}', index=1)),
    ),
    chat_calls(
        "an id of its own in every piece",
        calls(call('{"command":', name="bash", id="a", index=0)),
        calls(call('"ls"}', id="a2", index=0)),
        of=TWO[:1],
        ids=["a"],
    ),
    chat_calls(
        "an empty id in the pieces that follow",
        calls(call('{"command":', name="bash", id="a", index=0)),
        calls(call('"ls"}', id="", name="", index=0)),
        of=TWO[:1],
        ids=["a"],
    ),
    chat_calls(
        "the name in every piece",
        calls(call('{"comm', name="bash", id="a", index=0)),
        calls(call('and":', name="bash", id="a", index=0)),
        calls(call('"ls"}', name="bash", id="a", index=0)),
        calls(call("", name="bash", id="a", index=0)),
        of=TWO[:1],
    ),
    chat_calls(
        "the name in every piece, without ids",
        calls(call("", name="bash", index=0)),
        calls(call('{"command":', name="bash", index=0)),
        calls(call('"ls"}', name="bash", index=0)),
        of=TWO[:1],
    ),
    chat_calls(
        "a name in pieces",
        calls(call(name="ba", id="a", index=0)),
        calls(call(name="sh", index=0)),
        calls(call(LS, index=0)),
        of=TWO[:1],
    ),
    chat_calls(
        "arguments that are an object already",
        {
            "choices": [
                {
                    "delta": {
                        "tool_calls": [
                            {"index": 0, "id": "a", "function": {"name": "bash", "arguments": {"command": "ls"}}}
                        ]
                    }
                }
            ]
        },
        of=TWO[:1],
    ),
    chat_calls(
        "a call without arguments, and one behind it",
        calls(call("", name="todo", id="a", index=0)),
        calls(call(LS, name="bash", id="b", index=0)),
        of=[("todo", {}), TWO[0]],
    ),
    chat_calls(
        "half a surrogate pair in arguments",
        calls(call('{"command":"\\ud83d', name="bash", id="a", index=0)),
        calls(call('\\ude00 \\udc00"}', index=0)),
        of=[("bash", {"command": f"{SMILE} \ufffd"})],
    ),
    Case(
        "two whole calls that share an id and have no index",
        "chat",
        json.dumps(
            {
                "choices": [
                    {
                        "message": {"tool_calls": [call(LS, name="bash", id="a"), call(PWD, name="bash", id="a")]},
                        "finish_reason": "tool_calls",
                    }
                ]
            }
        ).encode(),
        calls=TWO,
        finish="tool_calls",
        is_stream=False,
    ),
    Case(
        "surrogate pairs that are split and halves that are alone",
        "chat",
        events(
            rb'{"choices":[{"delta":{"content":"smile \ud83d"}}]}',
            rb'{"choices":[{"delta":{"content":"\ude00 ok \ude00"}}]}',
            rb'{"choices":[{"delta":{"content":" \ud83d"},"finish_reason":"stop"}]}',
            DONE,
        ),
        text=f"smile {SMILE} ok \ufffd \ufffd",
    ),
    Case(
        "numbers that JSON does not have",
        "chat",
        events(
            b'{"choices":[{"delta":{"content":"a"},"logprobs":{"content":[{"logprob":-Infinity}]}}]}',
            b'{"choices":[{"delta":{"content":"b"},"logprobs":{"x":NaN},"finish_reason":"stop"}]}',
            DONE,
        ),
        text="ab",
    ),
    Case(
        "a byte order mark before the first event",
        "chat",
        b"\xef\xbb\xbf" + events(chunk({"content": "first "}), chunk({"content": "second"}, "stop"), DONE),
        text="first second",
    ),
    Case(
        "details of usage that a later count leaves out",
        "chat",
        events(
            chunk(
                {"content": "x"},
                usage={
                    "prompt_tokens": 1000,
                    "completion_tokens": 4,
                    "prompt_tokens_details": {"cached_tokens": 900},
                    "completion_tokens_details": {"reasoning_tokens": 3},
                },
            ),
            chunk(finish="stop"),
            {"choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 9, "prompt_tokens_details": None}},
            DONE,
        ),
        text="x",
        usage={"input_tokens": 1000, "output_tokens": 9, "cache_read_tokens": 900, "reasoning_tokens": 3},
    ),
    Case(
        "usage beside the last choice, as numbers with a point",
        "chat",
        events(chunk({"content": "x"}, "stop", usage={"prompt_tokens": 50.0, "completion_tokens": 2.0}), DONE),
        text="x",
        usage={"input_tokens": 50, "output_tokens": 2},
    ),
    Case("a stream of nothing", "chat", events(DONE), fails=""),
    Case("a stream of comments", "chat", b": hi\n\n: there\n\n" + events(DONE), fails=""),
    Case("a stream of chunks without a choice", "chat", events({"choices": []}, DONE), fails=""),
    Case(
        "cut at its bound before it said anything",
        "chat",
        events(chunk({"reasoning_content": "hm"}), chunk(finish="length"), DONE),
        fails="answer_cut_off",
    ),
    Case(
        "cut at its bound",
        "chat",
        events(chunk({"content": "half an ans"}), chunk(finish="length"), DONE),
        text="half an ans",
        finish="length",
    ),
    Case(
        "cut by a filter",
        "chat",
        events(chunk({"content": "half an ans"}), chunk(finish="content_filter"), DONE),
        text="half an ans",
        finish="content_filter",
    ),
]

# Anthropic's messages.


def block(index: int | None, begin: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    at = {} if index is None else {"index": index}
    return [
        {"type": "content_block_start", **at, "content_block": begin},
        *({"type": "content_block_delta", **at, "delta": one} for one in deltas),
        {"type": "content_block_stop", **at},
    ]


def tool_use(index: int | None, call_id: str, *pieces: str, given: Any = None) -> list[dict[str, Any]]:
    begin = {"type": "tool_use", "id": call_id, "name": "bash", "input": given or {}}
    return block(index, begin, *({"type": "input_json_delta", "partial_json": piece} for piece in pieces))


def said(index: int | None, *pieces: str) -> list[dict[str, Any]]:
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": one} for one in pieces))


def ending(reason: str = "end_turn", **usage: Any) -> list[dict[str, Any]]:
    delta = {"type": "message_delta", "delta": {"stop_reason": reason}}
    return [delta | ({"usage": usage} if usage else {}), {"type": "message_stop"}]


MESSAGES = [
    Case(
        "a call whose input is whole in its start",
        "messages",
        events(*tool_use(0, "a", given={"command": "ls"}), *ending("tool_use")),
        calls=TWO[:1],
        finish="tool_calls",
    ),
    Case(
        "a call whose input is in its start and in pieces",
        "messages",
        events(*tool_use(0, "a", '{"command":', '"ls"}', given={"command": "ls"}), *ending("tool_use")),
        calls=TWO[:1],
        finish="tool_calls",
    ),
    Case(
        "two calls at one index",
        "messages",
        events(*tool_use(0, "a", LS), *tool_use(0, "b", PWD), *ending("tool_use")),
        calls=TWO,
        ids=["a", "b"],
        finish="tool_calls",
    ),
    Case(
        "blocks without an index",
        "messages",
        events(*said(None, "I ", "look"), *tool_use(None, "a", LS), *tool_use(None, "b", PWD), *ending("tool_use")),
        text="I look",
        calls=TWO,
        finish="tool_calls",
    ),
    Case(
        "split surrogate pairs",
        "messages",
        events(*said(0, "smile \ud83d", "\ude00 ok"), *ending()),
        text=f"smile {SMILE} ok",
    ),
    Case(
        "surrogates in a call's id and input",
        "messages",
        events(*tool_use(0, "a\ud83d", '{"command":"\\ude00"}'), *ending("tool_use")),
        calls=[("bash", {"command": "\ufffd"})],
        ids=["a\ufffd"],
        finish="tool_calls",
    ),
    Case(
        "a byte order mark",
        "messages",
        b"\xef\xbb\xbf" + events(*said(0, "all"), *ending()),
        text="all",
    ),
    Case(
        "counts that come first, last, and in part",
        "messages",
        events(
            {
                "type": "message_start",
                "message": {"usage": {"input_tokens": 100, "cache_read_input_tokens": 900, "output_tokens": 1}},
            },
            *said(0, "x"),
            *ending(output_tokens=9, cache_read_input_tokens=None),
        ),
        text="x",
        usage={"input_tokens": 1000, "output_tokens": 9, "cache_read_tokens": 900},
    ),
    Case(
        "cut at its bound while it thought",
        "messages",
        events(
            *block(0, {"type": "thinking", "thinking": ""}, {"type": "thinking_delta", "thinking": "hm"}),
            *ending("max_tokens"),
        ),
        fails="answer_cut_off",
    ),
    Case(
        "refused in the middle",
        "messages",
        events(*said(0, "half"), *ending("refusal")),
        text="half",
        finish="content_filter",
    ),
    Case("refused whole", "messages", events(*ending("refusal")), fails="content_filtered"),
    Case("a stream of nothing but its start", "messages", events({"type": "message_start", "message": {}}), fails=""),
]

# OpenAI's responses.


def added(index: Any, item: dict[str, Any], kind: str = "added") -> dict[str, Any]:
    return {"type": f"response.output_item.{kind}", "output_index": index, "item": item}


def called(call_id: str, arguments: str = "", **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "bash", "arguments": arguments, **more}


def arguments(index: Any, delta: str, **more: Any) -> dict[str, Any]:
    return {"type": "response.function_call_arguments.delta", "output_index": index, "delta": delta, **more}


def text(delta: str, index: Any = 0, **more: Any) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "output_index": index, "content_index": 0, "delta": delta, **more}


def message(whole: str, **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": whole}], **more}


def completed(*output: dict[str, Any], status: str = "completed", **more: Any) -> dict[str, Any]:
    return {"type": f"response.{status}", "response": {"status": status, "output": list(output), **more}}


HALVES = "first half second half"
RESPONSES = [
    Case(
        "text whose end is only in the item's end",
        "responses",
        events(text("first half "), added(0, message(HALVES), "done"), completed()),
        text=HALVES,
    ),
    Case(
        "text whose end is only in the last event",
        "responses",
        events(text("first half "), completed(message(HALVES))),
        text=HALVES,
    ),
    Case(
        "text that is only in the last event, behind an item that came before",
        "responses",
        events(
            added(0, {"type": "reasoning", "id": "rs"}), completed({"type": "reasoning", "id": "rs"}, message(HALVES))
        ),
        text=HALVES,
    ),
    Case("no pieces at all", "responses", events(completed(message(HALVES))), text=HALVES),
    Case(
        "an answer that the last event repeats, at other indexes",
        "responses",
        events(
            text("all", index=0),
            added(0, message("all"), "done"),
            completed({"type": "reasoning", "id": "rs"}, message("all")),
        ),
        text="all",
    ),
    Case(
        "a call that is only in the last event",
        "responses",
        events(text("I look"), completed(message("I look"), called("a", LS))),
        text="I look",
        calls=TWO[:1],
        finish="tool_calls",
    ),
    Case(
        "arguments whose end is only in the item's end",
        "responses",
        events(
            added(0, called("a", id="fc")),
            arguments(0, '{"comm', item_id="fc"),
            added(0, called("a", LS, id="fc"), "done"),
            completed(),
        ),
        calls=TWO[:1],
        finish="tool_calls",
    ),
    Case(
        "two calls at one index",
        "responses",
        events(
            added(0, called("a", id="fc1")),
            added(0, called("b", id="fc2")),
            arguments(0, LS, item_id="fc1"),
            arguments(0, PWD, item_id="fc2"),
            completed(),
        ),
        calls=TWO,
        ids=["a", "b"],
        finish="tool_calls",
    ),
    Case(
        "two calls at one index, without ids of items",
        "responses",
        events(
            added(0, called("a")),
            arguments(0, LS),
            added(0, called("a", LS), "done"),
            added(0, called("b")),
            arguments(0, PWD),
            added(0, called("b", PWD), "done"),
            completed(called("a", LS), called("b", PWD)),
        ),
        calls=TWO,
        finish="tool_calls",
    ),
    Case(
        "an id of its own in every event",
        "responses",
        events(
            added(0, called("a", id="x1")),
            arguments(0, '{"command":', item_id="x2"),
            arguments(0, '"ls"}', item_id="x3"),
            added(0, called("a", LS, id="x4"), "done"),
            completed(called("a", LS, id="x5")),
        ),
        calls=TWO[:1],
        finish="tool_calls",
    ),
    Case(
        "split surrogate pairs",
        "responses",
        events(text("smile \ud83d"), text("\ude00 ok"), completed(message(f"smile {SMILE} ok"))),
        text=f"smile {SMILE} ok",
    ),
    Case("a byte order mark", "responses", b"\xef\xbb\xbf" + events(text("all"), completed()), text="all"),
    Case(
        "usage with details",
        "responses",
        events(
            text("x"),
            completed(
                usage={"input_tokens": 1000, "input_tokens_details": {"cached_tokens": 900}, "output_tokens": 9.0}
            ),
        ),
        text="x",
        usage={"input_tokens": 1000, "output_tokens": 9, "cache_read_tokens": 900},
    ),
    Case(
        "cut at its bound before it said anything",
        "responses",
        events(completed(status="incomplete", incomplete_details={"reason": "max_output_tokens"})),
        fails="answer_cut_off",
    ),
    Case(
        "cut by a filter",
        "responses",
        events(text("half"), completed(status="incomplete", incomplete_details={"reason": "content_filter"})),
        text="half",
        finish="content_filter",
    ),
]

CASES = [*CHAT, *MESSAGES, *RESPONSES]


def named(case: Case) -> str:
    return f"{case.dialect}: {case.name}"

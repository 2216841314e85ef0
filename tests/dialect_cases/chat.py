"""Chat completions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.dialect_cases.case import LS, PWD, SMILE, TWO, Case, events


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

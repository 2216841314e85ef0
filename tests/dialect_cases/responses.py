"""OpenAI's responses."""

from __future__ import annotations

import json
from typing import Any

from tests.dialect_cases.case import LS, PWD, SMILE, TWO, Case, events


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


def responses_error(name: str, *told: Any, is_asked_again: bool = False) -> Case:
    return Case(
        f"an error: {name}",
        "responses",
        events(*told),
        fails="server_error",
        is_error=True,
        is_asked_again=is_asked_again,
    )


BEGUN = [
    {"type": f"response.{what}", "response": {"id": "r", "status": "in_progress", "output": [], "usage": None}}
    for what in ("created", "in_progress")
]
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
    Case(
        "cut at its bound",
        "responses",
        events(text("half"), completed(status="incomplete", incomplete_details={"reason": "max_output_tokens"})),
        text="half",
        finish="length",
    ),
    Case("a stream of comments", "responses", b": hi\n\n" + events(b"[DONE]"), fails=""),
    Case("a stream of its start", "responses", events(*BEGUN), fails=""),
    Case("an end that holds nothing", "responses", events(*BEGUN, {"type": "response.completed"}), fails=""),
    Case("an answer that is empty", "responses", events(*BEGUN, completed())),
    Case(
        "[DONE] behind the end, as proxies write it",
        "responses",
        events(*BEGUN, text("all"), completed(), b"[DONE]"),
        text="all",
    ),
    Case("an end without the answer", "responses", events(text("all"), {"type": "response.completed"}), text="all"),
    Case(
        "signs of life, and padding",
        "responses",
        b": hi\n\n"
        + events(*BEGUN, {"type": "keepalive", "sequence_number": 2}, text("all", obfuscation="x" * 50), completed()),
        text="all",
    ),
    Case(
        "numbers that JSON does not have",
        "responses",
        events(
            b'{"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"a","logprobs":[{"logprob":-Infinity}]}',
            completed(message("a")),
        ),
        text="a",
    ),
    responses_error("before anything", {"type": "error", "code": "server_error", "message": "no"}, is_asked_again=True),
    responses_error(
        "behind the start",
        *BEGUN,
        {"type": "error", "error": {"code": "server_error", "message": "no"}},
        is_asked_again=True,
    ),
    responses_error(
        "as the end",
        *BEGUN,
        completed(status="failed", error={"code": "server_error", "message": "no"}),
        is_asked_again=True,
    ),
    responses_error(
        "in mid-answer",
        *BEGUN,
        text("half"),
        completed(status="failed", error={"code": "server_error", "message": "no"}),
    ),
    Case(
        "in one piece",
        "responses",
        json.dumps(
            {"status": "completed", "output": [message("all")], "usage": {"input_tokens": 20.0, "output_tokens": 3}}
        ).encode(),
        text="all",
        usage={"input_tokens": 20, "output_tokens": 3},
        is_stream=False,
    ),
    Case("in one piece: nothing", "responses", b'{"object":"list","data":[]}', fails="", is_stream=False),
]

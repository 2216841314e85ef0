"""Anthropic's messages."""

from __future__ import annotations

import json
from typing import Any

from tests.dialect_cases.case import LS, PWD, SMILE, TWO, Case, events


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


START = {"type": "message_start", "message": {"id": "m", "content": [], "stop_reason": None}}
OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


def messages_error(name: str, *told: Any, is_asked_again: bool = False) -> Case:
    return Case(
        f"an error: {name}",
        "messages",
        events(*told),
        fails="overloaded_error",
        is_error=True,
        is_asked_again=is_asked_again,
    )


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
    Case("a stream of its start and its end", "messages", events(START, {"type": "message_stop"}), fails=""),
    Case("a stream of comments and pings", "messages", b": hi\n\n" + events({"type": "ping"}, b"[DONE]"), fails=""),
    Case("an answer that is empty", "messages", events(START, *ending())),
    Case(
        "[DONE] behind the end, as proxies write it",
        "messages",
        events(START, *said(0, "all"), *ending(), b"[DONE]"),
        text="all",
    ),
    Case("no message_stop", "messages", events(START, *said(0, "all"), *ending()[:1]), text="all"),
    Case(
        "pings, names and line ends of Windows",
        "messages",
        b"".join(
            f"event: {one['type']}\r\ndata: {json.dumps(one)}\r\n\r\n".encode()
            for one in [START, {"type": "ping"}, *said(0, "all ", "of it"), {"type": "ping"}, *ending()]
        ),
        text="all of it",
    ),
    Case(
        "counts with a point, and others that are null",
        "messages",
        events(
            {
                "type": "message_start",
                "message": {"usage": {"input_tokens": 20.0, "output_tokens": 1, "cache_creation_input_tokens": None}},
            },
            *said(0, "x"),
            *ending(output_tokens=9.0, input_tokens=None),
        ),
        text="x",
        usage={"input_tokens": 20, "output_tokens": 9},
    ),
    Case(
        "the provider's own tools",
        "messages",
        events(
            START,
            *block(
                0,
                {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
                {"type": "input_json_delta", "partial_json": "{}"},
            ),
            *block(1, {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}),
            *block(
                2,
                {"type": "text", "text": ""},
                {"type": "text_delta", "text": "found"},
                {"type": "citations_delta", "citation": {"cited_text": "y"}},
            ),
            *ending(),
        ),
        text="found",
    ),
    Case(
        "a pause among the provider's own tools",
        "messages",
        events(*said(0, "half"), *ending("pause_turn")),
        text="half",
        finish="pause_turn",
    ),
    messages_error("before it said anything", START, {"type": "ping"}, OVERLOADED, is_asked_again=True),
    messages_error("before anything", OVERLOADED, is_asked_again=True),
    messages_error("in mid-answer", START, *said(0, "half"), OVERLOADED),
    messages_error(
        "without a type", START, {"error": {"type": "overloaded_error", "message": "no"}}, is_asked_again=True
    ),
    Case(
        "in one piece",
        "messages",
        json.dumps(
            {
                "type": "message",
                "content": [{"type": "text", "text": "all"}],
                "stop_reason": "max_tokens",
                "usage": {"input_tokens": 20, "output_tokens": 3},
            }
        ).encode(),
        text="all",
        finish="length",
        usage={"input_tokens": 20, "output_tokens": 3},
        is_stream=False,
    ),
    Case(
        "in one piece, without a type",
        "messages",
        b'{"content":[{"type":"text","text":"all"}]}',
        text="all",
        is_stream=False,
    ),
    Case("in one piece: nothing", "messages", b'{"type":"message"}', fails="", is_stream=False),
]

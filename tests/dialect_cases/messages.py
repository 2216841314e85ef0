"""Anthropic's messages."""

from __future__ import annotations

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

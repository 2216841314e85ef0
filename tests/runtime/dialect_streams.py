"""Streams as Anthropic's messages and OpenAI's responses send them, put together from their parts."""

from __future__ import annotations

import json
from typing import Any


def sent(*told: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(one, ensure_ascii=False).encode() + b"\n\n" for one in told)


def block(index: int, begin: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": begin},
        *({"type": "content_block_delta", "index": index, "delta": one} for one in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def message(*blocks: list[dict[str, Any]], reason: str = "end_turn") -> bytes:
    counts = {"input_tokens": 10, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 4, "output_tokens": 1}
    return sent(
        {"type": "message_start", "message": {"usage": counts}},
        {"type": "ping"},
        *(event for one in blocks for event in one),
        {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 20}},
        {"type": "message_stop"},
    )


def text(index: int, *pieces: str) -> list[dict[str, Any]]:
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": one} for one in pieces))


THOUGHTFUL = [
    block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "let me "},
        {"type": "thinking_delta", "thinking": "see 🙂"},
        {"type": "signature_delta", "signature": "sig"},
    ),
    block(1, {"type": "redacted_thinking", "data": "xyz"}),
    text(2, "I look. "),
    block(
        3,
        {"type": "tool_use", "id": "toolu_1", "name": "todo", "input": {}},
        {"type": "input_json_delta", "partial_json": ""},
        {"type": "input_json_delta", "partial_json": '{"action": '},
        {"type": "input_json_delta", "partial_json": '"list"}'},
    ),
]


def response(*events: dict[str, Any], status: str = "completed", **more: Any) -> bytes:
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 3},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 15},
    }
    ended = {"type": f"response.{status}", "response": {"status": status, "output": [], "usage": usage, **more}}
    return sent({"type": "response.created", "response": {"id": "resp_1"}}, *events, ended)


def says_text(output: int, *pieces: str) -> list[dict[str, Any]]:
    at = {"output_index": output, "content_index": 0}
    return [{"type": "response.output_text.delta", **at, "delta": one} for one in pieces]


REASONED = [
    {"type": "response.output_item.added", "output_index": 0, "item": {"type": "reasoning", "id": "rs_1"}},
    {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 0, "delta": "let me see"},
    {
        "type": "response.output_item.done",
        "output_index": 0,
        "item": {
            "type": "reasoning",
            "id": "rs_1",
            "encrypted_content": "enc",
            "summary": [{"type": "summary_text", "text": "let me see"}],
        },
    },
    *says_text(1, "I look. "),
    {
        "type": "response.output_item.added",
        "output_index": 2,
        "item": {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "todo", "arguments": ""},
    },
    {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": '{"action": "list"}'},
    {
        "type": "response.output_item.done",
        "output_index": 2,
        "item": {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": "todo",
            "arguments": '{"action": "list"}',
        },
    },
]

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


SAID = [chunk({"role": "assistant", "content": ""}), chunk({"content": "all "}), chunk({"content": "of it"})]
STOP = chunk(finish="stop")
WHOLE = events(*SAID, STOP, DONE)
COUNTS = {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}
COUNTED = {"input_tokens": 20, "output_tokens": 3}


def chat_error(name: str, *said: Any, code: str = "", is_asked_again: bool = False) -> Case:
    return Case(f"an error: {name}", "chat", events(*said), fails=code, is_error=True, is_asked_again=is_asked_again)


def said(name: str, sent: bytes, **more: Any) -> Case:
    return Case(name, "chat", sent, text="all of it", **more)


def whole(name: str, sent: bytes, **more: Any) -> Case:
    return Case(f"in one piece: {name}", "chat", sent, is_stream=False, **more)


# Events as servers and proxies write them.
TRANSPORTS = [
    said("line ends of Windows", WHOLE.replace(b"\n", b"\r\n")),
    said("line ends of old Macs", WHOLE.replace(b"\n", b"\r")),
    said("no blank behind the colon", WHOLE.replace(b"data: ", b"data:")),
    said("no blank line at the end", events(*SAID) + b"data: " + json.dumps(STOP).encode()),
    said("no [DONE]", events(*SAID, STOP)),
    said("blanks around [DONE]", events(*SAID, STOP, b" [DONE] ")),
    said(
        "comments before, between and behind",
        b": OPENROUTER PROCESSING\n\n" + WHOLE.replace(b"\n\n", b"\n\n: ping\n\n"),
    ),
    said("names and numbers of events", b"retry: 9\n\n" + WHOLE.replace(b"data: ", b"event: message\nid: 7\ndata: ")),
    said(
        "data on several lines",
        b"".join(b"data: " + json.dumps(one, indent=1).encode().replace(b"\n", b"\ndata: ") + b"\n\n" for one in SAID)
        + events(STOP, DONE),
    ),
    said("blank lines before the first event", b"\n\n\n" + WHOLE),
    Case(
        "bytes that are not UTF-8",
        "chat",
        events(b'{"choices":[{"delta":{"content":"a\xff"}}]}', STOP, DONE),
        text="a\ufffd",
    ),
    Case(
        "a stream that breaks off within an event",
        "chat",
        events(*SAID) + b'data: {"choices":[{"delta":{"con',
        fails="",
        is_asked_again=False,
    ),
]
# What is in the events.
OTHERS = [
    said(
        "results of Azure's filters, before the answer and in it",
        events(
            {
                "choices": [],
                "prompt_filter_results": [
                    {"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}
                ],
            },
            *(
                {**one, "choices": [{**one["choices"][0], "content_filter_results": {"hate": {"filtered": False}}}]}
                for one in SAID
            ),
            {"choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {"check_offset": 1}}]},
            STOP,
            DONE,
        ),
    ),
    said(
        "no usage in any event but the last",
        events(*({**one, "usage": None} for one in [*SAID, STOP]), {"choices": [], "usage": COUNTS}, DONE),
        usage=COUNTED,
    ),
    said(
        "choices that are null beside the usage",
        events(*SAID, STOP, {"choices": None, "usage": COUNTS}, DONE),
        usage=COUNTED,
    ),
    said(
        "usage in every event",
        events(
            *({**one, "usage": {"prompt_tokens": 20, "completion_tokens": at}} for at, one in enumerate([*SAID, STOP])),
            DONE,
        ),
        usage=COUNTED,
    ),
    said(
        "usage within the choice, with what was cached beside it",
        events(*SAID, {"choices": [{**STOP["choices"][0], "usage": {**COUNTS, "cached_tokens": 16}}]}, DONE),
        usage={**COUNTED, "cache_read_tokens": 16},
    ),
    said(
        "another id and another model in each event",
        events(*({**one, "id": f"x{at}", "model": f"m{at}"} for at, one in enumerate([*SAID, STOP])), DONE),
    ),
    said(
        "a finish reason that is empty until the end",
        events(*({"choices": [{**one["choices"][0], "finish_reason": ""}]} for one in SAID), STOP, DONE),
    ),
    said("the finish reason beside the last text", events(*SAID[:2], chunk({"content": "of it"}, "stop"), DONE)),
    said(
        "a role in every event",
        events(
            *({"choices": [{"delta": {"role": "assistant", **one["choices"][0]["delta"]}}]} for one in SAID), STOP, DONE
        ),
    ),
    said(
        "text in parts",
        events(chunk({"content": [{"type": "text", "text": "all "}, {"type": "text", "text": "of it"}]}), STOP, DONE),
    ),
    said(
        "thoughts with signatures",
        events(
            chunk({"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}),
            chunk({"extra_content": {"google": {"thought_signature": "x" * 9000}}}),
            *SAID,
            STOP,
            DONE,
        ),
    ),
    Case("a role and nothing else", "chat", events(SAID[0], DONE), fails=""),
    Case(
        "a role and nothing else, counted",
        "chat",
        events(SAID[0], {"choices": [], "usage": COUNTS}, DONE),
        fails="",
        usage=COUNTED,
    ),
    Case("an answer that is empty", "chat", events(SAID[0], STOP, DONE)),
    chat_error(
        "one that may pass",
        {"error": {"message": "no", "code": "server_error"}},
        code="server_error",
        is_asked_again=True,
    ),
    chat_error(
        "behind a role",
        SAID[0],
        {"error": {"message": "no", "code": "server_error"}},
        code="server_error",
        is_asked_again=True,
    ),
    chat_error(
        "of the request", {"error": {"message": "no", "type": "invalid_request_error"}}, code="invalid_request_error"
    ),
    chat_error("in mid-answer", *SAID, {"error": {"message": "no", "code": "server_error"}}, code="server_error"),
    chat_error("a status as its code", {"error": {"message": "no", "code": 502}}, is_asked_again=True),
    chat_error("no object", {"error": "the model runner has stopped"}),
    chat_error(
        "with usage beside it", {"error": {"message": "no", "code": "bad"}, "usage": COUNTS, "choices": []}, code="bad"
    ),
    chat_error("the event itself", {"object": "error", "message": "no", "type": "BadRequestError", "code": 400}),
    chat_error(
        "within the choice",
        *SAID,
        {"choices": [{"delta": {}, "finish_reason": "error", "error": {"code": "bad", "message": "no"}}]},
        code="bad",
    ),
    chat_error("as the finish reason alone", *SAID, chunk(finish="error"), DONE),
    chat_error(
        "in a list", [{"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}], is_asked_again=True
    ),
    whole(
        "an answer",
        json.dumps(
            {"choices": [{"message": {"content": "all of it"}, "finish_reason": "stop"}], "usage": COUNTS}
        ).encode(),
        text="all of it",
        usage=COUNTED,
    ),
    whole(
        "a byte order mark, and a number that JSON does not have",
        b'\xef\xbb\xbf{"choices":[{"message":{"content":"x"},"logprobs":-Infinity}]}',
        text="x",
    ),
    whole("half a surrogate pair", rb'{"choices":[{"message":{"content":"x \ud83d"}}]}', text="x \ufffd"),
    whole("no choice", b'{"choices":[]}', fails=""),
    whole(
        "choices that are null",
        b'{"choices":null,"usage":{"prompt_tokens":20,"completion_tokens":3}}',
        fails="",
        usage=COUNTED,
    ),
    whole("nothing", b"{}", fails=""),
    whole("a page of HTML", b"\n<html>" + b"x" * 5000, fails=""),
    whole(
        "an error",
        b'{"error":{"code":"server_error","message":"no"}}',
        fails="server_error",
        is_error=True,
        is_asked_again=True,
    ),
]
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
    *TRANSPORTS,
    *OTHERS,
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

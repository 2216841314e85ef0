"""The pure parts of the dialects: whatever bodies hold, reading them breaks nothing and makes nothing negative."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amplifier_api_server.control_plane.model_gateway.answers import quota_exceeded, unavailable
from amplifier_api_server.control_plane.model_gateway.dialects import BY_PATH, CHAT, MESSAGES, RESPONSES, InvalidRequest

leaves = st.sampled_from([None, True, 0, -1, 7, 2**63, 1.5, "", "x", "ü🌍", [], [None], {}, {"x": 1}, [[1]]])
keys = st.sampled_from(
    [
        "type",
        "role",
        "content",
        "text",
        "input",
        "output",
        "messages",
        "model",
        "stream",
        "max_tokens",
        "max_output_tokens",
        "n",
        "thinking",
        "budget_tokens",
        "source",
        "data",
        "image_url",
        "usage",
        "input_tokens",
        "output_tokens",
        "prompt_tokens",
        "cache_read_input_tokens",
        "total_tokens",
        "input_tokens_details",
        "cached_tokens",
        "response",
        "item",
        "delta",
        "output_index",
        "content_index",
        "sequence_number",
        "error",
        "code",
        "stop_reason",
        "message",
        "content_block",
        "choices",
        "finish_reason",
        "incomplete_details",
        "reason",
        "status",
        "stream_options",
    ]
)
kinds = st.sampled_from(
    [
        "response.created",
        "response.output_item.added",
        "response.output_item.done",
        "response.output_text.delta",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "error",
        "message_start",
        "message_delta",
        "message_stop",
        "content_block_start",
        "content_block_delta",
        "message",
        "ping",
        "base64",
        "enabled",
        "text",
    ]
)
anything = st.recursive(
    leaves | kinds, lambda inner: st.dictionaries(keys, inner, max_size=5) | st.lists(inner, max_size=3), max_leaves=20
)
objects = st.dictionaries(keys, anything, max_size=6)
dialects = pytest.mark.parametrize("dialect", [CHAT, RESPONSES, MESSAGES], ids=lambda one: one.name)


@dialects
@settings(deadline=None)
@given(chunks=st.lists(st.tuples(kinds | st.none(), objects), max_size=6))
def test_no_answer_breaks_a_reader(dialect, chunks):
    reader = dialect.reader(is_running_count=False)
    for kind, chunk in chunks:
        before, counted = reader.completion_tokens, reader.counted
        assert reader.read(
            orjson.dumps(chunk | ({"type": kind} if kind else {}), option=orjson.OPT_PASSTHROUGH_DATETIME)
        )
        if reader.counted is not None:
            assert 0 <= reader.counted.cached_tokens <= reader.counted.prompt_tokens
            assert 0 <= reader.counted.reasoning_tokens <= reader.counted.completion_tokens
            assert reader.counted.total_tokens >= reader.counted.prompt_tokens + reader.counted.completion_tokens
        if reader.completion_tokens > before + 10:
            reader.take_back(before, counted)
        assert reader.completion_tokens >= 0
    for refusal in (quota_exceeded(), unavailable(502, "x")):
        assert reader.last_words(refusal).endswith(b"\n\n")


@pytest.mark.parametrize("path", BY_PATH)
@settings(deadline=None)
@given(body=objects, bound=st.none() | st.integers(1, 5000))
def test_no_request_breaks_a_parser(path, body, bound):
    dialect = BY_PATH[path]
    try:
        request = dialect.parse(orjson.dumps(body), [(b"anthropic-beta", b"\xff"), (b"anthropic-version", b"x")])
    except InvalidRequest:
        return
    assert request.text_tokens >= 1
    assert "anthropic-beta" not in request.headers
    sent = orjson.loads(dialect.rewritten(request, model="m", continuous_usage=False, max_tokens=bound))
    assert sent["model"] == "m"
    untouched = {name: value for name, value in body.items() if name in sent and name not in _CHANGED}
    assert {name: sent[name] for name in untouched} == untouched


_CHANGED = {"model", "max_tokens", "max_output_tokens", "thinking", "stream_options"}


@pytest.mark.parametrize(
    ("delta", "tokens"),
    [
        ({"type": "text_delta", "text": "a"}, 1),
        ({"type": "thinking_delta", "thinking": "x" * 80}, 22),
        ({"type": "input_json_delta", "partial_json": ""}, 0),
        ({"type": "signature_delta", "signature": "x" * 800}, 0),
    ],
)
def test_our_own_count_of_a_messages_delta(delta, tokens):
    reader = MESSAGES.reader(is_running_count=False)
    reader.read(orjson.dumps({"type": "content_block_delta", "index": 0, "delta": delta}))
    assert reader.completion_tokens == tokens


def test_reasoning_that_a_vendor_counts_beside_the_completion_is_part_of_it():
    reader = CHAT.reader(is_running_count=False)
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 35}
    reader.read(orjson.dumps({"choices": [], "usage": usage | {"completion_tokens_details": {"reasoning_tokens": 20}}}))
    assert (reader.counted.completion_tokens, reader.counted.reasoning_tokens) == (25, 20)

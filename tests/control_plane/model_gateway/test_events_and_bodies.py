"""The pure parts: cutting a stream into events, and reading bodies of the dialect."""

from __future__ import annotations

from itertools import pairwise

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amplifier_api_server.control_plane.model_gateway.dialects import CHAT, InvalidRequest
from amplifier_api_server.control_plane.model_gateway.dialects.chat import ChatReader as AnswerReader
from amplifier_api_server.control_plane.model_gateway.sse import EventSplitter, EventTooLarge, data_of

lines = st.sampled_from(
    [b"data: {}", b"data:x", b"data", b"data:  two", b": note", b"event: e", b"id: 1", "data: ü🌍".encode()]
)
ends = st.sampled_from([b"\n", b"\r\n"])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.lists(lines, min_size=1, max_size=4), ends), max_size=8),
    st.lists(st.integers(0, 400), max_size=30),
    st.binary(max_size=20),
)
def test_events_come_whole_and_nothing_is_lost_wherever_chunks_fall(events, cuts, tail):
    whole = [b"".join(line + end for line in chosen) + end for chosen, end in events]
    stream = b"".join(whole) + tail
    splitter, seen = EventSplitter(10_000), []
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    for start, end in pairwise(edges):
        seen += splitter.feed(stream[start:end])
    assert seen[: len(whole)] == whole
    assert b"".join(seen) + splitter.rest() == stream


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=20))
def test_any_bytes_at_all_come_out_as_they_went_in(chunks):
    splitter = EventSplitter(10_000)
    seen = [event for chunk in chunks for event in splitter.feed(chunk)]
    assert b"".join(seen) + splitter.rest() == b"".join(chunks)
    for event in seen:
        AnswerReader().read(data_of(event))


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\r\n\r\n", b"x"),
        (b"data:  x\n\n", b" x"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"event: e\nid: 7\ndata: a\nretry: 1\n\n", b"a"),
        (b": comment\n\n", b""),
        (b"data\n\n", b""),
        (b"database: x\n\n", b""),
        (b"\xef\xbb\xbfdata: x\n\n", b"x"),
        (b"data: x", b"x"),
    ],
)
def test_the_data_of_an_event(event, data):
    assert data_of(event) == data


def test_an_endless_event_is_an_error():
    splitter = EventSplitter(100)
    for _ in range(9):
        assert splitter.feed(b"data: xxxxx") == []
    with pytest.raises(EventTooLarge):
        splitter.feed(b"data: xxxxx")


leaves = st.sampled_from([None, True, 0, -1, 7, 2**63, 1.5, "", "x", "length", "ü🌍", [], [None], {}, {"x": 1}, [[1]]])


def some(**fields) -> st.SearchStrategy:
    """Objects with some of these fields, each as it should be or anything else."""
    return st.fixed_dictionaries({}, optional={name: leaves | value for name, value in fields.items()})


function = some(name=leaves, arguments=leaves)
said = some(content=leaves, reasoning=leaves, refusal=leaves, tool_calls=st.lists(some(function=function), max_size=2))
choice = some(delta=said, message=said, finish_reason=leaves)
usage = some(prompt_tokens=leaves, completion_tokens=leaves, total_tokens=leaves)


@settings(deadline=None)
@given(some(choices=st.lists(leaves | choice, max_size=2), usage=usage, error=leaves), st.booleans())
def test_no_answer_breaks_the_reader(chunk, is_running_count):
    reader = AnswerReader(is_running_count=is_running_count)
    assert reader.read(orjson.dumps(chunk))
    assert reader.completion_tokens >= 0


part = some(text=leaves, image_url=some(url=leaves))
message = some(role=leaves, content=st.lists(leaves | part, max_size=2))
request = some(
    model=leaves, messages=st.lists(leaves | message, max_size=2), n=leaves, max_tokens=leaves, stream=leaves
)


@settings(deadline=None)
@given(request, leaves)
def test_no_request_breaks_the_parser(body, options):
    try:
        parsed = CHAT.parse(orjson.dumps(body | {"stream_options": options}), ())
    except InvalidRequest:
        return
    sent = orjson.loads(CHAT.rewritten(parsed, model="m", continuous_usage=True, max_tokens=5))
    assert sent["model"] == "m"
    assert sent["max_tokens"] <= 5


def test_an_inlined_picture_is_not_read_as_text():
    url = "data:image/png;base64," + "A" * 1_000_000
    content = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    request = CHAT.parse(orjson.dumps({"messages": [{"role": "user", "content": content}]}), ())
    assert request.text_tokens + request.file_tokens < 3000


@pytest.mark.parametrize(
    ("delta", "tokens"),
    [
        ({"content": "a"}, 1),
        ({"content": ""}, 0),
        ({"role": "assistant", "content": None}, 0),
        ({"reasoning_content": "x"}, 1),
        ({"content": "x" * 80}, 22),
        ({"tool_calls": [{"function": {"name": "f", "arguments": ""}}]}, 1),
        ({"tool_calls": 1}, 0),
    ],
)
def test_our_own_count_of_a_delta(delta, tokens):
    reader = AnswerReader()
    reader.read(orjson.dumps({"choices": [{"delta": delta}]}))
    assert reader.completion_tokens == tokens


@pytest.mark.parametrize(
    "usage", [None, 1, {}, {"prompt_tokens": "5"}, {"prompt_tokens": -1}, {"completion_tokens": True}]
)
def test_what_is_no_usage_is_not_counted(usage):
    reader = AnswerReader()
    reader.read(orjson.dumps({"choices": [], "usage": usage}))
    assert reader.counted is None

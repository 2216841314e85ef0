"""Small pure parts: bounds, the event log, a turn's additions."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.runtime.bounds import bounded_output, bounded_text
from amplifier_api_server.runtime.events import EventLog, LogFullError, clean, encoded
from amplifier_api_server.runtime.protocol import one_line, sse
from amplifier_api_server.runtime.turn_port import Turn
from amplifier_api_server.runtime.turns import is_valid


async def test_a_turns_calls_are_told_in_the_order_in_which_they_were_made():
    turn = Turn("req_1", lambda: None)
    for call_id in "abc":
        turn.tool_started(call_id, "bash", {})
    turn.tool_completed("b", "out")
    assert [one.call_id for one in turn.tool_calls] == ["b"]
    turn.tool_failed("a", "no")
    turn.close()  # ends what did not end by itself
    assert [(one.call_id, one.status) for one in turn.tool_calls] == [
        ("a", "failed"),
        ("b", "completed"),
        ("c", "failed"),
    ]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(anything)
def test_whatever_a_tool_returns_is_json_on_one_line(value):
    text = encoded(value)
    assert "\n" not in text
    assert json.loads(one_line(text)) == json.loads(text)
    assert len(one_line(text).splitlines()) == 1
    text.encode()


def test_a_frame_has_one_line_of_data_to_those_who_cut_lines_as_python_does():
    said = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"
    lines = sse("req_x", 1, "token", encoded({"content": said})).decode().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["id", "event", "data", ""]
    assert json.loads(lines[2].removeprefix("data: ")) == {"content": said}


@given(st.text(max_size=500), st.integers(min_value=100, max_value=400))
def test_a_cut_text_is_short_and_keeps_both_ends(text: str, limit: int):
    cut = bounded_text(text, limit)
    assert len(cut) <= limit
    if len(text) > limit:
        assert cut[:5] == clean(text)[:5]
        assert cut[-5:] == clean(text)[-5:]
        assert "left out" in cut


@given(anything, st.integers(min_value=200, max_value=500))
def test_a_bounded_output_is_plain_json_and_short(value, limit: int):
    bounded = bounded_output(value, limit)
    assert len(encoded(bounded)) <= 13 * limit  # a control character takes six, and a cut one is cut by characters
    assert json.loads(encoded(bounded)) == bounded


@given(st.text(st.characters(), max_size=50))
def test_cleaned_text_is_utf_8_and_whole_text_stays(text: str):
    clean(text).encode()
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert clean(text) == text


async def test_a_reader_that_leaves_does_not_wake_or_break_the_others():
    log = EventLog("req_1")
    readers = [asyncio.create_task(_all(log)) for _ in range(3)]
    await asyncio.sleep(0)
    readers[0].cancel()
    await asyncio.sleep(0)
    log.append("token", {"content": "a"})
    await asyncio.sleep(0)
    log.append("complete", {})
    assert await readers[1] == await readers[2] == log.text().encode()
    assert await _all(log, after=1) == b"id: req_1:2\nevent: complete\ndata: {}\n\n"


async def _all(log: EventLog, after: int = 0) -> bytes:
    return b"".join([chunk async for chunk in log.follow(after)])


async def test_a_full_log_keeps_room_for_its_end():
    log = EventLog("req_1", limit_bytes=300_000)
    while log.last < 30:
        log.append("token", {"content": "x" * 1000})
    with pytest.raises(LogFullError):
        log.append("token", {"content": "x" * 10_000})
    log.append("tool_call", {"status": "failed"}, reserved=True)
    assert log.append("error", {"x": "y" * 1_000_000}) == log.last


@pytest.mark.parametrize(
    ("added", "valid"),
    [
        ([], False),
        ([{"role": "user"}], False),
        ([{"role": "user"}, {"role": "assistant"}], True),
        ([{"role": "user"}, {"role": "assistant", "tool_calls": [{"id": "a"}]}], False),
        (
            [
                {"role": "assistant", "tool_calls": [{"id": "a"}]},
                {"role": "tool", "tool_call_id": "a"},
                {"role": "assistant"},
            ],
            True,
        ),
        (
            [
                {"role": "assistant", "tool_calls": [{"id": "a"}]},
                {"role": "tool", "tool_call_id": "b"},
                {"role": "assistant"},
            ],
            False,
        ),
        ([{"role": "assistant", "tool_calls": [{"id": "a"}]}, {"role": "assistant"}], False),
        ([{"role": "tool", "tool_call_id": "a"}, {"role": "assistant"}], False),
    ],
)
def test_a_valid_addition_pairs_every_call_and_ends_with_the_assistant(added, valid: bool):
    assert is_valid(added) is valid


def test_circles_and_strange_objects_are_told_as_text():
    circle: dict = {}
    circle["me"] = circle
    json.loads(encoded(circle))
    assert json.loads(encoded({"a": object, "b": {1}, "c": b"\xff", "d": float("inf")}))["c"] == "\ufffd"

"""JSON from a sandbox: what is taken, and what it costs."""

import json
import re
import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane import json_bounds
from amplifier_api_server.control_plane.json_bounds import UnboundedJSON, loads, weight_bytes

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(PLAIN)
def test_what_is_plain_is_taken_as_it_is(value):
    assert loads(orjson.dumps(value)) == value


@given(PLAIN)
def test_text_that_looks_like_values_counts_as_text(value):
    inner = json.dumps(value) + '\\"[{,' * 100
    assert loads(orjson.dumps({"events": inner}), max_values=4) == {"events": inner}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"NaN",
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'"\\ud800"',
        b'"\xff"',
        b"[" * 300 + b"]" * 300,
        b"[" * 100_000,
        b"[" + b"[]," * 300_000 + b"1]",
        b"[" + b'"",' * 300_000 + b"1]",
        b"[" + b'"\\\\",' * 300_000 + b"1]",
        b"{" + b'"a":1,' * 300_000 + b'"b":1}',
    ],
)
def test_what_could_not_be_kept_or_told_is_refused(raw):
    with pytest.raises(UnboundedJSON):
        loads(raw)


ODD = st.text(st.sampled_from('",\\[{a\n'), max_size=12)


@given(st.recursive(ODD, lambda inner: st.lists(inner) | st.dictionaries(ODD, inner)), st.integers(2, 7))
def test_a_text_is_looked_at_a_piece_at_a_time_and_counts_the_same(value, piece_bytes):
    """What looks at bytes holds the interpreter: 31 MiB at once kept everybody waiting for a tenth of a second."""
    raw = orjson.dumps(value)
    with pytest.MonkeyPatch.context() as patch:
        whole = json_bounds._values_outside_strings(raw), json_bounds.weight_bytes(raw)
        patch.setattr(json_bounds, "_PIECE_BYTES", piece_bytes)
        assert (json_bounds._values_outside_strings(raw), json_bounds.weight_bytes(raw)) == whole


def test_a_long_table_in_a_string_is_one_value():
    text = "1,2,3,[4],{5},\n" * 200_000
    assert loads(orjson.dumps({"a": text})) == {"a": text}


@pytest.mark.parametrize("piece", [b"[],", b'"",', b'{"a":{}},', b'"\\"",'])
def test_the_weight_stands_for_the_time_it_takes(piece):
    """At the gateway's 16 MiB a second for each runtime, weight included, parsing takes less than half of a processor."""
    raw = b"[" + piece * 150_000 + b"1]"
    begun = time.process_time()
    try:
        loads(raw)
    except UnboundedJSON:
        pass
    paced_seconds = (len(raw) + weight_bytes(raw)) / (16 * 1024 * 1024)
    assert time.process_time() - begun < paced_seconds / 2


STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
HARD = st.text(alphabet='\\",[{a', max_size=12)


@given(st.recursive(HARD, lambda inner: st.lists(inner) | st.dictionaries(HARD, inner)), st.integers(1, 9))
def test_values_are_counted_exactly_wherever_a_piece_ends(value, piece_bytes):
    raw = orjson.dumps(value)
    outside = STRING.sub(b"", raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_bounds, "_PIECE_BYTES", piece_bytes)
        found = json_bounds._values_outside_strings(raw)
    assert found == 1 + sum(outside.count(mark) for mark in (b",", b"[", b"{"))

"""JSON from a sandbox: how many values it may hold, what parsing it costs, and that it can be written again.

Bytes do not bound what JSON costs: 32 MiB of `[],[],...` are 800 MB of objects and five seconds of the event loop (measured).
Invariant: what `loads` returns has about `max_values` values at most, no NaN, no lone surrogate, no integer beyond 64 bits,
and a depth that every encoder of this process takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

REQUEST_VALUES: Final = (
    20_000  # of a request that is no transcript: what is wrong with each may have to be told, in 30 ms
)
MAX_VALUES: Final = 200_000  # of empty lists: 20 MB of objects and 0.1 s; no honest turn comes near
_MAX_MARKS: Final = 4_000_000  # quotes and backslashes of a text whose values are counted exactly
_PIECE_BYTES: Final = 256 * 1024
_VALUE_WEIGHT_BYTES: Final = 64  # a value takes about as long as so many bytes of plain text
_MARK_WEIGHT_BYTES: Final = 32
LIGHT_BYTES: Final = 16 * 1024  # of a text that takes no time worth sharing out
_BYTE_SECONDS: Final = 15e-9
_VALUE_SECONDS: Final = 2e-6


class UnboundedJSON(ValueError):
    """Not JSON, or more of it than is taken. The message holds nothing of it."""


def loads(raw: bytes, *, max_values: int = MAX_VALUES) -> Any:
    """The values in `raw`. Raises UnboundedJSON."""
    found = loads_unwritten(raw, max_values=max_values)
    try:
        orjson.dumps(found)  # what it refuses (a depth over 254) could not be stored, nor sent to anybody
    except orjson.JSONEncodeError as error:
        raise UnboundedJSON("it is nested too deeply") from error
    return found


def loads_unwritten(raw: bytes, *, max_values: int) -> Any:
    """As `loads`, for a caller that writes each part of it as JSON later: whether that can be done is not tried here.

    Parsing holds the interpreter, in a thread as well: 32 MiB do for some 55 ms, and writing them for as long again.
    """
    demand_few(raw, max_values=max_values)
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise UnboundedJSON(_what_is_wrong(error)) from error


def work_seconds(raw: bytes) -> float:
    """About how long it takes to parse and validate such a body, and to say what is wrong with each of its values."""
    return len(raw) * _BYTE_SECONDS + _values(raw) * _VALUE_SECONDS


def _what_is_wrong(error: orjson.JSONDecodeError) -> str:
    is_other_number = error.doc.startswith(("NaN", "Infinity"), error.pos)
    return f"it is not JSON: {error}{'; JSON has no NaN and no Infinity' if is_other_number else ''}"


def demand_few(raw: bytes, *, max_values: int) -> None:
    """Raises UnboundedJSON for more values than that, without parsing them."""
    if _values(raw) > max_values and _values_outside_strings(raw) > max_values:
        raise UnboundedJSON(f"it holds more than {max_values} values")


def weight_bytes(raw: bytes) -> int:
    """What `loads` costs beyond its bytes, as bytes: for whoever sends many."""
    values = _values(raw)
    return values * _VALUE_WEIGHT_BYTES + (_marks(raw) * _MARK_WEIGHT_BYTES if values > MAX_VALUES else 0)


def _values(raw: bytes) -> int:
    """At most so many: each value but the first follows one of these, or a key."""
    return _counted(raw, (b",", b"[", b"{")) + 1


def _counted(raw: bytes, marks: Sequence[bytes]) -> int:
    """How often they are in it: what counts holds the interpreter, so it does in pieces."""
    places = range(0, len(raw), _PIECE_BYTES)
    return sum(raw.count(mark, place, place + _PIECE_BYTES) for place in places for mark in marks)


def _marks(raw: bytes) -> int:
    return min(_MAX_MARKS, _counted(raw, (b'"', b"\\")))


def _values_outside_strings(raw: bytes) -> int:
    """Exactly, a piece after another: in a thread, others have their turn in between."""
    if _marks(raw) >= _MAX_MARKS:
        raise UnboundedJSON("it holds too many strings or escapes")
    found, start, is_within = 1, 0, False
    while start < len(raw):
        end = start + _PIECE_BYTES
        while raw[end - 1 : end] == b"\\":  # what follows one belongs to it
            end += 1
        piece = raw[start:end].replace(b"\\\\", b"").replace(b'\\"', b"")
        texts = piece.split(b'"')
        found += _values(b"".join(texts[is_within::2])) - 1
        is_within ^= len(texts) % 2 == 0
        start = end
    return found

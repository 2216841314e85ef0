"""Lists: how their rows are shown, and cursors, which say where a list goes on: opaque to callers, the same for every list.

A cursor holds the position of the last row that was shown. It grants nothing, since every query holds the tenant
besides; what is refused is one that was cut or changed, so that no query runs on nonsense.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TypeVar

import orjson
import structlog

from amplifier_api_server.tenants.errors import Invalid

log = structlog.get_logger(__name__)
Row = TypeVar("Row")
View = TypeVar("View")

_MAX_CHARS = 512
_CHECK_BYTES = 4
_MAX_DIGITS = 18  # what fits into 64 bits


def shown(rows: Iterable[Row], view: Callable[[Row], View]) -> list[View]:
    """Each row as it is shown. One that holds what no view can say is left out, and is in the log: it fails itself alone."""
    found = []
    for row in rows:
        try:
            found.append(view(row))
        except Exception:
            log.exception("a row can't be shown", table=type(row).__name__, id=getattr(row, "id", None))
    return found


def encode_cursor(*parts: str) -> str:
    """A cursor that holds `parts`."""
    body = orjson.dumps(parts)
    return base64.urlsafe_b64encode(_check(body) + body).rstrip(b"=").decode("ascii")


def decode_cursor(cursor: str, count: int) -> list[str]:
    """The `count` parts that a cursor holds. Raises Invalid (`invalid_cursor`)."""
    try:
        if len(cursor) > _MAX_CHARS:
            raise ValueError(f"{len(cursor)} characters")
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        body = raw[_CHECK_BYTES:]
        if _check(body) != raw[:_CHECK_BYTES]:
            raise ValueError("its check does not fit")
        found = orjson.loads(body)
    except (ValueError, binascii.Error) as error:
        raise _wrong() from error
    if not isinstance(found, list) or len(found) != count or not all(isinstance(part, str) for part in found):
        raise _wrong()
    return found


def encode_place(at: datetime, identifier: str) -> str:
    """A cursor in a list that is sorted by a time and an id."""
    return encode_cursor(at.isoformat(), identifier)


def decode_place(cursor: str | None) -> tuple[datetime, str] | None:
    """What `encode_place` put in; None for the first page. Raises Invalid (`invalid_cursor`)."""
    if cursor is None:
        return None
    text, identifier = decode_cursor(cursor, 2)
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise _wrong() from error
    if at.tzinfo is None:
        raise _wrong()
    return at, identifier


def decode_number(cursor: str | None) -> int | None:
    """The number that a cursor holds, in a list that is sorted by one; None for the first page. Raises Invalid."""
    if cursor is None:
        return None
    (text,) = decode_cursor(cursor, 1)
    if not text.isdecimal() or len(text) > _MAX_DIGITS:
        raise _wrong()
    return int(text)


def _check(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(_CHECK_BYTES, "big")


def _wrong() -> Invalid:
    message = "should be the next_cursor of an earlier answer; leave it out to begin at the first page"
    return Invalid(f"cursor {message}", code="invalid_cursor", errors=[{"field": "cursor", "message": message}])

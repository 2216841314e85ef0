"""Pages of lists: how many rows, after which one, in which direction; the same for every list on every door.

A cursor holds the position of the last row that was shown. It grants nothing, since every query holds the tenant
besides; what is refused is one that was cut or changed, so that no query runs on nonsense.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

import orjson
import structlog

from amplifier_api_server.tenants.errors import Invalid
from amplifier_api_server.tenants.repository.pages import Page

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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands in the order of its list: `of` gives a value of each of `kinds`."""

    of: Callable[[Any], tuple[Any, ...]]
    kinds: tuple[type, ...]

    def cursor_of(self, row: Any) -> str:
        """A cursor that a list goes on after."""
        return encode_cursor(*(one.isoformat() if isinstance(one, datetime) else str(one) for one in self.of(row)))

    def after(self, cursor: str | None) -> tuple[Any, ...] | None:
        """What `cursor_of` put in; None for the first page. Raises Invalid (`invalid_cursor`)."""
        if not cursor:
            return None
        parts = decode_cursor(cursor, len(self.kinds))
        try:
            return tuple(_READ[kind](part) for kind, part in zip(self.kinds, parts, strict=True))
        except ValueError as error:
            raise _wrong() from error

    def part_of(self, rows: Iterable[Row], page: Page) -> list[Row]:
        """The page of a list that is in memory."""
        found = sorted(rows, key=self.of, reverse=page.descending)
        if page.after is not None:
            place = page.after
            found = [one for one in found if (self.of(one) < place if page.descending else self.of(one) > place)]
        return found[: page.limit]


def _time(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("it has no zone")
    return at


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > _MAX_DIGITS:
        raise ValueError("it is no number of a row")
    return int(text)


_READ: Final[Mapping[type, Callable[[str], Any]]] = {str: str, int: _number, datetime: _time}

BY_CREATION: Final = Place(lambda row: (row.created_at, row.id), (datetime, str))
BY_START: Final = Place(lambda row: (row.started_at, row.id), (datetime, str))
BY_NUMBER: Final = Place(lambda row: (row.id,), (int,))
BY_SEQUENCE: Final = Place(lambda row: (row.seq,), (int,))
BY_NAME: Final = Place(lambda row: (row.name,), (str,))
BY_PROVIDER: Final = Place(lambda row: (row.provider,), (str,))


@dataclass(frozen=True, slots=True)
class Asked:
    """Which page a request asks for."""

    size: int
    cursor: str | None
    descending: bool

    def page(self, place: Place) -> Page:
        """What is read: one row more than is shown, which says that there is another page. Raises Invalid."""
        return Page(self.size + 1, place.after(self.cursor), self.descending)

    def following(self, rows: Sequence[Any], place: Place) -> str | None:
        """The `next_cursor` of what was read."""
        return place.cursor_of(rows[self.size - 1]) if len(rows) > self.size else None


def _check(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(_CHECK_BYTES, "big")


def _wrong() -> Invalid:
    message = "should be the next_cursor of an earlier answer; leave it out to begin at the first page"
    return Invalid(f"cursor {message}", code="invalid_cursor", errors=[{"field": "cursor", "message": message}])

"""The scalars: DateTime, Date, JSON and BigInt. What comes in is checked here; what goes out was made by us."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, datetime
from typing import Final, NewType

import orjson
import strawberry
from strawberry.types.scalar import ScalarDefinition

JSON = NewType("JSON", object)
BigInt = NewType("BigInt", int)

_MAX_EXACT: Final = 2**53  # JavaScript's numbers are exact below


def _moment(text: object) -> datetime:
    if not isinstance(text, str):
        raise ValueError("should be a time such as 2026-01-31T10:30:00Z (RFC 3339)")  # noqa: TRY004 - the reader's words
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError("should be a time such as 2026-01-31T10:30:00Z (RFC 3339)") from error
    if found.tzinfo is None:
        raise ValueError("should have a zone, as in 2026-01-31T10:30:00Z")
    return found


def _day(text: object) -> date:
    try:
        return date.fromisoformat(str(text))
    except ValueError as error:
        raise ValueError("should be a date such as 2026-01-31") from error


def _plain(value: object) -> object:
    """What a document or its variables hold, if it is JSON: a literal such as 1e999 is none."""
    try:
        orjson.dumps(value)
        _finite(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError("should be plain JSON, not nested too deeply") from error
    return value


def _finite(value: object) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("is not a number of JSON's")
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _finite(one)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= _MAX_EXACT:
        raise ValueError("should be a whole number below 2^53")
    return value


def _zulu(value: datetime) -> str:
    return value.isoformat().removesuffix("+00:00") + "Z" if value.isoformat().endswith("+00:00") else value.isoformat()


SCALARS: Final[Mapping[object, ScalarDefinition]] = {
    datetime: strawberry.scalar(
        name="DateTime",
        description="A time with its zone (RFC 3339).",
        serialize=_zulu,
        parse_value=_moment,
        specified_by_url="https://www.rfc-editor.org/rfc/rfc3339",
    ),
    date: strawberry.scalar(
        name="Date", description="A day, as in 2026-01-31.", serialize=date.isoformat, parse_value=_day
    ),
    JSON: strawberry.scalar(
        name="JSON",
        description="Any value of JSON's.",
        serialize=lambda value: value,
        parse_value=_plain,
        specified_by_url="https://www.rfc-editor.org/rfc/rfc8259",
    ),
    BigInt: strawberry.scalar(
        name="BigInt",
        description="A whole number below 2^53: tokens and bytes outgrow Int's 32 bits.",
        serialize=lambda value: value,
        parse_value=_whole,
    ),
}

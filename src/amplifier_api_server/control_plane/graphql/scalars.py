"""The scalars: DateTime, Date, JSON and BigInt. What comes in is checked here; what goes out was made by us."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Final, NewType

import orjson
import strawberry
from strawberry.types.scalar import ScalarDefinition

from amplifier_api_server.control_plane.clock import rfc3339
from amplifier_api_server.control_plane.request_json import demand_plain_numbers
from amplifier_api_server.control_plane.schemas import instant_of
from amplifier_api_server.tenants.errors import Malformed

JSON = NewType("JSON", object)
BigInt = NewType("BigInt", int)

_MAX_EXACT: Final = 2**53  # JavaScript's numbers are exact below


def _day(text: object) -> date:
    try:
        return date.fromisoformat(str(text))
    except ValueError as error:
        raise ValueError("should be a date such as 2026-01-31") from error


def _plain(value: object) -> object:
    """What a document or its variables hold, if it is JSON: a literal such as 1e999 is none."""
    try:
        demand_plain_numbers(value)
        orjson.dumps(value)
    except Malformed as error:
        raise ValueError(error.detail) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError("should be plain JSON, not nested too deeply") from error
    return value


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= _MAX_EXACT:
        raise ValueError("should be a whole number below 2^53")
    return value


SCALARS: Final[Mapping[object, ScalarDefinition]] = {
    datetime: strawberry.scalar(
        name="DateTime",
        description="A time with its zone (RFC 3339).",
        serialize=rfc3339,
        parse_value=instant_of,
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

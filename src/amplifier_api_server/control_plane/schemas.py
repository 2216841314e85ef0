"""What the bodies of all domains are made of: bounded names and limits."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from amplifier_api_server.tenants.errors import Invalid
from amplifier_api_server.tenants.json_columns import spoiled_in
from amplifier_api_server.tenants.tiers import parse_overrides

_FIRST: Final = datetime(1, 1, 3, tzinfo=UTC)
_LAST: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # which some write for "never"
_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)
_WANTED: Final = "should be a time with its zone, such as 2026-01-31T10:30:00Z (RFC 3339)"

# No control characters: a NUL is an error in Postgres, a newline one in every log and list that shows the name.
Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$"),
    Field(description="for people to read"),
]


def _limit_of(given: object) -> object:
    if isinstance(given, int | str | None) and not isinstance(given, bool):
        return given
    raise ValueError('should be a whole number from 0 on, or "unlimited"')


LimitsBody = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[int | str | None, BeforeValidator(_limit_of)]],
    Field(
        max_length=16,
        description='overrides by the limits\' names: a whole number, or "unlimited"',
        examples=[{"requests_per_minute": 120, "tokens_per_day": "unlimited"}],
    ),
]


def instant_of(given: object) -> datetime:
    """A time of RFC 3339, in UTC. Raises ValueError, in words for who sent it.

    A number is no time: whose epoch, and in which unit? One at the very edge of what can be reckoned with is none either: in
    another zone it would be beyond it.
    """
    if not isinstance(given, str) or not _TIME.fullmatch(given):
        raise ValueError(_WANTED)
    try:
        found = datetime.fromisoformat(given.upper())
    except ValueError as error:
        raise ValueError(_WANTED) from error
    if not _FIRST <= found <= _LAST:
        raise ValueError("should be a time between the years 1 and 9999, in every zone")
    return found.astimezone(UTC)


def _time_of(given: object) -> object:
    return given if isinstance(given, datetime | None) else instant_of(given)


Instant = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_time_of)]


Broken = Annotated[
    list[str],
    Field(default_factory=list, description="members that can't be read from the database; they are shown empty"),
]


def limits_view(row: Any) -> dict[str, Any]:
    """`limits` and `broken` of a row's view."""
    broken, limits = spoiled_in(row), {}
    try:
        limits = parse_overrides(row.limits)
    except Invalid:
        broken = [*broken, "limits"]
    return {"limits": limits, "broken": broken}


class Body(BaseModel):
    """A request's body: what it does not know, it refuses, and "yes", 1 or "5" is neither true nor a number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Answer(BaseModel):
    """A response's body: every member is always there, and the schema says so."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

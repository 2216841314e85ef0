"""What the bodies of all domains are made of: bounded names and limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

# No control characters: a NUL is an error in Postgres, a newline one in every log and list that shows the name.
Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$"),
    Field(description="for people to read"),
]

LimitsBody = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], int | str | None],
    Field(
        max_length=16,
        description='overrides by the limits\' names: a whole number, or "unlimited"',
        examples=[{"requests_per_minute": 120, "tokens_per_day": "unlimited"}],
    ),
]


class Body(BaseModel):
    """A request's body: what it does not know, it refuses."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """A response's body: every member is always there, and the schema says so."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

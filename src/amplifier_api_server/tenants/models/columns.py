"""Kinds of columns that tables share: times in UTC, and JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, DateTime, Dialect
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field

from amplifier_api_server.tenants.json_columns import Json


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time on every database; SQLite alone would drop the zone. A naive value is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a naive time would be stored as if it were UTC: {value!r}")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        return value


def at(*, nullable: bool = False, index: bool = False) -> Any:
    return Field(sa_column=Column(UtcDateTime(), nullable=nullable, index=index))


def optional_at() -> Any:
    return Field(default=None, sa_column=Column(UtcDateTime(), nullable=True))


def json_object(*, nullable: bool = False) -> Any:
    return Field(sa_column=Column(Json(), nullable=nullable))


def json_list(of: type[Any]) -> Any:
    return Field(sa_column=Column(Json(list, of), nullable=False))

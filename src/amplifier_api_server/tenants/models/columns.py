"""Kinds of columns that tables share: times in UTC, and JSON."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, DateTime, Dialect
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field

from amplifier_api_server.tenants.json_columns import Json, Spoiled


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time on every database; SQLite alone would drop the zone. A naive value is refused.

    Reading never raises. What is stored and is no time is one that says so (`json_columns.Spoiled`), long ago: whatever ends
    at it has ended.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a naive time would be stored as if it were UTC: {value!r}")
        return value.astimezone(UTC)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None]:
        parsed = self.impl_instance.dialect_impl(dialect).result_processor(dialect, coltype)

        def read(stored: Any) -> datetime | None:
            try:
                value = parsed(stored) if parsed is not None else stored
                return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value
            except (ValueError, TypeError, AttributeError):
                return SpoiledTime.of(stored)

        return read


class SpoiledTime(Spoiled, datetime):
    """Where a time should be."""

    @classmethod
    def of(cls, stored: Any) -> SpoiledTime:
        found = cls(1970, 1, 1, tzinfo=UTC)
        found.text = str(stored)
        return found


def at(*, nullable: bool = False, index: bool = False) -> Any:
    return Field(sa_column=Column(UtcDateTime(), nullable=nullable, index=index))


def optional_at() -> Any:
    return Field(default=None, sa_column=Column(UtcDateTime(), nullable=True))


def json_object(*, nullable: bool = False) -> Any:
    return Field(sa_column=Column(Json(), nullable=nullable))


def json_list(of: type[Any]) -> Any:
    return Field(sa_column=Column(Json(list, of), nullable=False))

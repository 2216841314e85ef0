"""JSON in a column, read so that one spoiled row breaks no query that others are in.

Owns how such values are written and read. Invariant: reading never raises. What is no JSON, or of another shape than its
column's, is an empty value that says so: `is_spoiled` tells it from one that is empty, and whoever would go wrong by taking
it for one (limits, rights, a session's configuration) asks. `spoiled_in` names such columns of a row, for answers and logs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import orjson
from sqlalchemy import JSON, Dialect, LargeBinary, cast, event, func, inspect
from sqlalchemy.types import TypeDecorator
from sqlmodel import SQLModel

log = logging.getLogger(__name__)


class Spoiled:
    """A value that can't be read. Empty; `text` is what is stored."""

    text: str = ""


class SpoiledObject(Spoiled, dict[str, Any]):
    """Where an object should be."""


class SpoiledList(Spoiled, list[Any]):
    """Where a list should be."""


class JsonText(str):
    """A value that is JSON already: it is written as it is."""

    __slots__ = ()


class Json(TypeDecorator[Any]):
    """A column of objects, or of lists of `of` where `shape` is `list`. None is NULL."""

    impl = JSON
    cache_ok = True

    def __init__(self, shape: type[dict[str, Any] | list[Any]] = dict, of: type[Any] = object) -> None:
        super().__init__(none_as_null=True)
        self.shape, self.of = shape, of

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        return _written

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        return self._read

    def _read(self, stored: Any) -> Any:
        if stored is None:
            return None
        found = stored  # a driver may have parsed it; SQLite makes a number of a text that is one
        if isinstance(stored, str | bytes):
            try:
                found = orjson.loads(stored)
            except orjson.JSONDecodeError:
                found = None
        if isinstance(found, self.shape) and (self.shape is dict or all(isinstance(one, self.of) for one in found)):
            return found
        spoiled: Spoiled = SpoiledObject() if self.shape is dict else SpoiledList()
        spoiled.text = stored.decode("utf-8", "replace") if isinstance(stored, bytes) else str(stored)
        return spoiled


def _written(value: Any) -> str | None:
    match value:
        case None | JsonText():
            return value
        case Spoiled():
            return value.text  # a row that is written again for another column's sake loses nothing
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    except orjson.JSONEncodeError:  # integers beyond 64 bits
        return json.dumps(value)


def is_spoiled(*values: Any) -> bool:
    """Whether one of them can't be read."""
    return any(isinstance(one, Spoiled) for one in values)


def spoiled_in(row: SQLModel) -> list[str]:
    """The columns of a row, as far as it was loaded, that can't be read."""
    return sorted(name for name, value in vars(row).items() if isinstance(value, Spoiled))


@event.listens_for(SQLModel, "load", propagate=True)
def _tell(row: SQLModel, _context: object) -> None:
    if columns := spoiled_in(row):
        identity = inspect(row).identity
        log.error("a row can't be read: table=%s id=%r columns=%s", row.__tablename__, identity, ",".join(columns))


def bytes_of(column: Any) -> Any:
    """How many bytes a column of text or JSON has, in a query: characters have up to four."""
    return func.length(cast(column, LargeBinary))

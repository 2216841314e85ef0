"""SQLite's connections for `db`: one hand-over to the connection's thread for each statement, and none for a BEGIN.

Owns nothing but that. aiosqlite hands over making a cursor, executing, fetching and closing one by one, and each costs two
switches of threads; reading a row was nine of them and is two. Invariants: a cursor of SQLite's never leaves the connection's
thread, what is known of it afterwards was read there; a transaction begins with its first statement.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Self

import aiosqlite


class _Cursor:
    """What SQLAlchemy asks of a driver's cursor, for results that are read whole."""

    arraysize = 1

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: deque[Any] = deque()
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> _Cursor:
        if sql.startswith("BEGIN"):
            self._connection.begins_with = sql
        else:
            await self._connection.run(self._run, sqlite3.Cursor.execute, sql, parameters)
        return self

    async def executemany(self, sql: str, parameters: Iterable[Any]) -> _Cursor:
        await self._connection.run(self._run, sqlite3.Cursor.executemany, sql, parameters)
        return self

    def _run(self, begins_with: str, method: Any, sql: str, parameters: Any) -> None:
        """In the connection's thread."""
        cursor = self._connection._conn.cursor()  # noqa: SLF001 - as aiosqlite's own cursor does
        try:
            if begins_with:
                cursor.execute(begins_with)
            method(cursor, sql, parameters)
            self.description = cursor.description
            self._rows = deque(cursor.fetchall()) if cursor.description else deque()
            self.rowcount, self.lastrowid = cursor.rowcount, cursor.lastrowid
        finally:
            cursor.close()

    async def fetchall(self) -> list[Any]:
        rows, self._rows = list(self._rows), deque()
        return rows

    async def fetchone(self) -> Any:
        return self._rows.popleft() if self._rows else None

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        return [self._rows.popleft() for _ in range(min(size or self.arraysize, len(self._rows)))]

    async def close(self) -> None:
        self._rows.clear()


class Connection(aiosqlite.Connection):
    """aiosqlite's, with other cursors."""

    begins_with = ""  # the BEGIN that the next statement is to be preceded by
    # Whether anything was handed over since the last commit or rollback that succeeded. Not `in_transaction`: a caller that
    # was cancelled leaves a statement behind that may begin one yet, and what ends it has to queue up behind that.
    _is_used = False

    def cursor(self) -> Any:
        return _Cursor(self)

    async def run(self, function: Any, *arguments: Any) -> None:
        """Call `function` in the connection's thread, with the BEGIN that is due and `arguments`."""
        begins_with, self.begins_with = self.begins_with, ""
        self._is_used = True
        await self._execute(function, begins_with, *arguments)  # type: ignore[no-untyped-call]

    async def commit(self) -> None:
        self.begins_with = ""
        if self._is_used:
            await super().commit()
            self._is_used = False

    async def rollback(self) -> None:
        self.begins_with = ""
        if self._is_used:
            await super().rollback()
            self._is_used = False


def connect(path: str, timeout_seconds: float) -> Connection:
    """A connection that opens when it is awaited. Its thread does not keep the process from ending."""
    connection = Connection(partial(sqlite3.connect, path, timeout=timeout_seconds), iter_chunk_size=64)
    connection._thread.daemon = True  # noqa: SLF001 - as SQLAlchemy does with the connections that it makes itself
    return connection

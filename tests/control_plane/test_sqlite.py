from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from amplifier_api_server.control_plane.db import Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    found = Database(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}")
    async with found.write() as db:
        await db.execute(text("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT)"))
    yield found
    await found.close()


async def names(database: Database) -> list[str]:
    async with database.read() as db:
        return list((await db.execute(text("SELECT name FROM item ORDER BY id"))).scalars())


async def test_what_a_block_wrote_is_there_after_it(database: Database):
    async with database.write() as db:
        await db.execute(text("INSERT INTO item (name) VALUES (:name)"), [{"name": "a"}, {"name": "b"}])
    assert await names(database) == ["a", "b"]


async def test_returning_gives_rows_and_an_update_its_count(database: Database):
    async with database.write() as db:
        made = await db.execute(text("INSERT INTO item (name) VALUES ('a'), ('b') RETURNING id"))
        assert list(made.scalars()) == [1, 2]
        changed = await db.execute(text("UPDATE item SET name = 'c' WHERE id > 0"))
        assert changed.rowcount == 2


async def test_a_block_that_raises_leaves_nothing(database: Database):
    with pytest.raises(RuntimeError):  # noqa: PT012 - the block is what raises
        async with database.write() as db:
            await db.execute(text("INSERT INTO item (name) VALUES ('a')"))
            raise RuntimeError
    assert await names(database) == []


async def test_a_block_that_is_cancelled_in_a_statement_leaves_nothing_and_no_transaction(database: Database):
    for turns in range(12):

        async def write() -> None:
            async with database.write() as db:
                await db.execute(text("INSERT INTO item (name) VALUES ('lost')"))
                await db.execute(text("INSERT INTO item (name) VALUES ('lost too')"))
                await asyncio.Event().wait()

        task = asyncio.create_task(write())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with database.write() as db:
            await db.execute(text("INSERT INTO item (name) VALUES ('kept')"))
    assert set(await names(database)) == {"kept"}
    assert len(await names(database)) == 12


async def test_a_writer_has_the_database_from_its_first_statement(database: Database):
    async with database.write() as db:
        assert (await db.execute(text("SELECT count(*) FROM item"))).scalar_one() == 0
        other = Database(database.url)
        try:
            assert await names(other) == []  # readers go beside it
            connection = await other._connect()
            try:
                await connection.execute("PRAGMA busy_timeout=0")
                with pytest.raises(Exception, match="locked"):
                    await connection.execute("BEGIN IMMEDIATE")
            finally:
                await connection.close()
        finally:
            await other.close()

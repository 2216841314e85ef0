"""A database that can't be used is the caller's to wait for, and the operator's to read of; it is no mistake of ours."""

import asyncio

import pytest
import sqlalchemy

from amplifier_api_server.control_plane import db
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.tenants.errors import InsufficientStorage, Unavailable


@pytest.fixture
async def database(tmp_path):
    one = Database(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}")
    async with one.write() as session:
        await session.execute(sqlalchemy.text("create table t (a)"))
    yield one
    await one.close()


async def test_a_full_disk_is_told_as_such_and_writing_goes_on_after_it(database):
    async with database.write() as session:
        await session.execute(sqlalchemy.text("pragma max_page_count = 3"))
    with pytest.raises(InsufficientStorage):
        async with database.write() as session:
            await session.execute(sqlalchemy.text("insert into t values (zeroblob(100000))"))
    async with database.write() as session:
        await session.execute(sqlalchemy.text("pragma max_page_count = 1000"))
    async with database.write() as session:
        await session.execute(sqlalchemy.text("insert into t values (zeroblob(100000))"))


async def test_a_queue_of_writers_that_is_too_long_is_told_as_unavailable(tmp_path, monkeypatch):
    monkeypatch.setattr(db, "_WAIT_SECONDS", 0.05)
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}")
    go = asyncio.Event()

    async def hold():
        async with database.write() as session:
            await session.execute(sqlalchemy.text("select 1"))
            held.set()
            await go.wait()

    held = asyncio.Event()
    holding = asyncio.create_task(hold())
    await held.wait()
    with pytest.raises(Unavailable):
        async with database.write() as session:
            await session.execute(sqlalchemy.text("select 1"))
    go.set()
    await holding
    await database.close()


async def test_a_transaction_that_takes_too_long_is_told_as_unavailable_and_rolled_back(database):
    async def insert_and_hang():
        async with database.write(0.05) as session:
            await session.execute(sqlalchemy.text("insert into t values (1)"))
            await asyncio.Event().wait()

    with pytest.raises(Unavailable):
        await insert_and_hang()
    async with database.read(10) as session:
        assert (await session.execute(sqlalchemy.text("select count(*) from t"))).scalar_one() == 0


async def test_a_time_out_of_something_else_is_not_told_as_the_databases(database):
    async def time_out():
        async with database.read(10):
            raise TimeoutError

    with pytest.raises(TimeoutError):
        await time_out()

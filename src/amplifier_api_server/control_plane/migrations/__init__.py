"""The database's shape over time: Alembic, run by ourselves, so that `serve`, `migrate` and tests go one way.

Invariant: one transaction takes the database from the revision it has to the one asked for, or leaves it as it was; two
processes that start at once queue for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import create_async_engine

from amplifier_api_server.control_plane.settings import SettingsError

_WAIT_SECONDS = 30.0  # for another process that migrates
_MIGRATE_SECONDS = 600.0
_FOLDER = Path(__file__).parent
_POSTGRES_LOCK = 7_205_759_403_792_794  # any number that nothing else in this database locks


async def migrate(database_url: str, revision: str = "head") -> str | None:
    """Bring the database to `revision` ("base" empties it); the revision it had before. Safe to call again.

    Makes an SQLite file that is not there yet, not its folder. Raises SettingsError for one of a newer
    version, and what the database raises.
    """
    async with asyncio.timeout(_MIGRATE_SECONDS):
        return await _in_transaction(database_url, partial(_go, revision=revision))


async def revision_of(database_url: str) -> str | None:
    """The revision the database has; None for one without tables."""
    async with asyncio.timeout(_WAIT_SECONDS):
        return await _in_transaction(database_url, _revision)


def head() -> str | None:
    """The revision that this version of the code wants."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(_FOLDER)).get_current_head()


def require_known(revision: str | None) -> None:
    """Raise SettingsError for the revision of a newer version."""
    if revision is not None and not is_known(revision):
        raise SettingsError(
            f"server.data_dir: its database is of a newer version of this server (revision {revision}, this one knows "
            f"up to {head()}): install the version that it was used with last, or name another folder"
        )


def is_known(revision: str) -> bool:
    """Whether this version of the code has that revision."""
    from alembic.script import ScriptDirectory

    return revision in {one.revision for one in ScriptDirectory(str(_FOLDER)).walk_revisions()}


async def _in_transaction(url: str, work: Callable[[Connection], str | None]) -> str | None:
    is_sqlite = url.startswith("sqlite")
    arguments = {"timeout": _WAIT_SECONDS} if is_sqlite else {}
    engine = create_async_engine(url, poolclass=sqlalchemy.NullPool, connect_args=arguments)
    if is_sqlite:
        event.listen(engine.sync_engine, "connect", _let_us_begin)
        event.listen(engine.sync_engine, "begin", _begin_immediate)
    try:
        async with engine.begin() as connection:
            if not is_sqlite:
                await connection.execute(sqlalchemy.text("select pg_advisory_xact_lock(:key)"), {"key": _POSTGRES_LOCK})
            return await connection.run_sync(work)
    finally:
        await engine.dispose()


@contextmanager
def in_words(url: str) -> Iterator[None]:
    """For commands: a database that can't be used is a SettingsError, a sentence that says why."""
    where = sqlalchemy.make_url(url).database if url.startswith("sqlite") else "it"
    try:
        yield
    except sqlalchemy.exc.DatabaseError as error:
        advice = ""
        if type(error) is sqlalchemy.exc.DatabaseError:  # SQLITE_CORRUPT and SQLITE_NOTADB come as nothing nearer
            advice = "; restore a backup: `amplifier-api-server restore --help`"
        raise SettingsError(f"server.data_dir: its database, {where}, can't be used: {error.orig}{advice}") from error
    except TimeoutError as error:
        raise SettingsError(
            f"server.data_dir: its database, {where}, did not answer in time; who else uses it?"
        ) from error


def _let_us_begin(connection: Any, _record: Any) -> None:
    # As in db.py. Foreign keys stay off: batch mode makes a table anew and drops the old one, which others refer to.
    connection.isolation_level = None


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _go(connection: Connection, revision: str) -> str | None:
    from alembic import command
    from alembic.config import Config

    before = _revision(connection)
    require_known(before)
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    if revision == "base":
        command.downgrade(config, revision)
    else:
        command.upgrade(config, revision)
    return before


def _revision(connection: Connection) -> str | None:
    from alembic.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision()

"""The machine's disk: when it counts as full, and the reserve that the database gets then."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import sqlalchemy

from amplifier_api_server.control_plane import settings
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.disk import Disk, Floor, Reserve, Room, room_of
from amplifier_api_server.control_plane.operations import OPERATIONS
from amplifier_api_server.tenants.errors import InsufficientStorage
from tests.small_disk import MIB, fill, free_bytes, small_disk


@pytest.mark.parametrize(
    ("room", "lack"),
    [
        (Room(100 * MIB, 1000), ""),
        (Room(100 * MIB, None), ""),
        (Room(99 * MIB, 1000), "99.0 MiB are free, and sandbox.min_free_disk asks for 100.0 MiB"),
        (Room(100 * MIB, 999), "999 more files can be made, and sandbox.min_free_files asks for 1,000"),
    ],
)
def test_what_there_is_too_little_of_is_said_in_numbers(room: Room, lack: str) -> None:
    assert Floor(100 * MIB, 1000).lack(room) == lack


def test_bytes_and_files_are_asked_of_the_file_system(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mib=8, files=100) as disk:
        (disk / "file").write_bytes(b"x" * MIB)
        room = room_of(disk / "not" / "there" / "yet")
        assert room.bytes == 7 * MIB
        assert room.files is not None
        assert 90 < room.files < 100


def test_the_reserve_takes_room_gives_it_piece_by_piece_and_takes_it_again(tmp_path: Path) -> None:
    now = [0.0]
    with small_disk(tmp_path / "disk", mib=64) as disk:
        reserve = Reserve(disk, Floor(16 * MIB, 100), lambda: now[0])
        reserve.keep()
        assert reserve.is_whole()
        assert free_bytes(disk) <= 56 * MIB
        ballast = fill(disk, leave_bytes=0)
        reserve.before_write()
        assert free_bytes(disk) == MIB
        reserve.before_write()  # at once: whoever fills the disk is not stopped yet
        assert len(reserve.pieces()) == 7
        fill(disk, leave_bytes=0)
        now[0] = 2.0
        reserve.before_write()
        assert len(reserve.pieces()) == 6
        reserve.keep()  # no room for it: nothing is made
        assert len(reserve.pieces()) == 6
        ballast.unlink()
        reserve.keep()
        assert reserve.is_whole()


def test_no_reserve_is_made_of_the_floors_own_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mib=64) as disk:
        reserve = Reserve(disk, Floor(62 * MIB, 0))
        reserve.keep()
        assert len(reserve.pieces()) == 2


def test_files_run_out_as_room_does(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mib=64, files=64) as disk:
        reserve = Reserve(disk, Floor(16 * MIB, 8))
        reserve.keep()
        while room_of(disk).files:
            (disk / os.urandom(8).hex()).touch()
        reserve.before_write()
        assert room_of(disk).files == 1


async def test_a_database_on_a_full_disk_is_given_the_reserve_and_writes_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mib=64) as disk:
        without, kept = Database(f"sqlite+aiosqlite:///{disk / 'a.db'}"), Reserve(disk, Floor(16 * MIB, 100))
        database = Database(without.url, kept)
        async with database.write() as db:
            await db.execute(sqlalchemy.text("create table t (a)"))
        kept.keep()
        fill(disk, leave_bytes=0)
        with pytest.raises(InsufficientStorage):
            async with without.write() as db:
                await db.execute(sqlalchemy.text("insert into t values (zeroblob(300000))"))
        async with database.write() as db:
            await db.execute(sqlalchemy.text("insert into t values (zeroblob(300000))"))
        await without.close()
        await database.close()


async def test_a_folder_that_can_not_be_written_is_told_and_asked_once_a_second(tmp_path: Path) -> None:
    now = [10.0]
    (tmp_path / ".ready").mkdir()  # so that no file can be made by that name
    disk = Disk(tmp_path, settings.Sandbox(min_free_disk=0, min_free_files=0), lambda: now[0])
    told = await asyncio.gather(disk.trouble(), disk.trouble())
    assert told[0] == told[1]
    assert told[0][0].startswith("a file can't be written in the data folder")
    (tmp_path / ".ready").rmdir()
    assert await disk.trouble() == told[0]
    now[0] = 11.0
    assert await disk.trouble() == []
    assert [*tmp_path.iterdir()] == []


def test_what_ends_or_deletes_something_goes_on_when_there_is_no_room() -> None:
    frees = {
        "closeSession",
        "cancelExecution",
        "answerApproval",
        "deleteProfile",
        "deleteCollection",
        "cancelInstallation",
    }
    frees |= {"revokeKey", "deleteProviderKey", "deleteMember", "revokeInvitation", "deleteRole"}
    assert not [name for name in frees if OPERATIONS[name].grows]
    reads = [one for one in OPERATIONS.values() if (one.permission or ":read").endswith(":read")]
    assert not [one.name for one in reads if one.grows]
    operators = {name for name, one in OPERATIONS.items() if (one.permission or "").startswith("tenants:")}
    others = {one.name for one in OPERATIONS.values() if one.permission is not None} - frees - operators
    assert {name for name in others if not OPERATIONS[name].grows} == {
        one.name for one in reads if one.permission
    } - operators

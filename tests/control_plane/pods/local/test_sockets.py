from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from amplifier_api_server.control_plane.pods import sockets
from amplifier_api_server.control_plane.pods.sockets import remove_socket_dir, socket_dir

LONGEST_NAME = "x" * 44


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="amp-") as folder:
        yield Path(folder)


@pytest.fixture
def long(short: Path) -> Path:
    return short / ("a-long-name-" * 8)


def bound(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / LONGEST_NAME))


@pytest.mark.parametrize("data_dir", ["short", "long"])
def test_any_socket_fits_and_nobody_else_may_enter(request: pytest.FixtureRequest, data_dir: str) -> None:
    folder = request.getfixturevalue(data_dir)
    found = socket_dir(folder)
    bound(found)
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert found.stat().st_uid == os.geteuid()
    assert socket_dir(folder) == found
    assert (found / LONGEST_NAME).exists()  # asking again removes nothing
    assert (found.parent == folder) == (data_dir == "short")
    remove_socket_dir(folder)
    assert not found.exists()


def test_the_next_start_removes_what_the_last_one_left(long: Path, short: Path) -> None:
    for folder in (long, short):
        first = socket_dir(folder)
        bound(first)
        sockets._made.clear()  # as in a new process
        second = socket_dir(folder)
        assert not (first / LONGEST_NAME).exists()
        assert second.is_dir()
        assert (first == second) == (folder == short)
        remove_socket_dir(folder)


def test_a_record_that_names_something_else_removes_nothing(long: Path, short: Path) -> None:
    precious = short / "precious"
    precious.mkdir(mode=0o755)
    (precious / "file").touch()
    for text in (str(precious), "\0", "/", ""):
        long.mkdir(exist_ok=True)
        (long / "socket-folder").write_text(text)
        sockets._made.clear()
        socket_dir(long)
        remove_socket_dir(long)
    assert (precious / "file").exists()

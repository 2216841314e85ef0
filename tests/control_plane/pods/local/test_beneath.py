"""Reading a workspace's file from outside never leaves the workspace."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amplifier_api_server.control_plane.pods import beneath, syscalls


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "host-secret").write_text("of the host")
    inside = tmp_path / "workspace"
    (inside / "folder").mkdir(parents=True)
    (inside / "folder" / "file").write_text("of the tenant")
    (inside / "out").symlink_to("../host-secret")
    (inside / "absolute").symlink_to(tmp_path / "host-secret")
    (inside / "above").symlink_to("..")
    (inside / "within").symlink_to("folder")
    (inside / "process").symlink_to("/proc/self/root")
    os.mkfifo(inside / "pipe")
    descriptor = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def read(root: int, path: str) -> str:
    with open(beneath.open_beneath(root, path)) as file:
        return file.read()


@pytest.fixture(params=["openat2", "step by step"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> int:
        raise OSError(errno.ENOSYS, "no such call")

    if request.param == "step by step":
        monkeypatch.setattr(syscalls, "openat2", missing)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("path", ["folder/file", "./folder/./file", "folder//file"])
def test_a_file_of_the_workspace_is_read(root: int, path: str) -> None:
    assert read(root, path) == "of the tenant"


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize(
    "path",
    [
        *("out", "absolute", "above/host-secret", "../host-secret", "folder/../../host-secret", "/etc/passwd", ""),
        *(
            "process/etc/passwd",
            "pipe",
            "folder",
            "missing",
            "folder/file/more",
            "a" * 5000,
            ".",
            "folder/..",
            "nul\0byte",
        ),
    ],
)
def test_nothing_else_is(root: int, path: str) -> None:
    with pytest.raises((OSError, ValueError)):
        beneath.open_beneath(root, path)


def exchanging(one: Path, other: Path) -> Callable[[], None]:
    """Exchanges the two names at once, by renameat2(RENAME_EXCHANGE), as an attacker would."""
    call = ctypes.CDLL(None).renameat2
    names = (os.fsencode(one), os.fsencode(other))
    return lambda: call(-100, names[0], -100, names[1], 2)


@pytest.mark.usefixtures("_way")
def test_a_race_against_a_rename_is_never_lost(root: int, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("of the host")
    link = tmp_path / "workspace" / "trap"
    link.symlink_to(outside)
    exchange = exchanging(tmp_path / "workspace" / "folder", link)
    stop = threading.Event()

    def attack() -> None:
        while not stop.is_set():
            exchange()

    attacker = threading.Thread(target=attack)
    attacker.start()
    read_count = 0
    try:
        for _ in range(5000):
            try:
                assert read(root, "folder/file") == "of the tenant"
                read_count += 1
            except OSError:
                continue
    finally:
        stop.set()
        attacker.join()
    assert read_count > 0

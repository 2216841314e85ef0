"""Walks through trees that a tenant has made as nasty as it could."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amplifier_api_server.control_plane.pods import trees

DEEP = 1100  # deeper than Python recurses, and than a path may be long

PLENTY = trees.Effort(10**9)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def nest(parent: int, depth: int) -> None:
    current = os.dup(parent)
    for _ in range(depth):
        os.mkdir("d" * 20, dir_fd=current)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=current))
    os.close(current)


def test_a_tree_deeper_than_any_path_is_walked_and_deleted(tmp_path: Path, folder: int) -> None:
    (tmp_path / "top").mkdir()
    top = trees.open_folder("top", dir_fd=folder)
    nest(top, DEEP)
    trees.give(top, os.geteuid())
    assert sum(1 for _ in trees._walk(top)) == DEEP + 1
    os.close(top)
    trees.remove("top", dir_fd=folder, effort=PLENTY)
    assert os.listdir(folder) == []


def test_measuring_stops_at_its_depth_and_says_so(tmp_path: Path, folder: int) -> None:
    nest(folder, 200)
    assert not trees.measure(folder, most_entries=1000).is_whole
    assert trees.measure(folder, most_entries=1000, deepest=300).is_whole
    before = len(os.listdir("/proc/self/fd"))
    trees.measure(folder, most_entries=1000)
    assert len(os.listdir("/proc/self/fd")) == before
    trees.remove("d" * 20, dir_fd=folder, effort=PLENTY)


def test_measuring_stops_at_its_count_and_says_so(tmp_path: Path, folder: int) -> None:
    for number in range(50):
        (tmp_path / str(number)).touch()
    assert trees.measure(folder, most_entries=10).entries == 10
    assert not trees.measure(folder, most_entries=10).is_whole
    assert trees.measure(folder, most_entries=1000) == trees.Size(0, 50)


def test_a_file_with_two_names_counts_once(tmp_path: Path, folder: int) -> None:
    (tmp_path / "one").write_bytes(os.urandom(65536))
    alone = trees.measure(folder, most_entries=100).bytes
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    assert trees.measure(folder, most_entries=100).bytes == alone


def test_links_are_not_followed(tmp_path: Path, folder: int) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"x" * 100_000)
    (outside / "file").chmod(0o4755)
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "link").symlink_to(outside)
    (tmp_path / "top" / "file").symlink_to(outside / "file")
    top = trees.open_folder("top", dir_fd=folder)
    assert trees.measure(top, most_entries=100).bytes < 50_000
    trees.give(top, os.geteuid())
    os.close(top)
    trees.remove("top", dir_fd=folder, effort=PLENTY)
    assert stat.S_IMODE((outside / "file").stat().st_mode) == 0o4755
    with pytest.raises(OSError):
        trees.open_folder(tmp_path / "top" / "link")


def test_modes_that_forbid_everything_stop_nothing(tmp_path: Path, folder: int) -> None:
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "b" / "file").touch()
    for path in (top / "a" / "b", top / "a", top):
        path.chmod(0)
    descriptor = trees.open_folder("top", dir_fd=folder)
    assert trees.measure(descriptor, most_entries=100).entries == 3
    os.close(descriptor)
    trees.remove("top", dir_fd=folder, effort=PLENTY)
    assert os.listdir(folder) == []


def test_a_deletion_can_be_stopped_and_goes_on_later(tmp_path: Path, folder: int) -> None:
    (tmp_path / "top").mkdir()
    for number in range(10):
        (tmp_path / "top" / str(number)).touch()
    answers = iter([False] * 5)
    with pytest.raises(trees.TreeError):
        trees.remove("top", dir_fd=folder, effort=trees.Effort(10**9, lambda: next(answers, True)))
    assert len(os.listdir(tmp_path / "top")) == 5
    trees.remove("top", dir_fd=folder, effort=PLENTY)
    assert os.listdir(folder) == []


def test_a_deletion_takes_the_steps_that_it_may_wherever_the_files_lie(tmp_path: Path, folder: int) -> None:
    (tmp_path / "top" / "deep" / "er").mkdir(parents=True)
    for number in range(10):
        (tmp_path / "top" / "deep" / "er" / str(number)).touch()
    rounds = 0
    while (tmp_path / "top").exists():
        rounds += 1
        with contextlib.suppress(trees.SpentEffort):
            trees.remove("top", dir_fd=folder, effort=trees.Effort(4))
    assert 3 <= rounds <= 6


def test_deleting_what_is_not_there_is_no_error(folder: int) -> None:
    trees.remove("missing", dir_fd=folder, effort=PLENTY)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_tree_given_away_has_one_owner_and_no_setuid_bits(tmp_path: Path, folder: int) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name, mode in (("a/b/setuid", 0o4755), ("a/b/setgid", 0o2755), ("a/b/plain", 0o640)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    (tmp_path / "a").chmod(0o2777)
    (tmp_path / "a" / "link").symlink_to("/etc/passwd")
    trees.give(folder, 34567)
    for path in [tmp_path, *tmp_path.rglob("*")]:
        found = path.lstat()
        assert (found.st_uid, found.st_gid) == (34567, 34567)
        assert stat.S_ISLNK(found.st_mode) or not found.st_mode & 0o7000
    assert os.stat("/etc/passwd").st_uid == 0
    assert stat.S_IMODE((tmp_path / "a/b/plain").stat().st_mode) == 0o640


def test_measuring_a_tree_that_changes_never_fails_or_leaves_it(tmp_path: Path, folder: int) -> None:
    (tmp_path / "one" / "x").mkdir(parents=True)
    (tmp_path / "two" / "y" / "z").mkdir(parents=True)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            os.rename(tmp_path / "one" / "x", tmp_path / "two" / "y" / "z" / "x")
            os.rename(tmp_path / "two" / "y" / "z" / "x", tmp_path / "one" / "x")

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(300):
            assert trees.measure(folder, most_entries=100).entries <= 7
    finally:
        stop.set()
        changer.join()


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
    lambda name: name not in {".", ".."} and len(name.encode()) < 200
)
tree = st.recursive(st.binary(max_size=10), lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=15)


def build(path: Path, content: object) -> None:
    if isinstance(content, dict):
        path.mkdir()
        for name, inner in content.items():
            build(path / name, inner)
    else:
        path.write_bytes(content)


def count(content: object) -> int:
    return sum(1 + count(inner) for inner in content.values()) if isinstance(content, dict) else 0


@given(st.dictionaries(st.one_of(names, st.sampled_from([".moved-0", ".moved-1"])), tree, max_size=5))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_tree_is_counted_given_copied_and_deleted(folder: int, tmp_path: Path, content: dict) -> None:
    build(tmp_path / "top", content)
    top = trees.open_folder("top", dir_fd=folder)
    assert trees.measure(top, most_entries=10_000).entries == count(content)
    trees.give(top, os.geteuid())
    os.close(top)
    trees.copy_read_only(tmp_path / "top", tmp_path / "copy")
    assert sorted(p.relative_to(tmp_path / "top") for p in (tmp_path / "top").rglob("*")) == sorted(
        p.relative_to(tmp_path / "copy") for p in (tmp_path / "copy").rglob("*")
    )
    for name in ("top", "copy"):
        trees.remove(name, dir_fd=folder, effort=PLENTY)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("nasty", ["link", "pipe", "link to a folder"])
def test_a_copy_refuses_what_is_neither_file_nor_folder(tmp_path: Path, nasty: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    if nasty == "pipe":
        os.mkfifo(source / "nasty")
    else:
        (source / "nasty").symlink_to("/etc" if "folder" in nasty else "/etc/passwd")
    with pytest.raises(trees.TreeError, match="nasty"):
        trees.copy_read_only(source, tmp_path / "target")
    assert os.listdir(tmp_path) == ["source"]


def published(folder: Path) -> Path:
    """A tree as it is kept: modes of ours."""
    (folder / "a").mkdir(parents=True)
    for name, mode in (("plain", 0o644), ("run", 0o755), ("odd", 0o600)):
        (folder / "a" / name).write_text(name)
        (folder / "a" / name).chmod(mode)
    return folder


def test_a_copy_by_link_shares_its_files_but_for_those_whose_mode_is_another(tmp_path: Path) -> None:
    source = published(tmp_path / "source")
    trees.copy_read_only(source, tmp_path / "target", by_link=True)
    shared = {
        p.name: p.stat().st_ino == (source / "a" / p.name).stat().st_ino for p in (tmp_path / "target/a").iterdir()
    }
    assert shared == {"plain": True, "run": True, "odd": False}
    assert [(tmp_path / "target/a" / name).stat().st_mode & 0o777 for name in ("plain", "run", "odd")] == [
        0o644, 0o755, 0o644
    ]  # fmt: skip


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EMLINK, errno.EPERM])
def test_where_there_are_no_links_it_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    source = published(tmp_path / "source")

    def refuse(*_args: object, **_more: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "link", refuse)
    trees.copy_read_only(source, tmp_path / "target", by_link=True)
    assert {p.name: p.read_text() for p in (tmp_path / "target/a").iterdir()} == {
        "plain": "plain", "run": "run", "odd": "odd"
    }  # fmt: skip


@pytest.mark.parametrize("nasty", ["link", "pipe"])
def test_a_copy_by_link_refuses_the_same(tmp_path: Path, nasty: str) -> None:
    source = published(tmp_path / "source")
    os.mkfifo(source / "nasty") if nasty == "pipe" else (source / "nasty").symlink_to("/etc/passwd")
    with pytest.raises(trees.TreeError, match="nasty"):
        trees.copy_read_only(source, tmp_path / "target", by_link=True)
    assert os.listdir(tmp_path) == ["source"]

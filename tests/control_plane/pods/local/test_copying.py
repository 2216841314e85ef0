import os
import random
import stat

import pytest

from amplifier_api_server.control_plane.pods.copying import copy_tree
from amplifier_api_server.control_plane.pods.trees import TreeError, open_folder


def copied(source, target):
    folder = open_folder(source)
    try:
        copy_tree(folder, target)
    finally:
        os.close(folder)


@pytest.fixture
def source(tmp_path):
    made = tmp_path / "source"
    made.mkdir()
    return made


def test_files_folders_links_and_modes_are_copied(source, tmp_path):
    (source / "a" / "b").mkdir(parents=True)
    content = random.Random(1).randbytes(3_000_000)
    (source / "a" / "b" / "large").write_bytes(content)
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o4755)
    os.utime(source / "run", ns=(1, 2_000_000_000))
    (source / "out").symlink_to("/etc/passwd")
    (source / "up").symlink_to("../../..")
    copied(source, tmp_path / "copy")
    copy = tmp_path / "copy"
    assert (copy / "a" / "b" / "large").read_bytes() == content
    found = (copy / "run").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o755, 2_000_000_000)
    assert (os.readlink(copy / "out"), os.readlink(copy / "up")) == ("/etc/passwd", "../../..")


def test_a_copy_takes_no_more_room_than_its_source(source, tmp_path):
    with (source / "holes").open("wb") as file:
        file.truncate(1 << 34)
        file.seek(1 << 33)
        file.write(b"in the middle")
    (source / "deep").mkdir()
    (source / "deep" / "one").write_bytes(b"x" * 100_000)
    for number in range(50):
        os.link(source / "deep" / "one", source / f"name-{number}")
    copied(source, tmp_path / "copy")
    holes = tmp_path / "copy" / "holes"
    assert holes.stat().st_size == 1 << 34
    assert holes.stat().st_blocks * 512 < 1 << 20
    with holes.open("rb") as file:
        file.seek(1 << 33)
        assert file.read(13) == b"in the middle"
    assert (tmp_path / "copy" / "deep" / "one").stat().st_nlink == 51
    assert (tmp_path / "copy" / "name-7").read_bytes() == b"x" * 100_000


def test_what_is_neither_file_nor_folder_nor_link_is_left_out(source, tmp_path):
    os.mkfifo(source / "pipe")
    (source / "kept").write_text("x")
    copied(source, tmp_path / "copy")
    assert os.listdir(tmp_path / "copy") == ["kept"]


def test_a_tree_that_is_nested_too_deeply_is_refused(source, tmp_path):
    here = source
    for _ in range(300):
        here = here / "d"
        here.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TreeError, match="nested"):
        copied(source, tmp_path / "copy")
    assert len(os.listdir("/proc/self/fd")) == before

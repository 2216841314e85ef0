"""Trees: kept once, under the hash of what is in them, and never changed."""

import os
import stat
from pathlib import Path

import pytest

from amplifier_api_server.control_plane.catalog.trees import Trees
from amplifier_api_server.control_plane.pods import syscalls
from amplifier_api_server.tenants.errors import Invalid


@pytest.fixture
def trees(tmp_path):
    return Trees(tmp_path / "trees")


def made(trees, files):
    folder = trees.new_folder() / "files"
    folder.mkdir()
    for name, (content, mode) in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(mode)
    return folder


def test_a_tree_is_found_by_the_hash_of_what_is_in_it(trees):
    kept = trees.keep(made(trees, {"a/b": ("x", 0o600)}))
    assert (trees.path(kept.hash) / "a/b").read_text() == "x"
    assert (kept.size_bytes, kept.files) == (8192, 2)  # a file, and the folder that it lies in


def test_the_same_files_are_one_tree_and_modes_other_than_executable_do_not_count(trees):
    one = trees.keep(made(trees, {"a": ("x", 0o600), "b": ("y", 0o700)}))
    two = trees.keep(made(trees, {"b": ("y", 0o755), "a": ("x", 0o666)}))
    assert one == two
    assert stat.S_IMODE((trees.path(one.hash) / "a").stat().st_mode) == 0o644
    assert stat.S_IMODE((trees.path(one.hash) / "b").stat().st_mode) == 0o755


def test_another_name_byte_or_executable_bit_is_another_tree(trees):
    several = [{"a": ("x", 0o644)}, {"b": ("x", 0o644)}, {"a": ("y", 0o644)}, {"a": ("x", 0o755)}, {"a/x": ("", 0o644)}]
    assert len({trees.keep(made(trees, files)).hash for files in several}) == len(several)


def test_a_tree_is_on_the_disk_before_it_has_its_name(trees, monkeypatch):
    """A machine that loses its power leaves no tree whose files are empty: the row that names it is written later."""
    happened = []
    rename, fsync = Path.rename, os.fsync
    monkeypatch.setattr(syscalls, "syncfs", lambda folder: happened.append(("sync", folder)))
    monkeypatch.setattr(Path, "rename", lambda *names: happened.append(("rename", *names)) or rename(*names))
    monkeypatch.setattr(
        os, "fsync", lambda fd: happened.append(("names", Path(os.readlink(f"/proc/self/fd/{fd}")))) or fsync(fd)
    )
    folder = made(trees, {"a/b": ("x", 0o644)})
    kept = trees.path(trees.keep(folder).hash)
    assert happened == [("sync", folder), ("rename", folder, kept), ("names", kept.parent)]
    happened.clear()
    trees.keep(again := made(trees, {"a/b": ("x", 0o644)}))
    assert ("sync", again) not in happened, "it is there, and is durable"


def test_a_file_system_is_synced(tmp_path):
    (tmp_path / "a").write_text("x")
    syscalls.syncfs(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        syscalls.syncfs(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_plain_file_is_not_kept(trees, kind):
    folder = made(trees, {"a": ("x", 0o644)})
    (folder / "odd").symlink_to("/etc/passwd") if kind == "link" else os.mkfifo(folder / "odd")
    with pytest.raises(Invalid):
        trees.keep(folder)


def test_a_tree_that_is_set_aside_is_gone_at_once_and_can_be_kept_again(trees):
    kept = trees.keep(made(trees, {"a": ("x", 0o644)}))
    aside = trees.set_aside(kept.hash)
    assert not trees.has(kept.hash)
    assert trees.set_aside(kept.hash) is None
    trees.keep(made(trees, {"a": ("x", 0o644)}))
    trees.delete(aside)
    assert trees.has(kept.hash)


def test_only_trees_that_nobody_touched_are_old_and_leavings_go(trees):
    old, young = (trees.keep(made(trees, {"a": (text, 0o644)})).hash for text in "xy")
    leaving = trees.new_folder()
    for path in (trees.path(old), trees.path(young), leaving):
        os.utime(path, (1, 1))
    trees.touch(young)
    assert trees.unchanged_for(3600) == [old]
    assert not leaving.exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", "A" * 64, "0" * 63])
def test_nothing_but_a_hash_is_a_trees_name(trees, name):
    with pytest.raises(ValueError, match="no tree"):
        trees.path(name)

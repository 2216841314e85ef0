"""The data folder: one process at a time has it, and what is wrong with it is a sentence."""

import os
from pathlib import Path

import pytest

from amplifier_api_server.control_plane.data_folder import held, is_held, made, require_whole
from amplifier_api_server.control_plane.settings import SettingsError


def test_a_second_one_is_refused_whatever_became_of_the_lock_file(tmp_path: Path):
    folder = made(tmp_path / "data")
    with held(folder):
        assert is_held(folder)
        for spoil in (lambda: None, (folder / "lock").unlink, lambda: (folder / "lock").write_text("")):
            spoil()
            with pytest.raises(SettingsError, match="another server"), held(folder):
                pass
    assert not is_held(folder)
    with held(folder):
        pass


def test_the_folder_is_the_same_by_any_name(tmp_path: Path):
    folder = made(tmp_path / "data")
    (tmp_path / "link").symlink_to(folder)
    with held(folder), pytest.raises(SettingsError, match="another server"), held(tmp_path / "link"):
        pass


def test_the_lock_goes_with_its_holder(tmp_path: Path):
    folder = made(tmp_path / "data")
    child = os.fork()
    if child == 0:
        with held(folder):
            os._exit(0)  # no clean-up, as kill -9 does
    os.waitpid(child, 0)
    with held(folder):
        pass


@pytest.mark.parametrize("name", ["workspaces", "runtimes", "trash", "collections", "secrets", "run"])
def test_a_file_where_a_folder_should_be_is_told(tmp_path: Path, name: str):
    (made(tmp_path / "data") / name).touch()
    with pytest.raises(SettingsError, match=f"{name} should be a folder"):
        made(tmp_path / "data")


@pytest.mark.parametrize("name", ["lock", "amplifier.db", "keys.json"])
def test_a_folder_where_a_file_should_be_is_told(tmp_path: Path, name: str):
    (made(tmp_path / "data") / name).mkdir()
    with pytest.raises(SettingsError, match=f"{name} should be a file"):
        require_whole(tmp_path / "data")


def test_a_file_instead_of_the_folder_is_told(tmp_path: Path):
    (tmp_path / "data").touch()
    with pytest.raises(SettingsError, match="is no folder"):
        made(tmp_path / "data")

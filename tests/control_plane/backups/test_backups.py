"""Backups without a server: what is in one, what is brought back, and what is refused."""

import contextlib
import gzip
import io
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from amplifier_api_server.control_plane.backups import restoring
from amplifier_api_server.control_plane.backups.restoring import restore
from amplifier_api_server.control_plane.backups.writing import back_up
from amplifier_api_server.control_plane.data_folder import made
from amplifier_api_server.control_plane.migrations import head, migrate
from amplifier_api_server.control_plane.settings import SettingsError
from amplifier_api_server.tenants.errors import Conflict, Invalid

SESSION = ("ten_1", "sess_1")
TREE = "a" * 64


@pytest.fixture
async def data(tmp_path: Path) -> Path:
    """A data folder with a session, its files, a collection's tree and secrets."""
    folder = made(tmp_path / "data")
    await migrate(f"sqlite+aiosqlite:///{folder / 'amplifier.db'}")
    with contextlib.closing(sqlite3.connect(folder / "amplifier.db")) as db:
        db.execute("pragma foreign_keys = off")
        columns = {row[1]: row[2] for row in db.execute("pragma table_info(session)")}
        values = {name: "" if "CHAR" in kind.upper() or "JSON" in kind.upper() else 0 for name, kind in columns.items()}
        values |= {"tenant_id": SESSION[0], "id": SESSION[1], "status": "suspended"}
        db.execute(
            f"insert into session ({','.join(map(repr, values))}) values ({','.join('?' * len(values))})",
            list(values.values()),
        )
        db.commit()
    files = folder.joinpath("workspaces", *SESSION)
    (files / "deep").mkdir(parents=True)
    (files / "deep" / "read-only").write_text("plover")
    (files / "deep" / "read-only").chmod(0o400)
    (files / "deep").chmod(0o500)
    (files / "link").symlink_to("/etc/passwd")
    os.mkfifo(files / "pipe")
    (files / os.fsdecode(b"not \xff utf-8\n")).write_text("x")
    with (files / "hole").open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    (folder / "collections" / TREE).mkdir(parents=True)
    (folder / "collections" / TREE / "run.sh").write_text("#!")
    (folder / "collections" / TREE / "run.sh").chmod(0o755)
    (folder / "collections" / ".new-half").mkdir()
    (folder / "secrets").mkdir()
    (folder / "secrets" / "pepper").write_text("ab" * 32)
    (folder / "secrets" / "pepper").chmod(0o600)
    (folder / "keys.json").write_text("{}")
    (folder / "trash").mkdir()
    (folder / "trash" / "old").touch()
    return folder


def test_what_is_kept_comes_back_as_it_was(data: Path, tmp_path: Path):
    made_of = back_up(data, tmp_path / "b.tar.gz", head())
    assert (made_of.sessions, made_of.left_out) == (1, 1)  # the pipe
    assert stat.S_IMODE((tmp_path / "b.tar.gz").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert (tmp_path / "b.tar.gz").stat().st_size < 1024 * 1024
    back = tmp_path / "back"
    assert restore(tmp_path / "b.tar.gz", back).files == made_of.files
    assert sorted(path.name for path in back.iterdir()) == [
        "amplifier.db",
        "collections",
        "keys.json",
        "lock",
        "secrets",
        "workspaces",
    ]
    files = back.joinpath("workspaces", *SESSION)
    assert (files / "deep" / "read-only").read_text() == "plover"
    assert stat.S_IMODE((files / "deep").stat().st_mode) == 0o500
    assert stat.S_IMODE((files / "deep" / "read-only").stat().st_mode) == 0o400
    assert os.readlink(files / "link") == "/etc/passwd"
    assert (files / os.fsdecode(b"not \xff utf-8\n")).read_text() == "x"
    assert (files / "hole").stat().st_size == 64 * 1024 * 1024
    assert (files / "hole").stat().st_blocks * 512 < 1024 * 1024
    assert os.access(back / "collections" / TREE / "run.sh", os.X_OK)
    assert (back / "secrets" / "pepper").read_text() == "ab" * 32
    with contextlib.closing(sqlite3.connect(back / "amplifier.db")) as db:
        assert db.execute("select id from session").fetchall() == [("sess_1",)]


def test_a_session_in_a_runtime_is_kept_as_one_at_rest(data: Path, tmp_path: Path):
    inside = data / "runtimes" / "run_1" / "workspace"
    inside.mkdir(parents=True)
    data.joinpath("workspaces", *SESSION).rename(inside / SESSION[1])
    back_up(data, tmp_path / "b.tar.gz", None)
    restore(tmp_path / "b.tar.gz", tmp_path / "back")
    assert (tmp_path / "back").joinpath("workspaces", *SESSION, "deep", "read-only").read_text() == "plover"


def test_a_backup_replaces_no_file(data: Path, tmp_path: Path):
    (tmp_path / "b.tar.gz").write_text("another")
    with pytest.raises(Conflict, match="is there already"):
        back_up(data, tmp_path / "b.tar.gz", None)
    assert (tmp_path / "b.tar.gz").read_text() == "another"


def test_a_folder_that_is_not_empty_is_refused(data: Path, tmp_path: Path):
    back_up(data, tmp_path / "b.tar.gz", None)
    with pytest.raises(Conflict, match="is not empty"):
        restore(tmp_path / "b.tar.gz", data)
    assert (data / "trash" / "old").exists()


# What is refused, and leaves nothing.


def refused(archive: Path, target: Path, says: str, error: type[Exception] = Invalid) -> None:
    with pytest.raises(error, match=says):
        restore(archive, target)
    assert [path.name for path in target.iterdir() if path.name != "lock"] == []


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_an_archive_that_is_cut_off_is_refused(data: Path, tmp_path: Path, share: float):
    back_up(data, whole := tmp_path / "b.tar.gz", None)
    content = whole.read_bytes()
    whole.write_bytes(content[: int(len(content) * share)])
    refused(whole, tmp_path / "back", "cut off|spoiled|no backup")


def test_no_byte_of_an_archive_can_be_changed(data: Path, tmp_path: Path):
    back_up(data, whole := tmp_path / "b.tar.gz", None)
    content = gzip.decompress(whole.read_bytes())
    at = content.index(b"plover")
    whole.write_bytes(gzip.compress(content[:at] + b"heron!" + content[at + 6 :], 1))
    refused(whole, tmp_path / "back", "checksums")


def archive_of(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes], about: object = None) -> Path:
    path = tmp_path / "evil.tar.gz"
    told = json.dumps(about or {"format": 1, "version": "x", "revision": head(), "made_at": "now"}).encode()
    with tarfile.open(path, "w:gz") as tar:
        for info, content in (entry("about.json", told), *members):
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def entry(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, content


FOLDERS = [entry("workspaces", kind=tarfile.DIRTYPE), entry("workspaces/t", kind=tarfile.DIRTYPE)]


@pytest.mark.parametrize(
    "member",
    [
        entry("workspaces/t/s", kind=tarfile.SYMTYPE, target="/etc"),
        entry("workspaces/t/s", kind=tarfile.LNKTYPE, target="about.json"),
        entry("workspaces/t/s", kind=tarfile.CHRTYPE),
        entry("workspaces/t/s", kind=tarfile.FIFOTYPE),
        entry("workspaces/t/s/../../../../evil", b"x"),
        entry("workspaces/../../evil", b"x"),
        entry("../evil", b"x"),
        entry("/tmp/evil-of-a-backup", b"x"),
        entry("workspaces/t//s", b"x"),
        entry("lock", b"x"),
        entry("runtimes/x", b"x"),
        entry(".restoring-x", kind=tarfile.DIRTYPE),
        entry("secrets/../keys.json", b"x"),
        entry("collections/" + TREE + "/no/folder", b"x"),
        entry("workspaces", kind=tarfile.DIRTYPE),
        entry("links", json.dumps({"path": "secrets", "target": "/etc"}).encode() + b"\n"),
        entry("links", json.dumps({"path": "workspaces/t/../x", "target": "/etc"}).encode() + b"\n"),
        entry("links", json.dumps({"path": "workspaces/t/s", "target": "/etc"}).encode() + b"\n"),
        entry("links", b"[]\n"),
        entry("checksums", b""),
    ],
    ids=lambda member: f"{member[0].name[:30]}-{member[0].type.decode()}",
)
def test_an_evil_archive_is_refused_and_leaves_nothing(tmp_path: Path, member):
    refused(archive_of(tmp_path, *FOLDERS, member), tmp_path / "back", ".")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "evil.tar.gz"]


def test_what_is_no_archive_is_refused(tmp_path: Path):
    (tmp_path / "text").write_text("no archive")
    refused(tmp_path / "text", tmp_path / "back", "cut off or spoiled")
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as tar:
        tar.addfile(*[entry("keys.json")[0]])
    refused(tmp_path / "other.tar.gz", tmp_path / "back2", "no backup of this server")


def test_newer_versions_are_refused_in_a_sentence(tmp_path: Path):
    newer = {"format": 1, "version": "9", "revision": "9999", "made_at": "x"}
    refused(archive_of(tmp_path, about=newer), tmp_path / "one", "newer version")
    refused(archive_of(tmp_path, about=newer | {"format": 2}), tmp_path / "two", "newer version")


# What is killed.


def test_a_restore_that_was_killed_is_never_served_and_is_done_again(data: Path, tmp_path: Path, monkeypatch):
    back_up(data, tmp_path / "b.tar.gz", None)

    def killed(staging: Path, data_dir: Path) -> None:
        (staging / "secrets").rename(data_dir / "secrets")
        os._exit(9)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(restoring, "_put_in_place", killed)
        restore(tmp_path / "b.tar.gz", tmp_path / "back")
    assert os.waitpid(child, 0)[1] == 9 << 8
    assert (tmp_path / "back" / "secrets").is_dir()
    with pytest.raises(SettingsError, match="run it again"):
        made(tmp_path / "back")
    restore(tmp_path / "b.tar.gz", tmp_path / "back")
    made(tmp_path / "back")
    assert (tmp_path / "back" / "amplifier.db").is_file()


def test_a_backup_that_was_killed_leaves_no_archive_and_what_it_left_is_removed(data: Path, tmp_path: Path):
    code = (
        "import os, sys, pathlib\n"
        "from amplifier_api_server.control_plane.backups import writing\n"
        "writing._copy_database = lambda *_: (print('here', flush=True), sys.stdin.read())\n"
        "writing.back_up(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), None)\n"
    )
    target = tmp_path / "b.tar.gz"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(data), str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"here\n"
        with pytest.raises(Conflict, match="another backup"):
            back_up(data, target, None)
        process.send_signal(signal.SIGKILL)
    assert not target.exists()
    assert len([path for path in tmp_path.iterdir() if "partial" in path.name]) == 1
    back_up(data, target, None)
    assert [path for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_full_disk_leaves_no_archive(data: Path, tmp_path: Path):
    """A limit on the size of files is what an ordinary user can have of a full disk."""
    code = (
        "import pathlib, resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "from amplifier_api_server.control_plane.cli import app\n"
        "app(['backup', sys.argv[2], '--data-dir', sys.argv[1]])\n"
    )
    (target := tmp_path / "to").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(data), str(target / "b.tar.gz")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(target.iterdir()) == []

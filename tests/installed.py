"""Other people's programs that tests run: what a lock file beside a test names, installed once for a machine.

They lie in folders for temporary files that are named by their lock, outside of the repository. A test whose programs can't be
had is skipped, and says so. The processes of a test run wait for each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MIN_NODE = 20
_INSTALL_SECONDS = 240
_NPM = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")


def node(why: str) -> str:
    """The path of a Node that is new enough; skips the test where there is none. `why` says what needs it."""
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        pytest.skip(f"SKIPPED, NOT TESTED: {why}: needs node and npm")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    if int(version.lstrip("v").partition(".")[0]) < _MIN_NODE:
        pytest.skip(f"SKIPPED, NOT TESTED: {why}: needs node {_MIN_NODE}; this is {version}")
    return found


def npm(source: Path, why: str) -> Path:
    """A folder with `node_modules` as the package-lock.json in `source` says, and the programs that lie beside it there."""
    node(why)
    with _folder(source, "package-lock.json") as (folder, is_new):
        for one in source.iterdir():
            if one.suffix in (".json", ".mjs", ".ts", ".html"):
                shutil.copy(one, folder / one.name)
        if is_new:
            _run(_NPM, folder, why)
    return folder


def python(source: Path, why: str) -> str:
    """The Python of an environment with what the requirements.txt in `source` says, and nothing else."""
    with _folder(source, "requirements.txt") as (folder, is_new):
        program = str(folder / "venv" / "bin" / "python")
        if is_new:
            _run((sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder / "venv")), folder, why)
            pip = (sys.executable, "-m", "pip", "--python", program, "install", "--quiet", "--require-hashes", "-r")
            _run((*pip, str(source / "requirements.txt")), folder, why)
    return program


@contextlib.contextmanager
def _folder(source: Path, lock: str) -> Iterator[tuple[Path, bool]]:
    """The folder for a lock, held for this process, and whether it has to be filled."""
    digest = hashlib.sha256((source / lock).read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"amplifier-tests-{source.name}-{Path(lock).stem}-{digest}")
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = folder / "done"
        yield folder, not done.exists()
        done.touch()


def _run(command: tuple[str, ...], folder: Path, why: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", b"") or b""
        pytest.skip(f"SKIPPED, NOT TESTED: {why}: could not be installed: {error} {said[-500:]!r}")

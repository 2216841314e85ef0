"""The certified npm `oidc-provider` as a process of its own, installed once into a folder of the machine's for temporary files."""

import contextlib
import fcntl
import hashlib
import re
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECRET = "a secret: of a client & more"
_MIN_NODE = 20
_INSTALL_SECONDS = 100
_START_SECONDS = 30


def _node() -> str:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("SKIPPED, NOT TESTED: logins against a real OpenID Connect provider need node and npm")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    if int(version.lstrip("v").partition(".")[0]) < _MIN_NODE:
        pytest.skip(f"SKIPPED, NOT TESTED: oidc-provider needs node {_MIN_NODE}; this is {version}")
    return node


def installed() -> Path:
    """The folder with what package-lock.json names; the processes of a test run install it once."""
    lock = (HERE / "package-lock.json").read_bytes()
    folder = Path(tempfile.gettempdir(), f"amplifier-tests-oidc-{hashlib.sha256(lock).hexdigest()[:16]}")
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for name in ("package.json", "package-lock.json", "provider.mjs"):
            shutil.copy(HERE / name, folder / name)
        if not (folder / "done").exists():
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
            (folder / "done").touch()
    return folder


@contextlib.contextmanager
def running() -> Iterator[str]:
    """Its issuer."""
    node = _node()
    command = [node, "provider.mjs"]
    with subprocess.Popen(
        command, cwd=installed(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
            issuer = process.stdout.readline().strip() if ready else ""
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", issuer), f"oidc-provider did not start: {issuer!r}"
            yield issuer
        finally:
            process.kill()

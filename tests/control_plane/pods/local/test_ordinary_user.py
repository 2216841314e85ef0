"""The same tests as an ordinary user: where root runs them, sandboxes of one are made in another way."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.control_plane.pods.local.conftest import require_sandboxes

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[3]
UID = 12345


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs these tests already")
@pytest.mark.parametrize(
    "which", ["test_local_launcher", "test_sandbox_attacks", "test_sandbox_limits", "test_sandbox_check"]
)
async def test_as_an_ordinary_user(which: str) -> None:
    await require_sandboxes()
    with tempfile.TemporaryDirectory(prefix="amp-") as home:
        os.chown(home, UID, UID)
        command = [
            *(sys.executable, str(HERE / "as_ordinary_user.py"), str(UID)),
            *(sys.base_prefix, sys.prefix, str(REPOSITORY), "--"),
            *(
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:xdist",
                "--basetemp",
                f"{home}/pytest",
            ),
            str(HERE / f"{which}.py"),
        ]
        environment = {"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": home, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=110
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]

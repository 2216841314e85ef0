"""A file system of a few megabytes, where the machine lets us mount one."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 1024 * 1024


@contextmanager
def small_disk(at: Path, *, mib: int, files: int = 20_000) -> Iterator[Path]:
    """A tmpfs at the new folder `at`. Skips the test for whoever may not mount."""
    at.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m,nr_inodes={files}", "tmpfs", str(at)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def fill(folder: Path, *, leave_bytes: int) -> Path:
    """One more file, so that no more than `leave_bytes` are free after it."""
    path = folder / f"ballast-{time.monotonic_ns()}"
    with path.open("wb") as file:
        while (more := free_bytes(folder) - leave_bytes) > 0:
            file.write(b"\1" * min(more, MIB))
            file.flush()
    return path

"""Running a program of this machine on a stranger's bytes: git and pip, never anything that was fetched.

Owns the bounds of one run: time, processor, memory, size of files, a folder's size as it grows, and an end for the whole
process group. The environment is what is given and nothing else; output goes to files that the program can't replace.
Nothing here decides what a program's exit means.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")

_LOOK_SECONDS = 0.1
_FIRST_LOOK_SECONDS = 0.002  # most runs of git take a few milliseconds
_KILLED_SECONDS = 5.0
_MAX_SAID_BYTES = 64 * 1024  # of a program's standard error that is read
_UNPRIVILEGED = 65534  # nobody and nogroup, on every Linux (LSB 3.1, 22.1)

# Set by the shell before the program starts, so that all that it starts has them too. `ulimit -v` is not everywhere.
_LIMITED = 'ulimit -c 0; ulimit -t "$1"; ulimit -f "$2"; ulimit -v "$3" 2>/dev/null || :; shift 3; exec "$@"'
_BLOCK_BYTES = 4096  # of the usual file systems
_SHELL_BLOCK_BYTES = 512  # of `ulimit -f` (POSIX)


class RunTooLong(Exception):
    """The time is over; the program was killed."""


class RunTooLarge(Exception):
    """The folder has grown past its bound; the program was killed."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one run."""

    seconds: float
    folder_bytes: int  # of `cwd`, with everything that is in it
    file_bytes: int
    memory_bytes: int = 2 * 1024**3  # of address space: git maps what it reads
    cpu_seconds: int = 120


@dataclass(frozen=True, slots=True)
class Ran:
    """How it went."""

    status: int  # negative: the signal that ended it
    error: str  # the beginning of what it said on its standard error


class Programs:
    """Threads that start programs and watch them: threads of their own, because others write turns' events."""

    def __init__(self, at_once: int = 4) -> None:
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="fetching")

    async def run(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        out: Path,
        environment: Mapping[str, str],
        bounds: Bounds,
        given: Path | None = None,
        unprivileged: bool = False,
    ) -> Ran:
        """Run `command` in the folder `cwd`, from the file `given` to the file `out`. Nothing of it runs on afterwards.

        `unprivileged`: as nobody, where this process is root; `cwd` must be nobody's then (`give_to_nobody`).
        Raises RunTooLong and RunTooLarge.
        """
        is_cancelled = threading.Event()

        def work() -> Ran:
            return _run(command, cwd, out, environment, bounds, given, is_cancelled, unprivileged=unprivileged)

        return await self.do(work, is_cancelled)

    async def do(self, work: Callable[[], T], is_cancelled: threading.Event | None = None) -> T:
        """Do blocking work in one of the threads; a cancelled caller waits until it has ended, as `is_cancelled` asks."""
        task = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if is_cancelled is not None:
                is_cancelled.set()
            with contextlib.suppress(Exception):
                await task
            raise

    def close(self) -> None:
        """Take no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def is_there(program: str) -> bool:
    """Whether the system has it."""
    return shutil.which(program, path=SEARCH_PATH) is not None


@dataclass(frozen=True, slots=True)
class Folders:
    """Of one piece of work, in the system's temporary folder: who is unprivileged can't walk to the data folder."""

    work: Path  # the program's
    own: Path  # ours: outputs, which it can't replace


@contextlib.contextmanager
def folders_of_nobody(name: str) -> Iterator[Folders]:
    """New ones, deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"amplifier-{name}-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        folder.chmod(0o711)
        work, ours = folder / "work", folder / "own"
        work.mkdir(mode=0o700)
        ours.mkdir(mode=0o711)
        give_to_nobody(work)
        yield Folders(work, ours)


SEARCH_PATH = os.environ.get("PATH") or os.defpath


def give_to_nobody(folder: Path) -> None:
    """Give a new folder to whom unprivileged programs run as."""
    if os.geteuid() == 0:
        os.chown(folder, _UNPRIVILEGED, _UNPRIVILEGED)


def _run(
    command: Sequence[str],
    cwd: Path,
    out: Path,
    environment: Mapping[str, str],
    bounds: Bounds,
    given: Path | None,
    is_cancelled: threading.Event,
    *,
    unprivileged: bool,
) -> Ran:
    as_nobody = unprivileged and os.geteuid() == 0
    who: dict[str, Any] = {"user": _UNPRIVILEGED, "group": _UNPRIVILEGED, "extra_groups": []} if as_nobody else {}
    limits = [
        str(bounds.cpu_seconds),
        str(bounds.file_bytes // _SHELL_BLOCK_BYTES + 1),
        str(bounds.memory_bytes // 1024),
    ]
    with contextlib.ExitStack() as files:
        said = files.enter_context(tempfile.TemporaryFile())
        stdin: IO[bytes] | int = files.enter_context(given.open("rb")) if given is not None else subprocess.DEVNULL
        process = subprocess.Popen(  # noqa: S603 - the command is ours; arguments that are not come after --
            ["/bin/sh", "-c", _LIMITED, "sh", *limits, *command],
            cwd=cwd,
            env={"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", **environment},
            stdin=stdin,
            stdout=files.enter_context(out.open("wb")),
            stderr=said,
            start_new_session=True,
            umask=0o077,
            **who,
        )
        try:
            _watch(process, cwd, bounds, is_cancelled)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started, too, and when it has ended as well
            process.wait(_KILLED_SECONDS)
        said.seek(0)
        return Ran(process.returncode, said.read(_MAX_SAID_BYTES).decode("utf-8", "replace"))


def _watch(process: subprocess.Popen[bytes], cwd: Path, bounds: Bounds, is_cancelled: threading.Event) -> None:
    """Return when the program has ended, and has not been waited for. Raises RunTooLong, RunTooLarge."""
    ends_at, delay = time.monotonic() + bounds.seconds, _FIRST_LOOK_SECONDS
    while not _has_ended(process):
        if is_cancelled.is_set():
            raise RunTooLong("cancelled")
        if time.monotonic() > ends_at:
            raise RunTooLong(f"more than {bounds.seconds:.0f} s")
        if delay >= _LOOK_SECONDS and size_of(cwd) > bounds.folder_bytes:
            raise RunTooLarge(f"more than {bounds.folder_bytes} bytes")
        time.sleep(delay)
        delay = min(delay * 2, _LOOK_SECONDS)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Without taking its id away: the group that has it is still to be ended."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def size_of(folder: Path) -> int:
    """Bytes of all files in it, as far as they can be seen while it changes; of each file and folder at least a block."""
    total = 0
    waiting = [str(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    total += _BLOCK_BYTES
                else:
                    with contextlib.suppress(OSError):
                        total += max(_BLOCK_BYTES, entry.stat(follow_symlinks=False).st_size)
    return total

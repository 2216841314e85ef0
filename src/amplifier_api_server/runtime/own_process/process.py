"""One process of this program for one session: started, heard, ended with all that it started.

Owns the process, its supervisor, its private folder, and the socket that it listens on. Refuses to know what is said
on that socket. Invariants: no path leads to the socket once the process runs, and it answers this process alone; when
`ended` is done nothing of it runs, whatever it forked or killed (call_groups.py); it ends with this process, however this
one ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from amplifier_api_server.runtime import call_groups, supervisor
from amplifier_api_server.runtime.call_groups import CallGroup
from amplifier_api_server.runtime.gateway import Gateway
from amplifier_api_server.runtime.own_process.inside import MAIN_PID
from amplifier_api_server.runtime.protocol import Environment

log = logging.getLogger(__name__)

BACKLOG = 64
MOST_PROCESSES = 64
USUAL_BYTES = 40 * 1024 * 1024  # of its own, of one with a few modules and its supervisor (measured)
END_SECONDS = 2.0  # for its supervisor to kill what is left; it takes some milliseconds
MEMORY_SHARE = 2  # of the sandbox's memory one session may have the half; then the others still run
MAX_SAID_BYTES = 4096  # of its standard error, kept
_READ_BYTES = 64 * 1024
_READ_PAUSE_SECONDS = 0.05  # between two reads: one that floods waits, and costs us little
_PASSED_ON_BYTES = 4096  # a second, to our own standard error
_KEPT = ("PATH", "LANG", "PYTHONSAFEPATH", "PYTHONNOUSERSITE", "PYTHONDONTWRITEBYTECODE")


def most_processes() -> int:
    """How many the sandbox's memory is enough for, beside the main process and tools, and there are groups for."""
    groups = call_groups.ours().most_own_processes
    most = MOST_PROCESSES if groups is None else min(MOST_PROCESSES, groups)
    bound = resource.getrlimit(resource.RLIMIT_DATA)[1]
    return most if bound == resource.RLIM_INFINITY else max(1, min(most, bound // USUAL_BYTES // 2))


class OwnProcess:
    """Started by making it. Raises OSError."""

    def __init__(self, session_id: str, gateway: Gateway, workspace: Path, collections: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._ending: asyncio.Task[None] | None = None
        # In the workspace, which goes with the runtime, however that ends; /tmp is small.
        self._home = Path(tempfile.mkdtemp(prefix=".own-", dir=workspace))
        try:
            with contextlib.ExitStack() as open_here:
                listener, self._socket_fd = _listen(self._home / "s")
                open_here.callback(listener.close)
                self._group = call_groups.ours().for_own_process()
                environment, keep = gateway.to_hand_on()
                groups, kept_groups = self._group.to_hand_on()
                environment |= groups | {
                    **{name: os.environ[name] for name in _KEPT if name in os.environ},
                    Environment.LISTEN_FD: str(listener.fileno()),
                    Environment.WORKSPACE: str(workspace),
                    Environment.COLLECTIONS: str(collections),
                    MAIN_PID: str(os.getpid()),
                    "HOME": str(self._home),
                    "AMPLIFIER_HOME": str(self._home / ".amplifier"),
                    "TMPDIR": tempfile.gettempdir(),
                }
                keep = (listener.fileno(), *keep, *kept_groups)
                self._process = _start(environment, keep, workspace / session_id, self._group)
            try:
                self._pidfd = os.pidfd_open(self._process.pid)
            except OSError:
                _abandon(self._process)
                raise
        except BaseException:
            self._give_up()
            raise
        self.address = f"/proc/self/fd/{self._socket_fd}"
        assert self._process.stdin
        assert self._process.stderr
        self._lifeline = self._process.stdin
        self._said = Said(self._process.stderr)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def how_it_ended(self) -> str:
        """In words, with the last line that it wrote to standard error."""
        code = self._process.returncode or 0
        code = 128 - code if code < 0 else code
        words = f"exited with status {code}"
        if code > 128:  # noqa: PLR2004 - as shells say signals
            with contextlib.suppress(ValueError):
                words = f"was killed by {signal.Signals(code - 128).name}"
        last = self._said.last_line()
        return f"{words}; the last it said: {last}" if last else words

    def terminate(self) -> None:
        """Ask it to end its turn and itself."""
        if not self.ended.done():
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it and all that it started, now; `ended` follows. Idempotent."""
        if not self.ended.done():  # afterwards the groups are others'
            self._group.kill()
        with contextlib.suppress(BrokenPipeError):  # the first byte, which it has not read
            self._lifeline.close()

    async def end(self) -> None:
        """Kill it, and return when nothing of it runs. Idempotent."""
        self.kill()
        if not self.ended.done():
            await asyncio.wait({self.ended}, timeout=END_SECONDS)
        if not self.ended.done():  # its supervisor is stopped, or was tampered with
            self._process.kill()
            await asyncio.wait({self.ended}, timeout=END_SECONDS)

    def _reap(self) -> None:
        if self._process.poll() is None or self._ending is not None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ending = self._loop.create_task(self._finish(), name="end of an own process")

    async def _finish(self) -> None:
        await self._group.end()
        with contextlib.suppress(BrokenPipeError):
            self._lifeline.close()
        self._said.close()
        self._clear()
        self.ended.set_result(None)

    def _give_up(self) -> None:
        if hasattr(self, "_group"):
            self._group.release()
        self._clear()

    def _clear(self) -> None:
        if hasattr(self, "_socket_fd"):
            os.close(self._socket_fd)
        self._loop.run_in_executor(None, lambda: shutil.rmtree(self._home, ignore_errors=True))


class Said:
    """A process's standard error, read to its end: a bounded tail is kept, and a trickle passed on to our own."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._loop = asyncio.get_running_loop()
        self._tail = b""
        self._window_began = 0.0
        self._passed_on = 0
        self._resume: asyncio.TimerHandle | None = None
        os.set_blocking(pipe.fileno(), False)
        self._read_on()

    def last_line(self) -> str:
        lines = self._tail.decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip()[:500] if lines else ""

    def close(self) -> None:
        """What is left in the pipe is read; then no more."""
        if not self._pipe.closed:
            self._take()
            self._stop()
            self._pipe.close()

    def _read_on(self) -> None:
        self._resume = None
        self._loop.add_reader(self._pipe.fileno(), self._read)

    def _stop(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._pipe.fileno())

    def _read(self) -> None:
        self._stop()
        if self._take():
            self._resume = self._loop.call_later(_READ_PAUSE_SECONDS, self._read_on)

    def _take(self) -> bool:
        try:
            data = os.read(self._pipe.fileno(), _READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._tail = (self._tail + data)[-MAX_SAID_BYTES:]
        self._pass_on(data)
        return bool(data)

    def _pass_on(self, data: bytes) -> None:
        now = self._loop.time()
        if now - self._window_began > 1:
            self._window_began, self._passed_on = now, 0
        if room := _PASSED_ON_BYTES - self._passed_on:
            self._passed_on += len(data[:room])
            with contextlib.suppress(OSError):
                os.write(2, data[:room])


def _listen(path: Path) -> tuple[socket.socket, int]:
    """A listening socket that nothing leads to but the descriptor beside it: connect to /proc/self/fd/N."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")  # a socket's path has 107 bytes at most
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        finally:
            path.unlink()
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener, descriptor


def _start(
    environment: dict[str, str], keep: tuple[int, ...], folder: Path, group: CallGroup
) -> subprocess.Popen[bytes]:
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    data_bytes = 0 if most == resource.RLIM_INFINITY else most // MEMORY_SHARE
    program = [sys.executable, "-m", "amplifier_api_server.runtime"]
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-I", "-S", supervisor.__file__, "program", str(data_bytes), *program],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=keep,
        start_new_session=True,
    )
    try:
        group.add(process.pid)
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
    except OSError:
        _abandon(process)
        raise
    return process


def _abandon(process: subprocess.Popen[bytes]) -> None:
    """End one that can't be watched, and that has started nothing yet."""
    process.kill()
    process.communicate()

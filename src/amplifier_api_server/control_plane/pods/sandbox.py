"""One runtime's processes, from their start to the last one's end.

Owns them, and the pipe that holds their output. Refuses to know folders and sessions. Invariant: when `ended` is set,
nothing of it runs: in a sandbox the end of the first process ends all others before it can be waited for
(pid_namespaces(7)).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable

import structlog

from amplifier_api_server.control_plane.pods import process, socket_memory
from amplifier_api_server.control_plane.pods.group import Group
from amplifier_api_server.control_plane.pods.launcher import Address
from amplifier_api_server.control_plane.pods.process import ProcessId
from amplifier_api_server.tenants.ids import RuntimeId

log = structlog.get_logger(__name__)

_READ_BYTES = 16 * 1024
_READ_PAUSE_SECONDS = 0.1  # between two reads of output: whoever floods it waits, and costs us 160 kB a second
_TAIL_BYTES = 4096
_LOGGED_CHARS = 500
_TOGETHER_SECONDS = 0.5
_LAST_WORDS_TIMEOUT_SECONDS = 2.0
_KILL_TIMEOUT_SECONDS = 10.0


class Sandbox:
    """A started runtime. `root` is its first process inside, or itself where there is no sandbox; `main` is
    Python's.
    """

    def __init__(
        self, runtime_id: RuntimeId, started: subprocess.Popen[bytes], uid: int | None, address: Address, group: Group
    ) -> None:
        self.id = runtime_id
        self.group = group
        self.uid = uid
        self.address = address
        self.ended = asyncio.Event()
        self.reason = ""
        self.root: ProcessId | None = None
        self.main: ProcessId | None = None
        self._started = started
        self._tail: deque[bytes] = deque(maxlen=4)
        self._loop = asyncio.get_running_loop()
        self._watched: set[int] = set()
        self._on_end: Callable[[RuntimeId], None] | None = None
        self._reading = False
        self._resume: asyncio.TimerHandle | None = None

    def watch(self, on_end: Callable[[RuntimeId], None]) -> None:
        """Call `on_end` once, in the loop, when everything has ended; and drain the output from now on."""
        self._on_end = on_end
        if self._started.stdout is not None:
            os.set_blocking(self._started.stdout.fileno(), False)
            self._read_on()
        self._watch_process(self._started.pid)

    def enter(self, root: ProcessId) -> None:
        """From now on `root` is known as the first process inside, and its end is waited for too."""
        self.root = root
        if root.pid != self._started.pid:
            self._watch_process(root.pid)

    def _watch_process(self, pid: int) -> None:
        if not hasattr(os, "pidfd_open"):
            threading.Thread(target=self._wait_in_thread, daemon=True).start()
            return
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        self._watched.add(descriptor)
        self._loop.add_reader(descriptor, self._one_ended, descriptor)

    def _one_ended(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
        self._watched.discard(descriptor)
        if self._watched:
            # Bubblewrap's outer process and its first one inside end together, a moment apart on a busy machine: only the
            # outer one's status says why. Whichever is left after that is told so.
            self._loop.call_later(_TOGETHER_SECONDS, self.kill, "a process of its sandbox has ended")
        else:
            self._end()

    def _wait_in_thread(self) -> None:
        self._started.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        status = self._started.wait(timeout=1)  # it has ended: this only takes its status
        self._drain()
        self._stop_reading()
        if self._started.stdout is not None:
            self._started.stdout.close()
        if not self.reason:
            self.reason = self.group.why_killed() or _in_words(status)
        self.ended.set()
        log.info("a runtime has ended", runtime_id=self.id, reason=self.reason)
        if self._on_end is not None:
            self._on_end(self.id)

    def _read_on(self) -> None:
        self._resume = None
        if not self.ended.is_set() and self._started.stdout is not None and not self._reading:
            self._reading = True
            self._loop.add_reader(self._started.stdout.fileno(), self._read)

    def _stop_reading(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
        if self._reading and self._started.stdout is not None:
            self._loop.remove_reader(self._started.stdout.fileno())
        self._reading = False

    def _read(self) -> None:
        self._stop_reading()
        if self._drain():
            self._resume = self._loop.call_later(_READ_PAUSE_SECONDS, self._read_on)

    def _drain(self) -> bool:
        """Take one read's worth of output; false at its end."""
        assert self._started.stdout is not None
        try:
            read = os.read(self._started.stdout.fileno(), _READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if read:
            self._tail.append(read[-_TAIL_BYTES:])
            # The tenant's words, not ours: never above debug.
            log.debug("a runtime said", runtime_id=self.id, output=read[:_LOGGED_CHARS].decode("utf-8", "replace"))
        return bool(read)

    async def words_at_end(self) -> str:
        """Why it ended and the last it said: for an operator, and only of a runtime that no tenant has had.

        Of one that has not ended after two seconds, what it has said so far.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), _LAST_WORDS_TIMEOUT_SECONDS)
        said = b"".join(self._tail).decode("utf-8", "replace").strip()[-_TAIL_BYTES:]
        return f"{self.reason or 'it still runs'}: {said}"

    def tools(self) -> list[ProcessId]:
        """All processes in it but its first and the runtime itself."""
        if self.root is None:
            return []
        return [one for one in process.descendants(self.root) if one != self.main]

    def temporary_bytes(self) -> int:
        """What its temporary folders hold, which is memory; 0 where it has none of its own, or they can't be seen."""
        if self.root is None or self.root == self.main:
            return 0
        total = 0
        for folder in ("tmp", "dev/shm"):
            with contextlib.suppress(OSError):
                found = os.statvfs(f"/proc/{self.root.pid}/root/{folder}")
                total += (found.f_blocks - found.f_bfree) * found.f_frsize
        return total

    def socket_bytes(self) -> int:
        """What its sockets hold, as far as it can be seen; 0 where it has no network of its own."""
        return 0 if self.root is None or self.root == self.main else socket_memory.held_bytes(self.root.pid)

    def end_strays(self, folder: str) -> None:
        """SIGKILL for what may still hold `folder`, which was just moved out of what the sandbox can reach. Blocks.

        That is each process that belongs to no running call, whatever it seems to hold: a descriptor on its way through a
        socket is in no table. A call's processes descend from the runtime, what outlived a call falls to the sandbox's
        first process. Of those of running calls, which are other sessions', it is who is seen to hold it.
        """
        if self.root is None:
            return
        calls = [] if self.main is None else process.descendants(self.main)
        strays = [one for one in self.tools() if one not in calls] if self.main != self.root else []
        for one in [*strays, *process.holders(calls, folder)]:
            if process.send(one, signal.SIGKILL):
                log.info("a process that could hold a detached folder was killed", runtime_id=self.id)

    async def terminate(self, reason: str, grace_seconds: float) -> None:
        """SIGTERM for the runtime, and after the grace SIGKILL for everything. Returns when nothing runs any more.

        Raises TimeoutError when the kernel does not let go of it.
        """
        if not self.ended.is_set() and not self.reason:
            self.reason = reason
        unsandboxed = self._unsandboxed()
        if grace_seconds > 0 and self.main is not None and process.send(self.main, signal.SIGTERM):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), grace_seconds)
        if not self.ended.is_set():
            self.kill(reason)
        for one in unsandboxed:
            process.send(one, signal.SIGKILL)
        await asyncio.wait_for(self.ended.wait(), _KILL_TIMEOUT_SECONDS)

    def kill(self, reason: str) -> None:
        """SIGKILL for everything, now; `ended` follows."""
        if self.ended.is_set():
            return
        if not self.reason and self._started.poll() is None:
            self.reason = reason
        unsandboxed = self._unsandboxed()
        self.group.kill()
        if self.root is None or not process.send(self.root, signal.SIGKILL):
            self._started.kill()  # our own child, not waited for yet: its number is no other's
        for one in unsandboxed:
            process.send(one, signal.SIGKILL)

    def _unsandboxed(self) -> list[ProcessId]:
        """What it has started, where no namespace's end would end it: as far as it can be found."""
        if self.root is None or self.root != self.main:
            return []
        return process.descendants(self.root)


def _in_words(status: int) -> str:
    # Bubblewrap ends with 128 and the signal's number when what it runs was killed.
    number = -status if status < 0 else status - 128
    if number > 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(number).name}"
    return f"exited with status {status}"

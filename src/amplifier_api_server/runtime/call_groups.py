"""Groups of processes that end together: one for each running call of a tool, some for each session's own process.

Owns the descriptors of control groups that the launcher handed in, and who has which. Refuses to hand any to a tool:
they are not inherited, and a process is moved by its number, before it runs anything, by us. Invariant: when `end` has
returned nothing runs that was in the group or was forked there, however often and into whatever session it forked and
whatever it killed.

Where the launcher has no such groups, a call's supervisor ends what the call started; should it be killed itself, this
process is the one that its orphans fall to (PR_SET_CHILD_SUBREAPER), and ends all children that it did not start.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amplifier_api_server.runtime.protocol import Environment

log = logging.getLogger(__name__)

OWN_PROCESS_GROUPS = 4  # of a session's own process: itself, and three calls at once
END_SECONDS = 5.0  # the kernel needs a millisecond, unless a disk hangs
_LOOK_SECONDS = 0.002
_STRAYS_SECONDS = 1.0  # after which what forks on and on is no longer ended one by one
_MOST_READ_BYTES = 65536
_IN_A_SANDBOX = (2, 1)
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Handed:
    """What the launcher says in `Environment.GROUPS`: `ENTRIES;PROCS:KILL,...;EVENTS,BYTES`, of which each may be empty.

    Numbers of descriptors: a call's first process is written to all of the entries and to one call's `cgroup.procs`;
    EVENTS counts what the kernel has killed because tools had more than BYTES of memory together.
    """

    entries: tuple[int, ...] = ()
    calls: tuple[tuple[int, int], ...] = ()
    events: int | None = None
    memory_bytes: int = 0

    @classmethod
    def read(cls, text: str) -> Handed:
        """Raises ValueError."""
        if not text:
            return cls()
        entries, calls, memory = text.split(";")
        events, memory_bytes = memory.split(",") if memory else ("", "0")
        pairs = [one.split(":") for one in calls.split(",") if one]
        return cls(
            tuple(int(one) for one in entries.split(",") if one),
            tuple((int(procs), int(kill)) for procs, kill in pairs),
            int(events) if events else None,
            int(memory_bytes),
        )

    @property
    def text(self) -> str:
        calls = ",".join(f"{procs}:{kill}" for procs, kill in self.calls)
        memory = "" if self.events is None else f"{self.events},{self.memory_bytes}"
        return f"{','.join(map(str, self.entries))};{calls};{memory}"

    @property
    def descriptors(self) -> tuple[int, ...]:
        return (
            *self.entries,
            *(one for pair in self.calls for one in pair),
            *(() if self.events is None else (self.events,)),
        )


class CallGroup:
    """Of one call, from `add` to `end`; or of several groups, for a process that has calls of its own."""

    def __init__(self, groups: CallGroups, calls: Sequence[tuple[int, int]]) -> None:
        self._groups = groups
        self._calls = tuple(calls)
        self._killed_before = groups.memory_kills()
        self._pids: list[int] = []

    def add(self, pid: int) -> None:
        """Take in a child of ours that waits to be told to go on. Raises OSError."""
        self._groups.started.add(pid)
        self._pids.append(pid)
        procs = [kept for kept, _ in self._calls[:1]]
        for descriptor in (*self._groups.handed.entries, *procs):
            os.write(descriptor, str(pid).encode())

    def kill(self) -> None:
        """SIGKILL for all that is in it, at once; without groups nothing happens."""
        for _, descriptor in self._calls:
            with contextlib.suppress(OSError):  # the launcher has removed it
                os.write(descriptor, b"1")

    def to_hand_on(self) -> tuple[dict[str, str], tuple[int, ...]]:
        """Variables and descriptors for a session's own process, which has all of these groups but the first."""
        handed = self._groups.handed
        own = Handed(handed.entries, self._calls[1:], handed.events, handed.memory_bytes)
        return ({Environment.GROUPS: own.text}, own.descriptors) if own.descriptors else ({}, ())

    def memory_kills(self) -> str:
        """What is to be said of tools that the kernel has killed since this group was taken; mostly nothing."""
        killed = self._groups.memory_kills() - self._killed_before
        if killed <= 0:
            return ""
        most = self._groups.handed.memory_bytes >> 20
        return f"killed: memory over {most} MiB, which all tools of this sandbox share ({killed} processes were killed)"

    def release(self) -> None:
        """Give it back at once: what was added has ended, and had started nothing."""
        self._groups.started.difference_update(self._pids)
        self._groups.give_back(self._calls)

    async def end(self) -> None:
        """Kill what still runs in it, and return when nothing does. Never raises; what stays is logged."""
        self._groups.started.difference_update(self._pids)
        if not self._calls:
            await self._groups.end_strays()
            return
        self.kill()
        deadline = time.monotonic() + END_SECONDS
        while not all(_is_empty(procs) for procs, _ in self._calls):
            if time.monotonic() > deadline:
                log.error("a call's processes do not end; its control group is not used again")
                return
            await asyncio.sleep(_LOOK_SECONDS)
        self._groups.give_back(self._calls)


class CallGroups:
    """All that this process was handed. Half of them are for calls, half for sessions' own processes."""

    def __init__(self, handed: Handed, *, is_main: bool = True, is_sandboxed: bool = False) -> None:
        self.handed = handed
        self.started: set[int] = set()
        half = len(handed.calls) // 2 if is_main else len(handed.calls)
        self._free = list(handed.calls[:half])
        self._free_for_own = list(handed.calls[half:])
        self._for_own = frozenset(self._free_for_own)
        self._waiting = asyncio.Semaphore(len(self._free)) if handed.calls else None
        self._is_main = is_main
        self._is_sandboxed = is_sandboxed

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, is_main: bool) -> CallGroups:
        """What was handed in, from now on not inherited by anything we start. Raises ValueError and OSError."""
        handed = Handed.read(environment.get(Environment.GROUPS, ""))
        for descriptor in handed.descriptors:
            os.set_inheritable(descriptor, False)
        if is_main and not handed.calls and sys.platform == "linux":
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        # A signal to everybody is for the sandbox's own pid namespace alone, in which bubblewrap is 1 and the runtime 2.
        is_sandboxed = Environment.GATEWAY_FD in environment and (os.getpid(), os.getppid()) == _IN_A_SANDBOX
        return cls(handed, is_main=is_main, is_sandboxed=is_sandboxed)

    @property
    def most_own_processes(self) -> int | None:
        """How many sessions' own processes there are groups for; None where there are no groups."""
        return len(self._for_own) // OWN_PROCESS_GROUPS if self.handed.calls else None

    @contextlib.asynccontextmanager
    async def call(self) -> AsyncIterator[CallGroup]:
        """A group for one call, ended at its end. Waits while as many run as there are groups."""
        if self._waiting is not None:
            await self._waiting.acquire()
        group = CallGroup(self, [self._free.pop()] if self._waiting is not None else ())
        try:
            yield group
        finally:
            group.kill()  # at once, even if whoever called is cancelled and does not wait
            await asyncio.shield(group.end())

    def for_own_process(self) -> CallGroup:
        """Groups for a session's own process. Raises OSError when all are taken."""
        if not self.handed.calls:
            return CallGroup(self, ())
        if len(self._free_for_own) < OWN_PROCESS_GROUPS:
            raise BlockingIOError("all control groups of this sandbox are in use")
        return CallGroup(self, [self._free_for_own.pop() for _ in range(OWN_PROCESS_GROUPS)])

    def give_back(self, calls: Sequence[tuple[int, int]]) -> None:
        """Let others have them: nothing is in them."""
        for one in calls:
            if one in self._for_own:
                self._free_for_own.append(one)
            elif self._waiting is not None:
                self._free.append(one)
                self._waiting.release()

    def memory_kills(self) -> int:
        """How many tools the kernel has killed for memory so far."""
        if self.handed.events is None:
            return 0
        try:
            lines = os.pread(self.handed.events, _MOST_READ_BYTES, 0).splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith(b"oom_kill ")), 0)

    async def end_strays(self) -> None:
        """Kill children that we did not start: orphans of a supervisor that was killed. They become ours one by one.

        What forks on faster than that is ended by one signal for everything in the sandbox: the kernel sends that while
        nothing can fork (kill(2), pid -1). Calls that other sessions run then end too.
        """
        if not self._is_main:
            return  # modules may have children here; what is left ends with the process, by the main process
        deadline = time.monotonic() + _STRAYS_SECONDS
        while strays := self._strays():
            for pid in strays:
                _kill_and_reap(pid)
            if time.monotonic() > deadline:
                log.error("what a call left forks on: everything in the sandbox but the runtime is killed")
                if self._is_sandboxed:
                    os.kill(-1, signal.SIGKILL)
                    await asyncio.sleep(_LOOK_SECONDS)
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def _strays(self) -> list[int]:
        """Children of any of our threads that are none of those that we started."""
        found: list[int] = []
        for path in Path("/proc/self/task").glob("*/children"):
            with contextlib.suppress(OSError, ValueError):
                found += [int(pid) for pid in path.read_text(encoding="ascii").split()]
        return [pid for pid in found if pid not in self.started]


def _kill_and_reap(pid: int) -> None:
    """A child of ours that nobody has waited for: its number is no other's."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.waitpid(pid, os.WNOHANG)


def _is_empty(procs: int) -> bool:
    try:
        return not os.pread(procs, 64, 0)
    except OSError:
        return True  # the launcher has removed it


_ours: list[CallGroups] = []


def prepare(environment: Mapping[str, str], *, is_main: bool) -> None:
    """Once, as the runtime starts, before anything is started by it. Raises ValueError and OSError."""
    _ours[:] = [CallGroups.from_environment(environment, is_main=is_main)]


def ours() -> CallGroups:
    """This process's; without any groups where nobody has prepared them, as in tests of a single module."""
    if not _ours:
        _ours.append(CallGroups(Handed(), is_main=False))
    return _ours[0]

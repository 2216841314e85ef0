"""Processes as /proc tells of them: who lives, who descends from whom, what memory each holds; and killing exactly one.

Owns the reading of /proc. Refuses to name a process by its number alone: numbers are reused, so an identity is a number
and a start time, and a signal goes through a pidfd whose identity was checked after it was opened.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# Fields of /proc/[pid]/stat after the command's name, counted from 0 (proc(5) counts the same from 3).
_STATE, _PARENT, _STARTED = 0, 1, 19
_CPU_TIMES = slice(11, 15)
_OUT_OF_REACH = frozenset(
    {b"/", b"/ (deleted)"}
)  # how the kernel names a mapped file that no path in its mount leads to
_ENDED = frozenset({"Z", "X"})  # a zombie's state, and that of one which is just being reaped


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process for ever: `started_ticks` since boot tells it from a later one with the same number."""

    pid: int
    started_ticks: int


def boot_id() -> str:
    """This boot's id: start times of another boot mean nothing now. Empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _stat(pid: int) -> list[str] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read(4096).decode("ascii", "replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # the name may hold spaces and brackets; what follows it may not


def identify(pid: int) -> ProcessId | None:
    """The process that has this number now; None when none has, or it has ended and only waits to be reaped."""
    fields = _stat(pid)
    if fields is None or fields[_STATE] in _ENDED:
        return None
    return ProcessId(pid, int(fields[_STARTED]))


def is_alive(process: ProcessId) -> bool:
    return identify(process.pid) == process


def parent(pid: int) -> int | None:
    """The number of its parent now; None when it is gone."""
    fields = _stat(pid)
    return None if fields is None else int(fields[_PARENT])


def children(of: ProcessId) -> list[ProcessId]:
    """The living processes whose parent is any thread of `of`; empty when it is gone.

    Each is identified while it is known to be a child of this very process: a number that was another's by then is left
    out.
    """
    found = []
    for pid in _numbers_of_children(of.pid):
        fields = _stat(pid)
        if fields is not None and fields[_STATE] not in _ENDED and int(fields[_PARENT]) == of.pid:
            found.append(ProcessId(pid, int(fields[_STARTED])))
    return found if is_alive(of) else []


def descendants(of: ProcessId, *, at_most: int = 4096) -> list[ProcessId]:
    """Every process below `of`, nearest first. Of a sandbox's first process that is all of the sandbox: orphans in a
    pid namespace become that process's children, never the host's (pid_namespaces(7)).
    """
    found: list[ProcessId] = []
    seen = {of}
    pending = deque([of])
    while pending and len(found) < at_most:
        for child in children(pending.popleft()):
            if child not in seen:
                seen.add(child)
                found.append(child)
                pending.append(child)
    return found


def _numbers_of_children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                found += map(int, file.read().split())
        except FileNotFoundError:
            if thread == str(pid) and os.path.exists(f"/proc/{pid}/stat"):
                return _children_by_scan(pid)  # the kernel was built without CONFIG_PROC_CHILDREN
        except OSError:
            continue  # the thread ended between the listing and the reading
    return found


def _children_by_scan(pid: int) -> list[int]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [one for one in pids if parent(one) == pid]


def pids_of_uid(uid: int) -> list[int]:
    """Processes whose effective user is `uid`."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}").st_uid == uid:
                    found.append(int(name))
            except OSError:
                continue  # it ended between the listing and the reading
    return found


def _fields(path: str, wanted: tuple[bytes, ...]) -> dict[bytes, int]:
    """The first number of each wanted line of a file of `name: number` lines; nothing when it can't be read."""
    found: dict[bytes, int] = {}
    try:
        with open(path, "rb", buffering=0) as file:
            for line in file.read(16384).splitlines():
                if line.startswith(wanted):
                    name, _, rest = line.partition(b":")
                    found[name] = int(rest.split()[0])
    except (OSError, IndexError, ValueError):
        return {}
    return found


def own_bytes(pid: int) -> int:
    """Anonymous and shared memory and page tables, resident or swapped out, without the pages of files; 0 when it is gone.

    Too much by what is shared with a parent since a fork; see `fair_bytes`.
    """
    return 1024 * sum(_fields(f"/proc/{pid}/status", (b"RssAnon:", b"RssShmem:", b"VmPTE:", b"VmSwap:")).values())


def fair_bytes(pid: int) -> int:
    """The same with each shared page divided among its holders; ten times as slow to read. 0 when it can't be read."""
    return 1024 * sum(_fields(f"/proc/{pid}/smaps_rollup", (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")).values())


def written_bytes(pid: int) -> int | None:
    """What it, and each child whose end it has seen, has written to disks, through mappings too.

    None when that can't be read: it is gone, or it has closed itself to others (PR_SET_DUMPABLE) and we are not root.
    """
    return _fields(f"/proc/{pid}/io", (b"write_bytes:",)).get(b"write_bytes")


def cpu_ticks(pid: int) -> int:
    """The processor time of it and of each child whose end it has seen, in hundredths of a second; 0 when it is
    gone.
    """
    fields = _stat(pid)
    return 0 if fields is None else sum(int(one) for one in fields[_CPU_TIMES])


@dataclass(frozen=True, slots=True)
class Unnamed:
    """Open files that have no name any more."""

    bytes: int = 0
    count: int = 0


def deleted_files(pids: Iterable[int], device: int, *, most_files: int) -> Unnamed:
    """What open files without a name take on `device`: no walk through folders finds them."""
    total = 0
    seen: set[int] = set()
    looked_at = 0
    for pid in pids:
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for name in names:
            looked_at += 1
            if looked_at > most_files:
                return Unnamed(total, len(seen))
            with contextlib.suppress(OSError):
                found = os.stat(f"/proc/{pid}/fd/{name}")
                if found.st_nlink == 0 and found.st_dev == device and found.st_ino not in seen:
                    seen.add(found.st_ino)
                    total += found.st_blocks * 512
    return Unnamed(total, len(seen))


def hides_files(pids: Iterable[int], device: int, *, most_files: int) -> bool:
    """Whether files without a name may be kept on `device` by what `deleted_files` does not see: descriptors that lie in
    sockets, and mappings. True as well where there is more to look at than `most_files`.
    """
    looked_at = 0
    number = f"{os.major(device):02x}:{os.minor(device):02x}".encode()
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                looked_at += 1
                if looked_at > most_files:
                    return True
                if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:") and _lies_in_socket(pid, name):
                    return True
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:
            for line in file:
                if line.rstrip().endswith(b" (deleted)") and line.split(maxsplit=4)[3] == number:
                    return True
    return False


def send(process: ProcessId, number: signal.Signals) -> bool:
    """Signal exactly this process. False when it is gone, or may not be signalled."""
    if not hasattr(os, "pidfd_open"):  # only Linux has it, and sandboxes
        return is_alive(process) and _send_by_number(process, number)
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _send_by_number(process: ProcessId, number: signal.Signals) -> bool:
    try:
        os.kill(process.pid, number)
    except OSError:
        return False
    return True


def end_all(found: list[ProcessId], timeout_seconds: float) -> bool:
    """SIGKILL for these and all below them; true when they have ended within the time. Blocks."""
    below = [one for root in found for one in descendants(root)]
    for one in (*found, *below):
        send(one, signal.SIGKILL)
    deadline = time.monotonic() + timeout_seconds
    while any(is_alive(one) for one in (*found, *below)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)  # they are not our children, so there is nothing to wait for
    return True


def holders(among: Iterable[ProcessId], folder: str) -> list[ProcessId]:
    """Those that may reach into `folder`, which was just moved out of what they can reach by a path: by their working folder,
    an open or mapped file, or by descriptors that lie in a socket of theirs, which may be of anything.

    Of a process in another mount namespace the kernel then tells `/` as the path, although it is not the root.
    """
    return [one for one in among if _holds(one.pid, folder)]


def _holds(pid: int, folder: str) -> bool:
    links = [f"/proc/{pid}/cwd"]
    with contextlib.suppress(OSError):
        links += [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]
    for link in links:
        with contextlib.suppress(OSError):
            target = os.readlink(link)
            if target == folder or target.startswith(folder + "/"):
                return True
            if target == "/" and not os.path.samefile(link, f"/proc/{pid}/root"):
                return True
            if target.startswith("socket:") and _lies_in_socket(pid, os.path.basename(link)):
                return True
    return _maps(pid, folder)


def _lies_in_socket(pid: int, descriptor: str) -> bool:
    """Whether descriptors were sent to this socket and not yet received: until then they are in no process's table."""
    return _fields(f"/proc/{pid}/fdinfo/{descriptor}", (b"scm_fds:",)).get(b"scm_fds", 0) > 0


def _maps(pid: int, folder: str) -> bool:
    """Whether a file of the folder is mapped; a mapping needs no descriptor, and fills the holes of its file."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            path = line.split(maxsplit=5)[5:]
            if path and (path[0].rstrip() in _OUT_OF_REACH or path[0].startswith(os.fsencode(folder) + b"/")):
                return True
    return False

"""Runs one command or program, and outlives it just long enough to kill everything that it started.

    supervisor.py shell CPU_SECONDS COMMAND
    supervisor.py program DATA_BYTES PROGRAM ARGUMENT...

A program of its own (`python -I -S supervisor.py`), so that it imports little and starts in 15 ms. It is a subreaper:
whatever the command forks, however often and into whatever session, becomes its child when its parent ends, and dies
with it. Standard input is a lifeline: nothing is started before the first byte comes, so that the runtime can put this
process into a control group; when the runtime closes it, or is gone, everything is killed. A command can kill its
supervisor: what holds then is the group, or the runtime (call_groups.py). It exits as the
command did, 128 + N for signal N, as shells do. A program gets the SIGTERM that the supervisor gets, keeps the
descriptors that were handed in, and dies with its supervisor.
"""

import ctypes
import os
import resource
import select
import signal
import sys
import time
from _collections_abc import Callable  # that is there already; collections.abc would import more

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
KILL_SECONDS = 5.0
LEAST_NICENESS = 19
SHELLS = ("/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash", "/bin/sh")


def main() -> int:
    kind, bound, *command = sys.argv[1:]
    if not os.read(0, 1):
        return 128 + signal.SIGKILL
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if kind == "program":
        child = start(lambda: program(int(bound), command))
        signal.signal(signal.SIGTERM, lambda *_: send(child, signal.SIGTERM))  # not waited for yet: it has its number
    else:
        child = start(lambda: shell(int(bound), command[0]))
    # The outputs, and what was handed in, are the command's alone: whoever waits for their end waits for its.
    for descriptor in open_descriptors():
        if descriptor not in (0, woken, wake):
            os.close(descriptor)
    status = wait(child, woken)
    signal.set_wakeup_fd(-1)
    kill_all()
    if status is None:
        return 128 + signal.SIGKILL
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def start(become: Callable[[], None]) -> int:
    """Fork what `become` turns into, in a session of its own and with nothing to read."""
    child = os.fork()
    if child:
        return child
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        become()
    except BaseException as error:  # noqa: BLE001 - the forked half must never return into main
        os.write(2, f"the command could not be started: {error}\n".encode())
    os._exit(127)


def shell(cpu_seconds: int, command: str) -> None:
    for descriptor in open_descriptors():
        if descriptor > 2:  # noqa: PLR2004 - standard error
            os.set_inheritable(descriptor, False)
    os.nice(LEAST_NICENESS)  # whoever else is in the sandbox comes first, the runtime before all
    limit(resource.RLIMIT_CPU, cpu_seconds, hard=True)
    # A session in a process of its own has a lower limit than its commands.
    resource.setrlimit(resource.RLIMIT_DATA, (resource.getrlimit(resource.RLIMIT_DATA)[1],) * 2)
    path = next(path for path in SHELLS if os.path.exists(path))  # noqa: PTH110 - pathlib doubles the start's time
    os.execv(path, [path, "-c", command])  # noqa: S606 - running a command is what this is for


def program(data_bytes: int, arguments: list[str]) -> None:
    supervisor = os.getppid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor or supervisor == 1:
        os._exit(127)
    if data_bytes:
        limit(resource.RLIMIT_DATA, data_bytes, hard=False)
    os.execv(arguments[0], arguments)  # noqa: S606 - so is this


def limit(kind: int, value: int, *, hard: bool) -> None:
    """Lower a limit; the soft one alone can be raised again, for what is started later."""
    most = resource.getrlimit(kind)[1]
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(kind, (value, value if hard else most))


def prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def open_descriptors() -> list[int]:
    found = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    return [descriptor for descriptor in found if is_open(descriptor)]  # not the one that they were read by


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def wait(child: int, woken: int) -> int | None:
    """The command's exit status, or None when the lifeline was cut first. Reaps orphans on the way."""
    poller = select.poll()
    poller.register(0, select.POLLIN | select.POLLHUP)
    poller.register(woken, select.POLLIN)
    while True:
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == child:
                    return status
                if pid == 0:
                    break
        except ChildProcessError:
            return None
        ready = [descriptor for descriptor, _ in poller.poll(1000)]
        if woken in ready:
            os.read(woken, 4096)
        if 0 in ready and not os.read(0, 4096):
            return None


def kill_all() -> None:
    """Kill and reap descendants until there is none; a fork bomb takes a few rounds."""
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        for pid, started in descendants():
            kill_exactly(pid, started)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass


def kill_exactly(pid: int, started: int) -> None:
    """The process that had this number when it was listed, and no later one: a sandbox has few numbers to give."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if (now := parent_and_start(pid)) is not None and now[1] == started:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def descendants() -> list[tuple[int, int]]:
    """Every process below this one, nearest first: its number, and when it was started."""
    children: dict[int, list[tuple[int, int]]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit() and (found := parent_and_start(int(entry))) is not None:
            children.setdefault(found[0], []).append((int(entry), found[1]))
    below = list(children.get(os.getpid(), ()))
    for pid, _ in below:
        below.extend(children.get(pid, ()))
    return below


def parent_and_start(pid: int) -> tuple[int, int] | None:
    """From /proc/PID/stat; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123
            fields = stat.read().rpartition(b")")[2].split()
        return int(fields[1]), int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


if __name__ == "__main__":
    os._exit(main())

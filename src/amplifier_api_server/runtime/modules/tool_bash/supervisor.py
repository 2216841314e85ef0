"""Runs one command and outlives it just long enough to kill everything that it started.

    supervisor.py CPU_SECONDS COMMAND

A program of its own (`python -I -S supervisor.py`), so that it imports little and starts in 15 ms. It is a subreaper:
whatever the command forks, however often and into whatever session, becomes its child when its parent ends, and dies
with it. Standard input is a lifeline: when the runtime closes it, or is gone, everything is killed. It exits as the
command did, 128 + N for signal N, as shells do.
"""

import ctypes
import os
import resource
import select
import signal
import sys
import time

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
KILL_SECONDS = 5.0
SHELLS = ("/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash", "/bin/sh")


def main() -> int:
    cpu_seconds, command = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = start(command, cpu_seconds)
    for output in (1, 2):  # the command's to close, so that the runtime sees their end
        os.close(output)
    status = wait(child, woken)
    signal.set_wakeup_fd(-1)
    kill_all()
    if status is None:
        return 128 + signal.SIGKILL
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def start(command: str, cpu_seconds: int) -> int:
    """Fork the shell, in a session of its own and with nothing to read."""
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
        os.closerange(3, 64)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        allowed = cpu_seconds if hard == resource.RLIM_INFINITY else min(cpu_seconds, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (allowed, allowed))
        shell = next(path for path in SHELLS if os.path.exists(path))  # noqa: PTH110 - pathlib doubles the start's time
        os.execv(shell, [shell, "-c", command])  # noqa: S606 - running a command is what this is for
    except BaseException as error:  # noqa: BLE001 - the forked half must never return into main
        os.write(2, f"the command could not be started: {error}\n".encode())
    os._exit(127)


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
        for pid in descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def descendants() -> list[int]:
    """Every process below this one, nearest first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as stat:  # noqa: PTH123
                    parent = int(stat.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry))
    found = [os.getpid()]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found[1:]


if __name__ == "__main__":
    os._exit(main())

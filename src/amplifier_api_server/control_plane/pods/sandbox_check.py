"""Can this machine sandbox? Found out by doing it: a runtime is started, looks around, and is ended.

Owns the question that `serve` asks before it takes work, and `doctor` when it is asked. Refuses to guess from versions:
what the kernel's settings say is advice for when it fails, never the answer.
"""

from __future__ import annotations

import platform
import shutil
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from amplifier_api_server.control_plane import settings
from amplifier_api_server.control_plane.pods import autogroup, control_groups, uids
from amplifier_api_server.control_plane.pods.bubblewrap import NoBubblewrapError, find_bubblewrap
from amplifier_api_server.control_plane.pods.launcher import LaunchError
from amplifier_api_server.control_plane.pods.local import LocalLauncher
from amplifier_api_server.control_plane.pods.sockets import remove_socket_dir
from amplifier_api_server.tenants.ids import new_runtime_id

_BOUNDS = {
    "memory": "memory",
    "cpu": "share of processors",
    "pids": "number of processes",
    control_groups.KILL: "ends of calls and sessions",
}
# What a sandbox says of itself. It answers 200 only when it is what it should be, so starting it is the whole check.
_PROBE = """
import ctypes, os, socket
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
wrong = []
if int(status["CapEff"], 16) or int(status["CapBnd"], 16):
    wrong.append("has capabilities")
if status["Seccomp"].strip() != "2":
    wrong.append("has no seccomp filter")
if status["NoNewPrivs"].strip() != "1":
    wrong.append("may gain privileges")
if {line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]} - {"lo"}:
    wrong.append("has a network")
if not ctypes.CDLL(None).unshare(0x10000000):
    wrong.append("may make user namespaces")
if os.getuid() == 0:
    wrong.append("is root")
answer = "200 OK" if not wrong else "500 A sandbox " + ", ".join(wrong)
listener = socket.socket(fileno=int(os.environ["AMPLIFIER_LISTEN_FD"]))
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    connection.sendall(f"HTTP/1.1 {answer}\\r\\nContent-Length: 0\\r\\n\\r\\n".encode())
    connection.close()
"""

_ADVICE = (
    # setting, the value that forbids sandboxes, what to do
    ("/proc/sys/user/max_user_namespaces", "0", "allow user namespaces: sysctl user.max_user_namespaces=15000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor restricts user namespaces: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or a profile for bwrap",
    ),
)
_IN_CONTAINER = "in a container, start it with --security-opt seccomp=unconfined --security-opt apparmor=unconfined"


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """What was found: `works` is the answer, the rest is for people to read."""

    mode: str
    works: bool
    problems: tuple[str, ...]  # why it doesn't, and what to do about it
    notes: tuple[str, ...]  # how it does
    watched: tuple[str, ...] = ()  # which bounds the kernel does not hold, and what to do about that


async def check(sandbox: settings.Sandbox) -> SandboxReport:
    """Start one trivial runtime as the settings say, and end it. Takes 0.1 s where it works; never raises."""
    if sandbox.mode == "none":
        note = "runtimes are not sandboxed: whatever an agent does, it does as the server's user, with its files and network"
        return SandboxReport("none", works=True, problems=(), notes=(note,))
    if sys.platform != "linux":
        problem = f"sandboxes need Linux; this is {platform.system()}. --unsafe-no-sandbox runs agents without one"
        return SandboxReport("bubblewrap", works=False, problems=(problem,), notes=())
    try:
        program = find_bubblewrap()
        took_ms, held = await _try(sandbox)
    except (LaunchError, NoBubblewrapError, OSError, TimeoutError) as error:
        return SandboxReport("bubblewrap", works=False, problems=(str(error), *_advice()), notes=())
    notes = [f"bubblewrap at {program}, kernel {platform.release()}; a sandbox was made and ended in {took_ms:.0f} ms"]
    if uids.is_root():
        notes.append(f"the server is root: each runtime is a user of its own, from {sandbox.first_uid} on")
    if held:
        notes.append("the kernel itself bounds sandboxes' " + ", ".join(_BOUNDS[one] for one in sorted(held)))
    return SandboxReport("bubblewrap", works=True, problems=(), notes=tuple(notes), watched=tuple(_watched(held)))


def _watched(held: frozenset[str]) -> list[str]:
    missing = control_groups.ALL - held
    if not missing:
        return []
    what = ", ".join(_BOUNDS[one] for one in sorted(missing))
    found = [f"without control groups for sandboxes' {what}, these are watched or limited process by process only"]
    if "memory" in missing:
        found.append("sandboxes get no shared anonymous memory (mmap), which no watch sees")
    if "cpu" in missing and autogroup.is_enabled() and not uids.is_root():
        found.append(
            "the scheduler shares processors out by session, so tools can slow the server: "
            "sysctl kernel.sched_autogroup_enabled=0, or run the server as root"
        )
    return found


async def _try(sandbox: settings.Sandbox) -> tuple[float, frozenset[str]]:
    """How many milliseconds it took, and which bounds the kernel holds."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="amplifier-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(remove_socket_dir, folder)
        gateway = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        gateway.bind(str(folder / "gateway"))
        gateway.listen()
        # Free disk is another question than sandboxes, and another folder's.
        launcher = LocalLauncher(
            sandbox.model_copy(update={"min_free_disk": 0}), folder, lambda _: str(folder / "gateway"), program=_PROBE
        )
        runtime_id = new_runtime_id()
        started = time.monotonic()
        try:
            await launcher.start(runtime_id)
            await launcher.stop(runtime_id, "it was only a check", grace_seconds=0)
            return (time.monotonic() - started) * 1000, launcher.held_by_kernel
        finally:
            await launcher.close()


def _advice() -> list[str]:
    found = []
    for path, forbidding, what in _ADVICE:
        try:
            value = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if value == forbidding:
            found.append(what)
    return found or [_IN_CONTAINER]

"""The kernel's limits on a sandbox's processes, and the first lines that run in one.

Owns the numbers' translation into rlimits. Invariant: the limits hold before the runtime's first line, and nothing in
the sandbox can raise them. They are set from inside, because processes are to be counted in the sandbox's own user
namespace (RLIMIT_NPROC counts per user and namespace since Linux 5.14), and because root without CAP_SYS_RESOURCE, as
in most containers, may not set another user's. In the runtime's own interpreter, since another one before it would cost
15 ms.
"""

from __future__ import annotations

import contextlib
import sys

from amplifier_api_server.control_plane import settings

RUNTIME_PROGRAM = "import runpy; runpy.run_module('amplifier_api_server.runtime', run_name='__main__', alter_sys=True)"

_NICENESS = 5  # the control plane comes first when the machine is full
_OOM_SCORE = 500  # and is killed last when memory is

_FIRST_LINES = """
import os, resource
for name, value in {limits!r}:
    kind = getattr(resource, name)
    most = resource.getrlimit(kind)[1]
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(kind, (value, value))
os.nice({niceness})
"""
# Where there is no sandbox that dies with the server, and that is the parent of what its tools leave behind: 1 is
# PR_SET_PDEATHSIG, 9 SIGKILL, 36 PR_SET_CHILD_SUBREAPER. The server may be gone by now; then nobody else tells us.
_WITHOUT_SANDBOX = """
import ctypes
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
if os.getppid() != {parent}:
    raise SystemExit("the server has ended")
"""


def command(program: str, sandbox: settings.Sandbox, *, plain_child_of: int | None = None) -> tuple[str, ...]:
    """How to run the Python source `program` within the limits; `plain_child_of` is the server's number without a
    sandbox.

    RLIMIT_AS would be the plain limit of memory; it breaks threads and node, which reserve far more than they use.
    Without a sandbox processes are the whole user's, and not limited.
    """
    limits = [
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NOFILE", sandbox.files),
        ("RLIMIT_FSIZE", sandbox.file_size),
        ("RLIMIT_DATA", sandbox.memory),
    ]
    if plain_child_of is None:
        limits.append(("RLIMIT_NPROC", sandbox.processes))
    lines = _FIRST_LINES.format(limits=limits, niceness=_NICENESS)
    if plain_child_of is not None and sys.platform == "linux":
        lines += _WITHOUT_SANDBOX.format(parent=plain_child_of)
    return (sys.executable, "-c", lines + program)


def kill_first(pid: int) -> None:
    """Let the kernel take this process, and what it starts from now on, before the control plane when memory is out."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(_OOM_SCORE))

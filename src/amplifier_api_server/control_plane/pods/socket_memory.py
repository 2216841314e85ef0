"""How much memory the sockets of a sandbox hold, as far as /proc tells, where no control group counts it.

Owns the reading of /proc/PID/net, which is the sandbox's network namespace. Invariant: the answer is never less than what
Unix sockets can hold beyond the first few (their buffers can't be made larger there, see seccomp.py); of TCP and UDP it is
twice what lies in their queues, for a packet's own structures take about as much again.
"""

from __future__ import annotations

from pathlib import Path

_FREE_UNIX_SOCKETS = 64  # a runtime and its tools have some, nearly empty
_FREE_INET_SOCKETS = 8
_OVERHEAD = 2
_MOST_READ_BYTES = 1024 * 1024
_DEFAULT_BUFFER_BYTES = 212_992
_QUEUES = 4  # the field with both queues' lengths: tx:rx, hexadecimal


def held_bytes(pid: int) -> int:
    """By all sockets of the network namespace that `pid` is in; 0 when it is gone."""
    counts = _counts(pid)
    unix = counts.get("UNIX", 0) + counts.get("UNIX-STREAM", 0)
    total = max(unix - _FREE_UNIX_SOCKETS, 0) * _unix_buffer_bytes()
    if sum(counts.get(name, 0) for name in ("TCP", "TCPv6", "UDP", "UDPv6")) > _FREE_INET_SOCKETS:
        total += _OVERHEAD * sum(_queued(Path(f"/proc/{pid}/net/{name}")) for name in ("tcp", "tcp6", "udp", "udp6"))
    return total


def _counts(pid: int) -> dict[str, int]:
    """How many sockets there are of each protocol."""
    try:
        lines = Path(f"/proc/{pid}/net/protocols").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return {}
    return {words[0]: int(words[2]) for line in lines if len(words := line.split()) > 2 and words[2].isdigit()}  # noqa: PLR2004


def _queued(path: Path) -> int:
    """What lies in the queues of one table's sockets. A table too long to be read counts as if the rest were the same."""
    try:
        with path.open("rb") as file:
            rows = file.read(_MOST_READ_BYTES).splitlines()[1:]
            is_cut = bool(file.read(1))
    except OSError:
        return 0
    total = 0
    for row in rows:
        sent, _, received = (row.split() + [b""] * (_QUEUES + 1))[_QUEUES].partition(b":")
        total += int(sent or b"0", 16) + int(received or b"0", 16)
    return total * 4 if is_cut else total


def _unix_buffer_bytes() -> int:
    try:
        return int(Path("/proc/sys/net/core/wmem_default").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return _DEFAULT_BUFFER_BYTES

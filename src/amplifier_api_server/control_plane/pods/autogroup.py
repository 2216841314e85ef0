"""The scheduler's groups by session, where no control group weighs processes (sched(7), "The autogroup feature").

With it a process's niceness counts only against others of its own session, and each `setsid` is a share of its own: the
48 sessions of one tool get 48 times what the server gets. The server can raise its own session's share, as root.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

ENABLED = Path("/proc/sys/kernel/sched_autogroup_enabled")
_OWN = Path("/proc/self/autogroup")
_HIGHEST = "-20"  # 87 times the usual share
_before: list[str] = []


def is_enabled() -> bool:
    """Whether sessions are what shares processors."""
    try:
        return ENABLED.read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False


def raise_own() -> None:
    """Give the server's session the highest share; nothing happens where that is not allowed."""
    with contextlib.suppress(OSError):
        if (now := _niceness()) is not None and now != _HIGHEST:
            _OWN.write_text(_HIGHEST, encoding="ascii")
            _before.append(now)


def restore_own() -> None:
    """As it was before `raise_own`."""
    with contextlib.suppress(OSError, IndexError):
        _OWN.write_text(_before.pop(), encoding="ascii")


def is_raised() -> bool:
    """Whether the server's session has the highest share now."""
    return _niceness() == _HIGHEST


def _niceness() -> str | None:
    """The session's, from a line like `/autogroup-25 nice 0`."""
    try:
        words = _OWN.read_text(encoding="ascii").split()
    except OSError:
        return None
    return words[-1] if words else None

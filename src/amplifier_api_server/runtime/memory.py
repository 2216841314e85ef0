"""Memory given back to the system, not only to the allocator: glibc keeps what was freed unless it is asked.

No-ops where the C library is another one.
"""

from __future__ import annotations

import asyncio
import ctypes

_M_ARENA_MAX = -8  # malloc.h; each of core's threads would otherwise fragment an arena of its own
GIVE_BACK_SECONDS = 1.0  # closes that come together are trimmed once: it takes some milliseconds

_scheduled: asyncio.TimerHandle | None = None


def limit_arenas() -> None:
    """To be called before any thread starts."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


def give_back() -> None:
    """Return free memory to the system now."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def give_back_soon() -> None:
    """Return free memory to the system once, a little later, however often this is called until then."""
    global _scheduled  # noqa: PLW0603 - one allocator, one timer

    def now() -> None:
        global _scheduled  # noqa: PLW0603
        _scheduled = None
        give_back()

    loop = asyncio.get_running_loop()
    if _scheduled is None or _scheduled.cancelled() or _scheduled.when() + GIVE_BACK_SECONDS < loop.time():
        _scheduled = loop.call_later(GIVE_BACK_SECONDS, now)

"""User ids for runtimes, where the server is root: one of its own for each that lives (docs/decisions/0003).

Owns who has which. Refuses to give out an id that any process on the machine runs as. Invariant: no two live runtimes
share one, so neither can signal, trace or read the other, whatever else fails. As an ordinary user there is nothing to
give.
"""

from __future__ import annotations

import os
from pathlib import Path

from amplifier_api_server.control_plane.pods import process

# Ids are handed round, not reused at once: a stray process of the last holder has this many starts to be gone.
_SPARE = 4096


def is_root() -> bool:
    return os.geteuid() == 0


def is_mapped(uid: int) -> bool:
    """Whether the server's user namespace has this id (user_namespaces(7)); false in a rootless container without
    it.
    """
    try:
        lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    except OSError:
        return True
    spans = [tuple(map(int, line.split())) for line in lines]
    return any(inside <= uid < inside + count for inside, _, count in spans)


class UidPool:
    """Ids from `first` on, enough for `count` runtimes at once."""

    def __init__(self, first: int, count: int) -> None:
        self._first = first
        self._size = count + _SPARE
        self._next = 0
        self._held: dict[str, int] = {}

    def take(self, holder: str) -> int:
        """An id that nobody else has; the same one again for who has one. Raises LookupError when all are taken."""
        if holder in self._held:
            return self._held[holder]
        for _ in range(self._size):
            uid = self._first + self._next
            self._next = (self._next + 1) % self._size
            if uid not in self._held.values() and not process.pids_of_uid(uid):
                self._held[holder] = uid
                return uid
        raise LookupError(f"all user ids from {self._first} to {self._first + self._size - 1} are in use")

    def give_back(self, holder: str) -> None:
        """Nothing to do for who has none."""
        self._held.pop(holder, None)

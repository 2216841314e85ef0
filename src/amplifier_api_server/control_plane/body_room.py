"""Room for the bodies of requests at the public door: what they hold in memory, from before they are read to their answer.

Owns the bounds for each tenant and for all, and apart from those, much smaller, for whoever is not known: by network, and
for all of them. Refuses to read or to wait. Invariants: what a request's bodies hold is counted before it arrives, and given
back when the request ends; a part of the room is kept for those who hold little, so that a few who take what they may keep
nobody from a small request; nobody without a credential takes room from those who have one.
"""

from __future__ import annotations

from typing import Final

from amplifier_api_server.tenants.errors import Unavailable

# What is read of a body is held several times over: in parts, as a whole, as parsed objects, as models. An estimate: a
# document of very many small values takes more.
WEIGHT: Final = 4
MAX_HELD_BYTES: Final = 256 * 1024 * 1024  # by one tenant: two of the largest imports at once
MAX_HELD_BYTES_OF_ALL: Final = 768 * 1024 * 1024
STRANGERS_BYTES: Final = 32 * 1024 * 1024  # of one network: what strangers send is a code or a form
STRANGERS_BYTES_OF_ALL: Final = 128 * 1024 * 1024
_FEW_BYTES: Final = 8 * 1024 * 1024  # one small request

_RETRY_AFTER_SECONDS: Final = 2.0


class BodyRoom:
    """One a process."""

    def __init__(self, largest_bytes: int = 0) -> None:
        """`largest_bytes`: a body of this size fits, whatever the bounds are."""
        most = max(MAX_HELD_BYTES, largest_bytes * WEIGHT)
        self._tenants = _Room(most, max(MAX_HELD_BYTES_OF_ALL, 2 * most))
        self._strangers = _Room(STRANGERS_BYTES, STRANGERS_BYTES_OF_ALL)

    @property
    def held_bytes(self) -> int:
        return self._tenants.held_bytes + self._strangers.held_bytes

    def enter(self, tenant_id: str) -> HeldBody:
        """A place for a request of a tenant's. Give it back."""
        return HeldBody(self._tenants, tenant_id)

    def enter_unknown(self, network: str) -> HeldBody:
        """The same, for one without a credential."""
        return HeldBody(self._strangers, network)


class _Room:
    """What some hold together, of whom each has a share."""

    def __init__(self, most_of_one: int, most_of_all: int) -> None:
        self._most_of_one = most_of_one
        self._most_of_all = most_of_all
        self._kept = most_of_all // 4  # for those who hold little
        self._of_one: dict[str, int] = {}
        self.held_bytes = 0

    def take(self, whose: str, count: int) -> None:
        """Raises Unavailable (`busy`), and takes nothing then."""
        held = self._of_one.get(whose, 0)
        free = self._most_of_all - self.held_bytes - count
        most = self._most_of_one if free >= self._kept else _FEW_BYTES
        if free < 0 or held + count > most:
            raise Unavailable(
                "too many large bodies are being read at once; send fewer at a time, or try again",
                code="busy",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        self._of_one[whose] = held + count
        self.held_bytes += count

    def give_back(self, whose: str, count: int) -> None:
        """So many bytes, that were taken."""
        left = self._of_one.get(whose, 0) - count
        if left > 0:
            self._of_one[whose] = left
        else:
            self._of_one.pop(whose, None)
        self.held_bytes -= count


class HeldBody:
    """What one request holds."""

    __slots__ = ("_counted", "_room", "_whose")

    def __init__(self, room: _Room, whose: str) -> None:
        self._room = room
        self._whose = whose
        self._counted = 0

    def hold(self, count: int) -> None:
        """So many bytes of a body are to be read, in all. Raises Unavailable (`busy`)."""
        more = count * WEIGHT - self._counted
        if more > 0:
            self._room.take(self._whose, more)
            self._counted += more

    def answered(self) -> None:
        """The answer has begun: of the body, its text at most is needed on, as an execution's prompt is."""
        self._give_back(self._counted - self._counted // WEIGHT)

    def release(self) -> None:
        """The request has ended. Idempotent."""
        self._give_back(self._counted)

    def _give_back(self, count: int) -> None:
        if count:
            self._room.give_back(self._whose, count)
            self._counted -= count

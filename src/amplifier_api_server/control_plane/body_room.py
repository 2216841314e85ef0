"""Room for the bodies of requests at the public door: what they hold in memory, from before they are read to their answer.

Owns the bounds for each tenant (for each network, where no tenant is known) and for all. Refuses to read or to wait.
Invariant: what a request's bodies hold is counted before it arrives, and given back when the request ends.
"""

from __future__ import annotations

from typing import Final

from amplifier_api_server.tenants.errors import Unavailable

# What is read of a body is held several times over: in parts, as a whole, as parsed objects, as models. Measured with
# imports of 31 MiB in small messages.
WEIGHT: Final = 4
MAX_HELD_BYTES: Final = 256 * 1024 * 1024  # by one tenant: two of the largest imports at once
MAX_HELD_BYTES_OF_ALL: Final = 768 * 1024 * 1024

_RETRY_AFTER_SECONDS: Final = 2.0


class BodyRoom:
    """One a process."""

    def __init__(self, largest_bytes: int = 0) -> None:
        """`largest_bytes`: a body of this size fits, whatever the bounds are."""
        self._most_of_one = max(MAX_HELD_BYTES, largest_bytes * WEIGHT)
        self._most_of_all = max(MAX_HELD_BYTES_OF_ALL, self._most_of_one)
        self._of_one: dict[str, int] = {}
        self.held_bytes = 0

    def enter(self, whose: str) -> HeldBody:
        """A request's place, of a tenant's or a network's. Give it back."""
        return HeldBody(self, whose)

    def take(self, whose: str, count: int) -> None:
        """Raises Unavailable (`busy`), and takes nothing then."""
        held = self._of_one.get(whose, 0)
        if held + count > self._most_of_one or self.held_bytes + count > self._most_of_all:
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

    def __init__(self, room: BodyRoom, whose: str) -> None:
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

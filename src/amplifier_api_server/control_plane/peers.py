"""Who is connected to the public door: how many connections each network has, and what they make the server hold.

Owns the shares: a network (`network_of`) has at most so many connections, and all have so many; what clients sent before it
was their turn, and what they leave unread of their answers, is bounded for each network and in all. A trusted proxy speaks
for many clients, so it is bounded by what all have alone. Invariant: what a `Place` holds is given back when it leaves,
once. No input or output.
"""

from __future__ import annotations

from collections.abc import Callable

from amplifier_api_server.control_plane.client_addresses import TrustedProxies, network_of

_AHEAD_BYTES = 8 * 1024 * 1024  # of one network: 32 connections that have all sent as much as is read at once
_AHEAD_BYTES_OF_ALL = 64 * 1024 * 1024
_UNREAD_BYTES = 64 * 1024 * 1024  # of answers to one network: 16 of the largest, beyond what the kernel has taken
_UNREAD_BYTES_OF_ALL = 512 * 1024 * 1024
_MOST_LINGERING = 256


class Peers:
    """One a listener."""

    def __init__(
        self,
        *,
        most: int = 4096,
        most_of_network: int = 4096,
        proxies: TrustedProxies | None = None,
        tell: Callable[[str, str], None] | None = None,
    ) -> None:
        self._most = most
        self._most_of_network = most_of_network
        self._proxies = proxies or TrustedProxies()
        self._tell = tell
        self.count = 0
        self.of_network: dict[str, int] = {}
        self._lingering = 0
        self.ahead = _Shares(_AHEAD_BYTES, _AHEAD_BYTES_OF_ALL)
        self.unread = _Shares(_UNREAD_BYTES, _UNREAD_BYTES_OF_ALL)

    def enter(self, address: str) -> Place | None:
        """One more connection from there; None where there are too many."""
        network = None if self._proxies.include(address) else network_of(address)
        if self.count >= self._most:
            self.tell("all", address)
            return None
        if network is not None:
            count = self.of_network.get(network, 0)
            if count >= self._most_of_network:
                self.tell("address", address)
                return None
            self.of_network[network] = count + 1
        self.count += 1
        return Place(self, address, network)

    def tell(self, reason: str, address: str) -> None:
        """A connection was refused or cut off."""
        if self._tell is not None:
            self._tell(reason, address)

    @property
    def refusal(self) -> str:
        """What one is told who may not enter."""
        return (
            f"this server takes {self._most} connections at once, and {self._most_of_network} of one address; "
            "close some, or try again"
        )

    def linger(self) -> bool:
        """Whether one more that was refused may stay until it has read why; then `end_lingering`."""
        is_room = self._lingering < _MOST_LINGERING
        self._lingering += is_room
        return is_room

    def end_lingering(self) -> None:
        self._lingering -= 1

    def leave(self, network: str | None) -> None:
        """One connection fewer from there."""
        self.count -= 1
        if network is not None:
            self.of_network[network] -= 1
            if not self.of_network[network]:
                del self.of_network[network]


class _Shares:
    """Bytes of one kind that connections hold."""

    def __init__(self, most: int, most_of_all: int) -> None:
        self._most = most
        self._most_of_all = most_of_all
        self._of_network: dict[str, int] = {}
        self.held_bytes = 0

    def change(self, network: str | None, change: int) -> bool:
        """Count so many bytes more, or fewer; False where they pass a bound."""
        self.held_bytes += change
        held = 0
        if network is not None:
            held = self._of_network.get(network, 0) + change
            if held:
                self._of_network[network] = held
            else:
                self._of_network.pop(network, None)
        return change < 0 or (held <= self._most and self.held_bytes <= self._most_of_all)


class Place:
    """One connection's place."""

    __slots__ = ("_ahead_bytes", "_peers", "_unread_bytes", "address", "network")

    def __init__(self, peers: Peers, address: str, network: str | None) -> None:
        self._peers: Peers | None = peers
        self.network = network
        self._ahead_bytes = 0
        self._unread_bytes = 0
        self.address = address

    def hold_ahead(self, count: int) -> bool:
        """`count` bytes are held that were sent ahead; False where that is too much, and the peer should be cut off."""
        if self._peers is None or count == self._ahead_bytes:
            return True
        change, self._ahead_bytes = count - self._ahead_bytes, count
        return self._peers.ahead.change(self.network, change)

    def hold_unread(self, count: int) -> bool:
        """The same, of answers that the peer has not read."""
        if self._peers is None or count == self._unread_bytes:
            return True
        change, self._unread_bytes = count - self._unread_bytes, count
        return self._peers.unread.change(self.network, change)

    def leave(self) -> None:
        """The connection is gone."""
        if self._peers is not None:
            self.hold_ahead(0)
            self.hold_unread(0)
            self._peers.leave(self.network)
            self._peers = None

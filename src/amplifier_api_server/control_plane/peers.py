"""Who is connected to the public door: how many connections each network has, and how much was sent ahead on them.

Owns the shares: a network (`network_of`) has at most so many connections, and all have so many; what clients sent before it
was their turn is bounded for each network and in all. A trusted proxy speaks for many clients, so it is bounded by what all
have alone. Invariant: what a `Place` holds is given back when it leaves, once. No input or output.
"""

from __future__ import annotations

from collections.abc import Callable

from amplifier_api_server.control_plane.client_addresses import TrustedProxies, network_of

_AHEAD_BYTES = 8 * 1024 * 1024  # of one network: 32 connections that have all sent as much as is read at once
_AHEAD_BYTES_OF_ALL = 64 * 1024 * 1024
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
        self.ahead_bytes = 0
        self._ahead_of_network: dict[str, int] = {}

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
            _take_off(self.of_network, network, 1)

    def hold(self, network: str | None, change: int) -> bool:
        """Count so many bytes more, or fewer; False where they pass a bound."""
        self.ahead_bytes += change
        if network is None:
            return self.ahead_bytes <= _AHEAD_BYTES_OF_ALL
        held = self._ahead_of_network.get(network, 0)
        if change < 0:
            _take_off(self._ahead_of_network, network, -change)
            return True
        self._ahead_of_network[network] = held + change
        return held + change <= _AHEAD_BYTES and self.ahead_bytes <= _AHEAD_BYTES_OF_ALL


class Place:
    """One connection's place."""

    __slots__ = ("_ahead_bytes", "_network", "_peers", "address")

    def __init__(self, peers: Peers, address: str, network: str | None) -> None:
        self._peers: Peers | None = peers
        self._network = network
        self._ahead_bytes = 0
        self.address = address

    def hold_ahead(self, count: int) -> bool:
        """`count` bytes are held that were sent ahead; False where that is too much, and the peer should be cut off."""
        if self._peers is None or count == self._ahead_bytes:
            return True
        change, self._ahead_bytes = count - self._ahead_bytes, count
        return self._peers.hold(self._network, change)

    def leave(self) -> None:
        """The connection is gone."""
        if self._peers is not None:
            self.hold_ahead(0)
            self._peers.leave(self._network)
            self._peers = None


def _take_off(counts: dict[str, int], name: str, count: int) -> None:
    left = counts[name] - count
    if left:
        counts[name] = left
    else:
        del counts[name]

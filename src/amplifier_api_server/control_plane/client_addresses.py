"""Whose address a request came from, and as whom that address is counted.

Owns two rules. Counting: an address is counted by its network, because one IPv6 subscriber has 2**64 addresses to choose
from. Forwarding: `X-Forwarded-For` is believed only where a trusted proxy is at the other end of the connection, and only as
far as trusted proxies wrote it. Invariant: what a client writes never decides whom it is counted as, unless an operator
trusts that very client as a proxy. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

UNKNOWN: Final = ""  # the network of whatever is no address: all of these are counted together

_SUBSCRIBER_PREFIX = 64  # what one subscriber gets at least (RFC 6177), and one host may use all of (RFC 4862)
_MAPPED = IPv6Network("::ffff:0:0/96")  # IPv4 within IPv6 (RFC 4291, 2.5.5.2)
_MAX_HOPS = 16  # of a header that is walked: each entry costs a parse, and no chain of proxies is that long
_MAX_CHARS = 64  # of an address with its zone; what is longer is none, and not worth remembering
_REMEMBERED = 8192  # addresses, so that a busy client's is parsed once

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def network_of(address: str) -> str:
    """As whom an address is counted: an IPv4 address as itself, an IPv6 address by its /64, all that is none as one."""
    return _network_of(address) if len(address) <= _MAX_CHARS else UNKNOWN


@lru_cache(_REMEMBERED)
def _network_of(address: str) -> str:
    parsed = _parsed(address)
    if parsed is None:
        return UNKNOWN
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    return str(IPv6Network((int(parsed), _SUBSCRIBER_PREFIX), strict=False))


def parse_network(text: str) -> Network:
    """An address or a network, of IPv4 where it is IPv4 within IPv6. Raises ValueError."""
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} should be an address, or a network such as 10.0.0.0/8: {error}") from error
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - _MAPPED.prefixlen))
    return network


class TrustedProxies:
    """The proxies whose `X-Forwarded-For` is believed."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        """Raises ValueError for what is no network."""
        self._networks = tuple(parse_network(one) for one in networks)

    def include(self, peer: str) -> bool:
        """Whether this end of a connection is one of them."""
        return bool(self._networks) and self._trusts(_parsed(peer))

    def client_of(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The client's address: the connection's other end or, where that is a trusted proxy, whom the proxy names.

        From the right, the first entry of `X-Forwarded-For` that is no trusted proxy's. Several lines of the header are one
        list (RFC 9110, 5.3). An entry that is no address ends the walk, and the proxy that passed it on counts as the client.
        """
        if not self.include(peer):
            return peer
        forwarded = b",".join(value for name, value in headers if name == b"x-forwarded-for")
        client = peer
        for entry in reversed(forwarded.rsplit(b",", _MAX_HOPS)[-_MAX_HOPS:]):
            parsed = _parsed(_without_port(entry.decode("latin-1").strip(" \t")))
            if parsed is None:
                break
            client = str(parsed)
            if not self._trusts(parsed):
                break
        return client

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in one for one in self._networks)


def _parsed(text: str) -> Address | None:
    """The address, without its zone; of IPv4 where it is IPv4 within IPv6. None for what is none."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _without_port(entry: str) -> str:
    """Some proxies write `192.0.2.1:4711` or `[2001:db8::1]:4711`."""
    if entry.startswith("["):
        inner, closed, rest = entry[1:].partition("]")
        return inner if closed and (not rest or (rest[0] == ":" and rest[1:].isdecimal())) else ""
    host, _, port = entry.partition(":")
    return host if port.isdecimal() and "." in host else entry

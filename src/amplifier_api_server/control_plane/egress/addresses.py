"""Which hosts and addresses may be reached for a tenant.

Owns the one rule against reaching what is not public: this machine, its network, the cloud's metadata. A name is resolved
here, once, and what is connected to is an address that passed; nobody resolves it a second time, so a name that changes
its mind (DNS rebinding) changes nothing. Refuses every spelling of an address but the usual one.
"""

from __future__ import annotations

import asyncio
import fnmatch
import ipaddress
import re
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, quote, urlsplit

import structlog

log = structlog.get_logger(__name__)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

PUBLIC_PORTS: Final = frozenset({80, 443, 8080, 8443})  # no mail, no databases: only where the web is served
_RESOLVE_SECONDS = 3.0  # for a name; also how long it takes to say that it was not found, whatever the reason is
_now, _sleep = time.monotonic, asyncio.sleep
_MAX_ADDRESSES = 4  # of one name that are tried
_MAX_URL_CHARS = 4096
_MAX_HOST_CHARS = 253
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_ENDS_IN_NUMBER = re.compile(r"(^|\.)(\d+|0x[0-9a-f]*)$")  # WHATWG URL, "ends in a number": an IPv4 address, or nothing

# What `is_global` lets through or can't know, and what carries another address within.
_NOT_PUBLIC: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers (RFC 6598); clouds have metadata and resolvers in it
        "168.63.129.16/32",  # Azure's host, from within its machines
        "192.0.0.0/24",  # protocol assignments (RFC 6890), Oracle's metadata among them
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/8",  # unspecified, loopback, v4-compatible, v4-mapped
        "64:ff9b::/96",  # NAT64 (RFC 6052): an IPv4 address behind this network's gateway
        "64:ff9b:1::/48",  # the same, local (RFC 8215)
        "100::/64",
        "2001::/23",  # Teredo, ORCHID and other assignments
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",  # site-local, deprecated and still routed by some
        "ff00::/8",
    )
)
_GLOBAL_V6: Final = ipaddress.ip_network("2000::/3")  # all that is assigned for the internet (RFC 4291, 2.4)


class EgressError(Exception):
    """A fetch that was not made, or failed. The message may be shown to the tenant: it names nothing that isn't theirs."""


class NotAllowed(EgressError):
    """The rules say no."""


class Unreachable(EgressError):
    """No answer that can be read."""


class TooSlow(EgressError):
    """Not in the time there was."""


class NotPublic(NotAllowed):
    """An address that is not public, or a name that was not found at one.

    A name that nobody knows, one of the operator's network and one that was not resolved in time are one answer, and
    take the same time: else a tenant could ask which names there are within, one by one.
    """


@dataclass(frozen=True, slots=True)
class Place:
    """Where an address leads: checked for its form only."""

    scheme: str
    host: str  # lower case, ASCII, no trailing dot, no brackets
    port: int
    target: str  # path and query

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


def place_of(url: str, *, schemes: Sequence[str] = ("https",)) -> Place:
    """Take an address apart, strictly. Raises NotAllowed: another scheme, credentials, an odd host or port."""
    if len(url) > _MAX_URL_CHARS or any(ord(char) <= 0x20 or ord(char) == 0x7F for char in url) or "\\" in url:  # noqa: PLR2004 - control characters and space
        raise NotAllowed(f"{url[:100]!r} is not an address: too long, or with spaces or control characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise NotAllowed(f"{url[:100]!r} is not an address: {error}") from error
    if parts.scheme not in schemes:
        raise NotAllowed(f"{url[:100]!r} should begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if "@" in parts.netloc:
        raise NotAllowed("an address may hold no user name and no password")
    if port == 0 or parts.netloc.endswith(":"):
        raise NotAllowed(f"{parts.netloc[:100]!r} has no port that can be reached")
    host = host_of(parts.hostname or "")
    return Place(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme], _target(parts))


def _target(parts: SplitResult) -> str:
    """Path and query in ASCII; what is quoted already stays so."""
    text = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return quote(text, safe="/:?#[]@!$&'()*+,;=%~|^`{}-._")


def host_of(text: str) -> str:
    """A host's name or address in its one form. Raises NotAllowed.

    IPv4 addresses in other forms than four decimal numbers (017700000001, 2130706433, 0x7f.1, 127.1) are refused, not
    translated: whoever connects might read them differently.
    """
    if ":" in text:
        if "%" in text:
            raise NotAllowed(f"{text[:100]!r} names a network interface")
        try:
            return str(ipaddress.IPv6Address(text))
        except ValueError as error:
            raise NotAllowed(f"{text[:100]!r} is no IPv6 address") from error
    try:
        # The codec folds full-width and other look-alike digits and dots first: what is checked is what is asked for.
        host = text.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError as error:
        raise NotAllowed(f"{text[:100]!r} is no host's name") from error
    if not host or len(host) > _MAX_HOST_CHARS or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise NotAllowed(f"{text[:100]!r} is no host's name")
    if _ENDS_IN_NUMBER.search(host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError as error:
            raise NotAllowed(f"{text[:100]!r} is no IPv4 address of four decimal numbers") from error
    return host


def is_public(address: Address) -> bool:
    """Whether an address is of the public internet, and of it alone."""
    if any(address.version == network.version and address in network for network in _NOT_PUBLIC):
        return False
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_V6:
        return False
    return address.is_global and not address.is_multicast


def is_pattern(text: str) -> bool:
    """Whether a text is a pattern of hosts: a name, `*.` and a name, an address, or `*`."""
    rest = text.removeprefix("*.")
    if text == "*":
        return True
    try:
        return host_of(rest) == rest
    except NotAllowed:
        return False


def matches(host: str, patterns: Sequence[str]) -> bool:
    """`example.org` is that host alone, `*.example.org` all below it; other `*` as in file names."""
    return any(fnmatch.fnmatchcase(host, pattern.lower()) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class HostRules:
    """What an operator says. `private` are names, or name:port, that may be at addresses that are not public."""

    allow: Sequence[str] = ("*",)
    deny: Sequence[str] = ()
    private: Sequence[str] = ()

    def may_be_private(self, host: str, port: int) -> bool:
        """Whether the operator has named it."""
        bracketed = f"[{host}]" if ":" in host else host
        named = {one.lower() for one in self.private}
        return host in named or f"{bracketed}:{port}" in named

    def check(self, host: str, port: int) -> None:
        """Raises NotAllowed, by the name alone."""
        if matches(host, self.deny) or not matches(host, self.allow):
            raise NotAllowed(f"{host} is not among the hosts that may be asked")
        if port not in PUBLIC_PORTS and not self.may_be_private(host, port):
            ports = ", ".join(map(str, sorted(PUBLIC_PORTS)))
            raise NotAllowed(f"{host}:{port}: only the ports {ports} may be asked")

    def check_unresolved(self, host: str, port: int) -> None:
        """Raises NotAllowed, NotPublic: all that can be said before anybody is asked where the host is."""
        self.check(host, port)
        if self.may_be_private(host, port):
            return
        address = _literal(host)
        if not is_public(address) if address is not None else _is_own_name(host):
            raise NotPublic(f"{host} is not at a public address")


async def system_resolve(host: str, port: int) -> Sequence[str]:
    """The addresses that the system knows of a name, the preferred first. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(one[4][0]) for one in found]


async def reachable_addresses(
    host: str, port: int, rules: HostRules, resolve: Resolve = system_resolve
) -> Sequence[str]:
    """The addresses of a host that may be connected to, in order; at least one. Raises EgressError."""
    rules.check_unresolved(host, port)
    if (literal := _literal(host)) is not None:
        return [str(literal)]
    begun = _now()
    found, why = await _resolved(host, port, resolve)
    if not rules.may_be_private(host, port):
        public = [text for text in found if _is_public_text(text)]
        found, why = public, why or f"it is at {', '.join(found)[:200]}"
    if not found:
        log.info("a host is not to be reached", host=host, port=port, why=why)
        await _sleep(begun + _RESOLVE_SECONDS - _now())
        raise NotPublic(f"{host} was not found at a public address")
    return found[:_MAX_ADDRESSES]


async def _resolved(host: str, port: int, resolve: Resolve) -> tuple[list[str], str]:
    """The addresses of a name, each once; why there is none."""
    try:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            return list(dict.fromkeys(await resolve(host, port))), ""
    except TimeoutError:
        return [], f"it was not resolved within {_RESOLVE_SECONDS:g} s"
    except (OSError, UnicodeError) as error:
        return [], f"it is not known: {error}"


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_own_name(host: str) -> bool:
    """RFC 6761, 6.3: never anybody else's."""
    return host == "localhost" or host.endswith(".localhost")


def _is_public_text(text: str) -> bool:
    try:
        return is_public(ipaddress.ip_address(text.partition("%")[0])) and "%" not in text
    except ValueError:
        return False

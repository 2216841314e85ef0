"""A small HTTP/1.1 client for what a tenant names: GET and POST, each over a connection of its own, to an address that was
checked.

Owns redirects, which are checked like the first address, and the bounds of a fetch. Refuses to keep connections, cookies or
credentials, and to take a proxy from the environment: a proxy would resolve the name, and nobody would have checked what
it found. Invariant: every socket that is opened here goes to an address that `addresses.reachable_addresses` gave.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urljoin

from amplifier_api_server import __version__
from amplifier_api_server.control_plane.egress.addresses import (
    EgressError,
    HostRules,
    NotAllowed,
    Place,
    Resolve,
    TooSlow,
    Unreachable,
    place_of,
    reachable_addresses,
    system_resolve,
)
from amplifier_api_server.control_plane.model_gateway.exchange import Broken, Exchange, Stalled

USER_AGENT = f"amplifier-api-server/{__version__}"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how far a fetch goes. Its whole time is its caller's to bound."""

    connect_seconds: float = 10.0
    idle_seconds: float = 20.0  # between two bytes, and until the first
    max_redirects: int = 5


class Answer:
    """An answer whose body has not been read. Its connection ends with the `get` that gave it."""

    def __init__(self, exchange: Exchange, place: Place, address: str, idle_seconds: float) -> None:
        self._exchange = exchange
        self._idle_seconds = idle_seconds
        self.place = place  # after redirects
        self.address = address  # that it came from
        self.status = exchange.status

    def header(self, name: str) -> str:
        """A header's value, or ""; of several the last."""
        return self._exchange.headers.get(name.lower().encode(), b"").decode("latin-1").strip()

    async def read(self) -> bytes:
        """What came since; empty at the end. Raises TooSlow and Unreachable."""
        try:
            return await self._exchange.read(self._idle_seconds)
        except Stalled as error:
            raise TooSlow(f"{self.place.host} was silent for {self._idle_seconds:.0f} s") from error
        except Broken as error:
            raise Unreachable(f"the answer of {self.place.host} broke off") from error


class Client:
    """Fetches within rules. `context` is asked when it is first needed: reading certificates takes time."""

    def __init__(
        self, rules: HostRules, context: Callable[[], ssl.SSLContext], *, resolve: Resolve = system_resolve
    ) -> None:
        self.rules = rules
        self.resolve = resolve
        self._make_context = context
        self._context: ssl.SSLContext | None = None

    @contextlib.asynccontextmanager
    async def get(
        self,
        url: str,
        *,
        schemes: Sequence[str] = ("https",),
        headers: Mapping[str, str] | None = None,
        patience: Patience = Patience(),
        rules: HostRules | None = None,
        check: Callable[[Place], None] | None = None,
    ) -> AsyncIterator[Answer]:
        """GET `url` and what it redirects to; the last answer, whatever its status. Raises EgressError.

        `check` may refuse each place too, by raising NotAllowed. From https no redirect leads to http.
        """
        place = place_of(url, schemes=schemes)
        for _ in range(patience.max_redirects + 1):
            if check is not None:
                check(place)
            addresses = await reachable_addresses(place.host, place.port, rules or self.rules, self.resolve)
            exchange, address = await self._connect(place, addresses, patience.connect_seconds)
            try:
                await _send(exchange, place, headers or {}, patience.idle_seconds)
                location = exchange.headers.get(b"location", b"").decode("latin-1")
                if exchange.status not in _REDIRECTS or not location:
                    yield Answer(exchange, place, address, patience.idle_seconds)
                    return
            finally:
                exchange.abort()
            place = _redirected(place, location, schemes)
        raise NotAllowed(f"{url[:200]!r} leads through more than {patience.max_redirects} redirects")

    @contextlib.asynccontextmanager
    async def post(
        self,
        url: str,
        body: bytes,
        *,
        schemes: Sequence[str] = ("https",),
        headers: Mapping[str, str] | None = None,
        patience: Patience = Patience(),
        check: Callable[[Place], None] | None = None,
    ) -> AsyncIterator[Answer]:
        """POST to `url`; the answer, whatever its status: a redirect is one too, and not followed. Raises EgressError."""
        place = place_of(url, schemes=schemes)
        if check is not None:
            check(place)
        addresses = await reachable_addresses(place.host, place.port, self.rules, self.resolve)
        exchange, address = await self._connect(place, addresses, patience.connect_seconds)
        try:
            await _send(exchange, place, headers or {}, patience.idle_seconds, body)
            yield Answer(exchange, place, address, patience.idle_seconds)
        finally:
            exchange.abort()

    async def _connect(self, place: Place, addresses: Sequence[str], seconds: float) -> tuple[Exchange, str]:
        """The first address that takes a connection. Raises TooSlow, Unreachable."""
        loop = asyncio.get_running_loop()
        context = await self._tls() if place.scheme == "https" else None
        failure: EgressError = Unreachable(f"{place.host} can't be reached")
        for address in addresses:
            exchange = Exchange(set())
            try:
                async with asyncio.timeout(seconds):
                    await loop.create_connection(
                        lambda made=exchange: made,
                        address,
                        place.port,
                        ssl=context,
                        server_hostname=place.host if context else None,
                    )
            except TimeoutError:
                exchange.abort()
                failure = TooSlow(f"{place.host} did not answer within {seconds:.0f} s")
            except ssl.SSLCertVerificationError as error:
                exchange.abort()
                failure = Unreachable(f"the certificate of {place.host} is not trusted: {error.verify_message}")
            except (OSError, UnicodeError) as error:
                exchange.abort()
                reason = getattr(error, "strerror", None) or type(error).__name__
                failure = Unreachable(f"{place.host} can't be reached: {reason}")
            else:
                return exchange, address
        raise failure

    async def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            try:
                self._context = await asyncio.to_thread(self._make_context)
            except OSError as error:
                raise Unreachable("the certificates to trust can't be read; the operator knows which file") from error
        return self._context


async def _send(
    exchange: Exchange, place: Place, headers: Mapping[str, str], idle_seconds: float, body: bytes | None = None
) -> None:
    """GET, or POST where there is a body."""
    fields = {"Host": place.authority, "User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
    if body is not None:
        fields["Content-Length"] = str(len(body))
    method = "GET" if body is None else "POST"
    lines = [f"{method} {place.target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    head = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")
    try:
        await exchange.send(head, body or b"", idle_seconds)
    except Stalled as error:
        raise TooSlow(f"{place.host} did not answer within {idle_seconds:.0f} s") from error
    except Broken as error:
        raise Unreachable(f"{place.host} gave no answer that can be read") from error


def _redirected(place: Place, location: str, schemes: Sequence[str]) -> Place:
    """Where a redirect leads. Raises NotAllowed."""
    try:
        # Header values come as bytes of no declared encoding; most servers mean UTF-8 (RFC 9110, 5.5).
        text = location.encode("latin-1").decode("utf-8", "replace")
        target = urljoin(place.url, text)
    except ValueError as error:
        raise NotAllowed(f"{place.host} redirects to what is no address") from error
    allowed = [scheme for scheme in schemes if place.scheme == "http" or scheme == "https"]
    return place_of(target.partition("#")[0], schemes=allowed)

"""Operators' forward proxies: HTTPS_PROXY, HTTP_PROXY and NO_PROXY, as curl reads them.

Owns which proxy a call takes and the CONNECT that opens a tunnel (RFC 9110, 9.3.6). A loopback address never takes one.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

_MAX_HEAD_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Proxy:
    host: str
    port: int
    authorization: str | None


def proxy_for(target: SplitResult, environ: Mapping[str, str] | None = None) -> Proxy | None:
    """The proxy that a call to `target` takes. Raises OSError for one that can't be used, which says why."""
    environ = os.environ if environ is None else environ
    variable = f"{target.scheme}_proxy"
    # HTTP_PROXY in capitals could come from a request's header in a CGI; elsewhere too, lower case is what wins.
    address = (
        environ.get(variable) or environ.get(variable.upper()) or environ.get("all_proxy") or environ.get("ALL_PROXY")
    )
    host = target.hostname or ""
    if (
        not address
        or _is_loopback(host)
        or _is_excepted(host, environ.get("no_proxy") or environ.get("NO_PROXY") or "")
    ):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme != "http" or not parts.hostname:
        raise OSError(
            f"the proxy in {variable} should be an http:// address; {parts.scheme}:// proxies are not supported"
        )
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return Proxy(parts.hostname, parts.port or 80, authorization)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_excepted(host: str, exceptions: str) -> bool:
    for pattern in filter(None, (one.strip().lower() for one in exceptions.split(","))):
        domain = pattern.lstrip("*").lstrip(".").partition(":")[0]
        if pattern == "*" or host == domain or (domain and host.endswith("." + domain)):
            return True
    return False


class _Tunnel(asyncio.Protocol):
    """Waits for the head of the answer to CONNECT."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self.answer.done():
            return
        if b"\r\n\r\n" in self._received:
            self.answer.set_result(self._received)
        elif len(self._received) > _MAX_HEAD_BYTES:
            self.answer.set_exception(OSError("the proxy's answer is too long"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(OSError("the proxy closed the connection"))


def _check(answer: bytes) -> None:
    status = b"".join(answer.split(b" ", 2)[1:2])[:3]
    if status != b"200":
        raise OSError(f"the proxy refused the tunnel with status {status.decode(errors='replace')}")


async def open_tunnel(proxy: Proxy, host: str, port: int, context: ssl.SSLContext, protocol: asyncio.Protocol) -> None:
    """Connect `protocol` over TLS to host and port, through the proxy. Raises OSError."""
    loop = asyncio.get_running_loop()
    transport, tunnel = await loop.create_connection(_Tunnel, proxy.host, proxy.port)
    try:
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        if proxy.authorization:
            lines.append(f"Proxy-Authorization: {proxy.authorization}")
        transport.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        _check(await tunnel.answer)
        secure = await loop.start_tls(transport, protocol, context, server_hostname=host)
        assert secure is not None  # only where the transport was closed by us
        protocol.connection_made(secure)
    except BaseException:
        transport.abort()
        raise

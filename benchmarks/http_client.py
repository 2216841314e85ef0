"""A client of one connection that adds next to nothing of its own: bytes out, and the times at which bytes came back."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from typing import Any, Self

_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer."""

    status: int
    body: bytes
    seconds: float  # from the request's first byte to the answer's last
    to_marker_seconds: float  # to the first piece that held the marker; inf where none did

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """HTTP/1.1 over one kept connection; for answers with a length, and chunked ones."""

    def __init__(self, port: int, key: str = "", header: str = "X-API-Key") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), _TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._auth = f"{header}: {key}\r\n" if key else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, method: str, path: str, body: Any = None, marker: bytes = b"") -> Timed:
        """One request. Raises RuntimeError for a status of 400 and above: a bench measures what works."""
        sent = json.dumps(body).encode() if body is not None else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{self._auth}"
        if sent:
            head += f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n"
        begun = time.perf_counter()
        self._socket.sendall(head.encode() + b"\r\n" + sent)
        data, marked = b"", float("inf")
        while not _is_whole(data):
            piece = self._socket.recv(65_536)
            if not piece:
                raise RuntimeError(f"{method} {path}: the connection ended after {len(data)} bytes")
            data += piece
            if marker and marked == float("inf") and marker in data:
                marked = time.perf_counter() - begun
        seconds = time.perf_counter() - begun
        raw_head, _, rest = data.partition(b"\r\n\r\n")
        status = int(raw_head.split(b" ", 2)[1])
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {rest[:300]!r}")
        return Timed(status, rest, seconds, marked)


def _is_whole(data: bytes) -> bool:
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return False
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        return rest.endswith(b"0\r\n\r\n")
    if b"content-length:" in lower:
        return len(rest) >= int(lower.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
    return True

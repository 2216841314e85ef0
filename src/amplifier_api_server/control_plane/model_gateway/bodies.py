"""Request bodies from sandboxes: how large, how fast, how many at once.

Owns the bounds of what is read into memory. Invariant: one runtime's bodies hold at most `MAX_HELD_BYTES`, all
runtimes' at most `MAX_HELD_BYTES_OF_ALL`; past a burst a runtime's requests are taken no faster than the process can read
and parse them beside its other work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from amplifier_api_server.control_plane.json_bounds import weight_bytes
from amplifier_api_server.control_plane.model_gateway.answers import Receive, Refusal, Scope, busy
from amplifier_api_server.tenants.ids import RuntimeId

MAX_HELD_BYTES = 96 * 1024 * 1024
MAX_HELD_BYTES_OF_ALL = 768 * 1024 * 1024
_BURST_BYTES = 64 * 1024 * 1024
_BYTES_A_SECOND = 16 * 1024 * 1024  # parsing runs at some 100 MB/s: so one runtime takes a sixth of a core at most
_REQUEST_BYTES = 32 * 1024  # what a request weighs beyond its bytes: one takes up to a millisecond
_MAX_BODY_SECONDS = 60.0


class Disconnected(Exception):
    """The sandbox hung up before its request was complete."""


@dataclass(slots=True)
class _Held:
    count: int = 0


@dataclass(slots=True)
class _Ingress:
    """What one runtime sends."""

    held: _Held = field(default_factory=_Held)
    credit_bytes: float = _BURST_BYTES
    credited_at: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    def delay_seconds(self, count: int, now: float) -> float:
        """How long to wait before `count` more bytes are taken."""
        self.credit_bytes = min(_BURST_BYTES, self.credit_bytes + (now - self.credited_at) * _BYTES_A_SECOND) - count
        self.credited_at = now
        return max(0.0, -self.credit_bytes / _BYTES_A_SECOND)

    async def pay(self, count: int) -> None:
        """Wait for as long."""
        if delay := self.delay_seconds(count, asyncio.get_running_loop().time()):
            await asyncio.sleep(delay)


class Bodies:
    """Reads bodies within the bounds."""

    def __init__(self) -> None:
        self._ingress: dict[RuntimeId, _Ingress] = {}
        self._all = _Held()

    async def pace(self, runtime_id: RuntimeId) -> None:
        """One more request, whatever it is: past a burst they are taken at some hundred a second."""
        await self._ingress.setdefault(runtime_id, _Ingress()).pay(_REQUEST_BYTES)

    @contextmanager
    def request(self, runtime_id: RuntimeId) -> Iterator[Body]:
        """One request's place; what it read is given back at the end."""
        body = Body(self._ingress.setdefault(runtime_id, _Ingress()), self._all)
        try:
            yield body
        finally:
            body.release()

    def forget(self, runtime_id: RuntimeId) -> None:
        """The runtime is gone."""
        self._ingress.pop(runtime_id, None)


class Body:
    """One request's body."""

    def __init__(self, ingress: _Ingress, of_all: _Held) -> None:
        self._ingress = ingress
        self._all = of_all
        self._held_bytes = 0

    async def read(self, scope: Scope, receive: Receive, max_bytes: int) -> bytes:
        """The whole body, once its runtime may have it parsed. Raises Refusal (408, 413, 503), and Disconnected."""
        if _declared_length(scope) > max_bytes:
            raise _too_large(max_bytes)
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(_MAX_BODY_SECONDS):
                while (message := await receive())["type"] != "http.disconnect":
                    part = message.get("body", b"")
                    if self._held_bytes + len(part) > max_bytes:
                        raise _too_large(max_bytes)
                    await self._hold(len(part))
                    parts.append(part)
                    if not message.get("more_body", False):
                        raw = b"".join(parts)
                        await self._ingress.pay(weight_bytes(raw))
                        return raw
        except TimeoutError as error:
            raise Refusal(408, "timeout", f"the body did not arrive within {_MAX_BODY_SECONDS:.0f} seconds") from error
        raise Disconnected

    def release(self) -> None:
        """The body is not needed any more."""
        self._ingress.held.count -= self._held_bytes
        self._all.count -= self._held_bytes
        self._held_bytes = 0

    async def _hold(self, count: int) -> None:
        """Take room for `count` bytes, and wait where the runtime sends faster than it may."""
        if self._ingress.held.count + count > MAX_HELD_BYTES or self._all.count + count > MAX_HELD_BYTES_OF_ALL:
            raise busy("too many large requests are being read")
        self._held_bytes += count
        self._ingress.held.count += count
        self._all.count += count
        await self._ingress.pay(count)


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(413, "too_large", f"the request is larger than {max_bytes} bytes")


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0

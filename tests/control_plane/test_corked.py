from __future__ import annotations

import asyncio
from typing import Any

from amplifier_api_server.control_plane.corked import Corked


class Transport:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def corked() -> tuple[Any, Transport]:
    transport = Transport()
    return Corked(transport, asyncio.get_running_loop()), transport  # type: ignore[arg-type]


async def test_what_is_written_in_one_turn_of_the_loop_leaves_together():
    cork, transport = corked()
    cork.write(b"head")
    cork.write(b"body")
    assert transport.written == []
    await asyncio.sleep(0)
    assert transport.written == [b"headbody"]
    cork.write(b"more")
    await asyncio.sleep(0)
    assert transport.written == [b"headbody", b"more"]


async def test_closing_sends_what_waits_first():
    cork, transport = corked()
    cork.write(b"last words")
    cork.close()
    assert (transport.written, transport.closed) == ([b"last words"], True)
    await asyncio.sleep(0)
    assert transport.written == [b"last words"]


async def test_nothing_is_written_to_a_transport_that_was_aborted():
    cork, transport = corked()
    cork.write(b"too late")
    transport.closed = True
    await asyncio.sleep(0)
    assert transport.written == []


async def test_all_else_is_the_transport_s():
    cork, transport = corked()
    assert cork.is_closing() is False
    transport.closed = True
    assert cork.is_closing() is True

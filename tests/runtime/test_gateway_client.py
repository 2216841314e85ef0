from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from amplifier_api_server.runtime import gateway as gateway_module
from amplifier_api_server.runtime.gateway import (
    Gateway,
    GatewayBrokenError,
    GatewaySilentError,
    GatewayUnreachableError,
)


class Peer:
    """A Unix socket server whose every connection runs `script(reader, writer)`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.script: Callable[[Any, Any], Any] | None = None
        self.connections = 0
        self.written = 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            assert self.script is not None
            await self.script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()


@pytest.fixture
async def peer(short_tmp: Path) -> AsyncIterator[Peer]:
    one = Peer(str(short_tmp / "p"))
    server = await asyncio.start_unix_server(one.connection, path=one.path)
    yield one
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0.01)


@pytest.fixture
async def client(peer: Peer) -> AsyncIterator[Gateway]:
    one = Gateway(peer.path)
    yield one
    await one.close()


def sends(*pieces: bytes, hold: bool = False, again: bool = False):
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if hold:
                await asyncio.Event().wait()
            if not again:
                return

    return script


async def fetched(client: Gateway, idle: float = 5) -> tuple[int, bytes]:
    async with client.request("GET", "/", idle_timeout_seconds=idle) as answer:
        return answer.status, await answer.read(1_000_000)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",), b"abc"),
        ((b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab", b"\r\n1\r\nc\r\n0\r\n\r\n"), b"abc"),
        ((b"HTTP/1.1 200 OK\r\n\r\nabc",), b"abc"),
        ((b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",), b"abc"),
        ((*[bytes([one]) for one in b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"],), b"abc"),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",), b""),
    ],
)
async def test_an_answer_of_any_framing_and_division_is_read(peer: Peer, client: Gateway, pieces, expected: bytes):
    peer.script = sends(*pieces)
    assert await fetched(client) == (200, expected)


@pytest.mark.parametrize(
    "pieces",
    [
        (b"",),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",),
        (b"what is this\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000,),
    ],
)
async def test_an_answer_that_ends_early_or_is_no_http_is_broken(peer: Peer, client: Gateway, pieces):
    peer.script = sends(*pieces)
    with pytest.raises(GatewayBrokenError):
        await fetched(client)


@pytest.mark.parametrize(
    "pieces", [(b"",), (b"HTTP/1.1 200 OK\r\n",), (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",)]
)
async def test_silence_ends_after_the_idle_timeout(peer: Peer, client: Gateway, pieces):
    peer.script = sends(*pieces, hold=True)
    with pytest.raises(GatewaySilentError):
        await fetched(client, idle=0.1)


async def test_nobody_there_is_unreachable(short_tmp: Path):
    with pytest.raises(GatewayUnreachableError):
        await fetched(Gateway(str(short_tmp / "nobody")))


async def test_a_connection_is_used_again_and_not_when_it_is_old_or_dead(peer: Peer, client: Gateway, monkeypatch):
    peer.script = sends(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", again=True)
    for _ in range(3):
        await fetched(client)
    assert peer.connections == 1
    monkeypatch.setattr(gateway_module, "MAX_POOLED_AGE_SECONDS", -1)
    await fetched(client)
    assert peer.connections == 2
    monkeypatch.undo()
    await client.close()
    peer.script = sends(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx")
    await fetched(client)
    await asyncio.sleep(0.02)
    await fetched(client)
    assert peer.connections == 4


async def test_leaving_in_the_middle_closes_the_connection(peer: Peer, client: Gateway):
    gone = asyncio.Event()

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        await reader.read(1)
        gone.set()

    peer.script = script
    async with client.request("GET", "/", idle_timeout_seconds=600) as answer:
        assert await anext(answer.chunks()) == b"a"
    async with asyncio.timeout(60):
        await gone.wait()


async def test_an_answer_that_is_not_read_holds_up_its_sender(peer: Peer, client: Gateway):
    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
        while True:
            writer.write(b"x" * 100_000)
            await writer.drain()
            peer.written += 100_000

    peer.script = script
    async with client.request("GET", "/", idle_timeout_seconds=600) as answer:
        written = -1
        while written != peer.written:
            written = peer.written
            await asyncio.sleep(0.05)
        assert written < 3_000_000
        with pytest.raises(GatewayBrokenError, match="longer than"):
            await answer.read(1_000_000)

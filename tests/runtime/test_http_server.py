from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from amplifier_api_server.runtime import http_server
from amplifier_api_server.runtime.http_server import HttpServer, Request, Response


class Served:
    def __init__(self, path: str) -> None:
        self.path = path
        self.seen: list[Request] = []
        self.made = 0
        self.closed = asyncio.Event()
        self.release = asyncio.Event()

    async def handle(self, request: Request) -> Response:
        self.seen.append(request)
        if request.path == "/endless":
            return Response(200, content_type="text/event-stream", stream=self.endless())
        if request.path == "/wait":
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.closed.set()
                raise
        if request.path == "/broken":
            raise RuntimeError("broken")
        if request.path == "/none":
            return Response(204)
        return Response(200, request.path.encode() + b"|" + request.body)

    async def endless(self):
        try:
            while True:
                self.made += 1
                yield b"x" * 10_000
                await asyncio.sleep(0)
        finally:
            self.closed.set()

    async def exchange(self, data: bytes, *, until_close: bool = False) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            async with asyncio.timeout(60):
                writer.write(data)
                if until_close:
                    return await reader.read()
                return await reader.readuntil(b"\r\n\r\n")
        finally:
            writer.transport.abort()


@pytest.fixture
async def served(short_tmp: Path) -> AsyncIterator[Served]:
    one = Served(str(short_tmp / "s"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(one.path)
    listener.listen()
    server = HttpServer(one.handle)
    await server.listen(listener)
    yield one
    await server.close(grace_seconds=0.1)


CLOSE = b"connection: close\r\n"


async def test_pipelined_requests_are_answered_in_order_whatever_their_division(served: Served):
    data = b"GET /a?x=1&y=%20 HTTP/1.1\r\n\r\n" + b"POST /b HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc" * 20
    data += b"POST /c HTTP/1.1\r\ntransfer-encoding: chunked\r\n" + CLOSE + b"\r\n2\r\nhi\r\n0\r\n\r\n"
    reader, writer = await asyncio.open_unix_connection(served.path)
    for at in range(0, len(data), 11):
        writer.write(data[at : at + 11])
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.transport.abort()
    assert answer.count(b"HTTP/1.1 200 OK") == 22
    assert answer.count(b"/b|abc") == 20
    assert answer.endswith(b"/c|hi")
    assert served.seen[0].query == {"x": "1", "y": " "}


async def test_http_1_0_and_close_end_the_connection(served: Served):
    assert b"connection: close" in await served.exchange(b"GET /a HTTP/1.0\r\n\r\n", until_close=True)


async def test_a_204_has_no_body_and_no_length(served: Served):
    answer = await served.exchange(b"GET /none HTTP/1.1\r\n" + CLOSE + b"\r\n", until_close=True)
    assert answer == b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", None),
    ],
)
async def test_what_is_no_request_for_us_is_refused_and_the_connection_closed(
    served: Served, data: bytes, status: int | None
):
    answer = await served.exchange(data + b"\0" * 10, until_close=True)
    assert status is None or answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert answer.startswith(b"HTTP/1.1 ")


async def test_a_chunked_body_over_the_limit_is_refused(served: Served, monkeypatch):
    monkeypatch.setattr(http_server, "MAX_BODY_BYTES", 1000)
    body = b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\ny\r\n0\r\n\r\n"
    answer = await served.exchange(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + body, until_close=True)
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_request_that_never_gets_whole_is_given_up(served: Served, monkeypatch):
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.1)
    assert await served.exchange(b"POST / HTTP/1.1\r\ncontent-length: 10\r\n\r\nabc", until_close=True) == b""


async def test_a_reader_that_stops_reading_stops_the_producer_and_leaving_ends_it(served: Served):
    client = socket.socket(socket.AF_UNIX)
    client.connect(served.path)
    client.sendall(b"GET /endless HTTP/1.1\r\n\r\n")
    made = -1
    while made != served.made:
        made = served.made
        await asyncio.sleep(0.05)
    assert 0 < made < 200
    client.close()
    async with asyncio.timeout(60):
        await served.closed.wait()


async def test_a_reader_that_stalls_for_good_is_cut(served: Served, monkeypatch):
    monkeypatch.setattr(http_server, "WRITE_STALL_SECONDS", 0.1)
    client = socket.socket(socket.AF_UNIX)
    client.connect(served.path)
    client.sendall(b"GET /endless HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(60):
        await served.closed.wait()
    client.close()


async def test_a_caller_that_hangs_up_cancels_its_handler(served: Served):
    _, writer = await asyncio.open_unix_connection(served.path)
    writer.write(b"GET /wait HTTP/1.1\r\n\r\n")
    while not served.seen:
        await asyncio.sleep(0.005)
    writer.transport.abort()
    async with asyncio.timeout(60):
        await served.closed.wait()


async def test_a_handler_that_breaks_costs_its_connection_only(served: Served):
    with contextlib.suppress(asyncio.IncompleteReadError):
        await served.exchange(b"GET /broken HTTP/1.1\r\n\r\n")
    assert b"200 OK" in await served.exchange(b"GET /a HTTP/1.1\r\n\r\n")


async def test_a_server_for_one_process_answers_no_other(tmp_path):
    async def handler(_):
        return Response(200, b"{}")

    async def asked(only_pid: int) -> bytes:
        listener = socket.socket(socket.AF_UNIX)
        path = str(tmp_path / f"s{only_pid}")
        listener.bind(path)
        listener.listen(1)
        server = HttpServer(handler, only_pid=only_pid)
        await server.listen(listener)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        try:
            async with asyncio.timeout(60):
                return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.transport.abort()
            await server.close()

    assert (await asked(os.getpid())).startswith(b"HTTP/1.1 200")
    assert await asked(os.getpid() + 1) == b""

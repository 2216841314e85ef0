"""Heads that do not end: the parser would keep every byte of them, and tell nobody."""

import asyncio

import pytest
import uvicorn

from amplifier_api_server.control_plane.connections import Bounds, public_protocol


async def app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def port():
    config = uvicorn.Config(app, port=0, http=public_protocol(Bounds()), ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


@pytest.mark.parametrize(
    "begin",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-",
        b"GET /",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Long: ",
    ],
)
async def test_a_head_or_trailer_that_does_not_end_is_cut_off(port, begin):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = 0
    try:
        writer.write(begin)
        while sent < 50_000_000:
            writer.write(b"x" * 60_000)
            sent += 60_000
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()
    assert sent < 20_000_000, "it was read for as long as it was sent"
    assert reader is not None


async def test_a_large_body_is_no_head(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for _ in range(3):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3_000_000)
            await writer.drain()
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(2) == b"ok"
    finally:
        writer.close()
        await writer.wait_closed()

"""The connection pool against real servers that behave, and real ones that don't."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from amplifier_api_server.control_plane.pods.launcher import Address
from amplifier_api_server.control_plane.router.errors import Broken, DialError, HeadTimeout, IdleTimeout
from amplifier_api_server.control_plane.router.pool import Pool


@asynccontextmanager
async def serving(tmp_path, respond):
    """A server at a Unix socket; `respond(reader, writer)` speaks for each connection. Counts connections."""
    made = []

    async def accept(reader, writer):
        made.append(writer)
        try:
            await respond(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    path = str(tmp_path / "s")
    server = await asyncio.start_unix_server(accept, path)
    pool = Pool(connect_timeout_seconds=1)
    try:
        yield pool, Address(path=path), made
    finally:
        pool.close()
        server.close()
        for writer in made:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in made), return_exceptions=True)


async def head(reader):
    raw = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in raw.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
    )
    return raw, await reader.readexactly(length)


def saying(body, *, extra=b""):
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n%b" % (len(body), extra, body)


async def test_an_answer_is_read_whole_and_its_connection_is_used_again(tmp_path):
    async def respond(reader, writer):
        while True:
            raw, body = await head(reader)
            writer.write(saying(raw.split(b" ")[1] + body))

    async with serving(tmp_path, respond) as (pool, address, made):
        for n in range(5):
            answer = await pool.request(address, "POST", f"/{n}", body=b"x")
            assert await answer.read(100, 1) == f"/{n}x".encode()
    assert len(made) == 1


async def test_a_closed_kept_connection_is_replaced(tmp_path):
    async def respond(reader, writer):
        await head(reader)
        writer.write(saying(b"ok"))
        await writer.drain()

    async with serving(tmp_path, respond) as (pool, address, made):
        for _ in range(3):
            assert await (await pool.request(address, "GET", "/")).read(10, 1) == b"ok"
            await asyncio.sleep(0)
    assert len(made) == 3


async def test_chunks_come_as_they_are_made(tmp_path):
    go = asyncio.Event()

    async def respond(reader, writer):
        await head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await go.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
        await reader.read()

    async with serving(tmp_path, respond) as (pool, address, _made):
        seen = []
        async for chunk in (await pool.request(address, "GET", "/")).chunks(2):
            seen.append(chunk)
            go.set()
    assert b"".join(seen) == b"onetwo"
    assert seen[0] == b"one"


async def test_a_cut_stream_is_broken_and_not_ended(tmp_path):
    async def respond(reader, writer):
        await head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await writer.drain()

    async with serving(tmp_path, respond) as (pool, address, _made):
        answer = await pool.request(address, "GET", "/")
        with pytest.raises(Broken):
            await answer.read(100, 2)


async def test_nobody_listening_is_a_dial_error(tmp_path):
    with pytest.raises(DialError):
        await Pool().request(Address(path=str(tmp_path / "none")), "GET", "/")


async def test_a_silent_runtime_is_a_head_timeout(tmp_path):
    async def respond(reader, writer):
        await reader.read()

    async with serving(tmp_path, respond) as (pool, address, _made):
        with pytest.raises(HeadTimeout):
            await pool.request(address, "GET", "/", head_timeout_seconds=0.05)


async def test_a_stream_that_stops_is_an_idle_timeout_or_a_tick(tmp_path):
    async def respond(reader, writer):
        await head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await reader.read()

    async with serving(tmp_path, respond) as (pool, address, _made):
        with pytest.raises(IdleTimeout):
            await (await pool.request(address, "GET", "/")).read(100, 0.05)
        answer = await pool.request(address, "GET", "/")
        async for chunk in answer.chunks(tick_seconds=0.02):
            assert chunk == b""
            break
        answer.close()


@pytest.mark.parametrize("junk", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", b""])
async def test_what_is_no_answer_is_broken(tmp_path, junk):
    async def respond(reader, writer):
        await head(reader)
        writer.write(junk)
        await writer.drain()

    async with serving(tmp_path, respond) as (pool, address, _made):
        with pytest.raises(Broken):
            await pool.request(address, "GET", "/", head_timeout_seconds=2)


async def test_a_slow_reader_slows_the_producer(tmp_path):
    sent = 0

    async def respond(reader, writer):
        nonlocal sent
        await head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(400):
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
            sent += 65536

    async with serving(tmp_path, respond) as (pool, address, _made):
        answer = await pool.request(address, "GET", "/")
        chunks = answer.chunks(2)
        await anext(chunks)
        for _ in range(50):
            await asyncio.sleep(0.005)
        assert sent < 3_000_000  # of 26 MB: what the sockets' buffers and one high-water mark hold
        await chunks.aclose()

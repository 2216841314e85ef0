"""Runtimes' sockets: whose a request is, and what a hostile peer can't do."""

from __future__ import annotations

import asyncio
import os
import socket
import stat

import pytest

from amplifier_api_server.control_plane.connections import Bounds

from .conftest import CHAT, ask, naming, streamed
from .scripted_upstream import DONE, answering, delta

GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


async def dial(house, runtime_id="run_1"):
    return await asyncio.open_unix_connection(await house.listeners.open(runtime_id))


async def rest_of(reader) -> bytes:
    """What comes until the other side ends it, well or not."""
    seen = b""
    try:
        async with asyncio.timeout(60):
            while part := await reader.read(65536):
                seen += part
    except ConnectionError:
        pass
    return seen


async def test_a_socket_is_open_to_all_in_a_folder_that_is_the_servers_alone(house):
    path = await house.listeners.open("run_1")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o666
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert await house.listeners.open("run_1") == path == house.listeners.path("run_1")


async def test_a_descriptor_alone_is_enough_to_connect(house):
    descriptor = os.open(await house.listeners.open("run_1"), os.O_PATH)
    try:
        reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{descriptor}")
        writer.write(GET)
        assert b"200 OK" in await reader.readline()
        writer.close()
    finally:
        os.close(descriptor)


async def test_a_path_may_be_longer_than_a_socket_address(build, tmp_path):
    house = await build()
    house.listeners._folder = tmp_path / ("x" * 120)
    descriptor = os.open(await house.listeners.open("run_1"), os.O_PATH)
    try:
        _, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{descriptor}")
        writer.close()
    finally:
        os.close(descriptor)


async def test_a_socket_left_by_an_earlier_process_is_replaced(house, tmp_path):
    folder = tmp_path / "sockets"
    folder.mkdir()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(folder / "run_1.sock"))
    left.close()
    _, writer = await dial(house)
    writer.close()


async def test_closing_cuts_every_connection_and_leaves_no_file(house):
    reader, writer = await dial(house)
    path = house.listeners.path("run_1")
    await house.listeners.close("run_1")
    assert await rest_of(reader) == b""
    assert not os.path.exists(path)
    assert house.listeners.path("run_1") is None
    await house.listeners.close("run_1")
    writer.close()


async def test_a_thousand_sockets_are_no_trouble(house, upstream):
    upstream.script = answering(delta("a", "stop"), DONE)
    paths = [await house.listeners.open(f"run_{n}") for n in range(1000)]
    assert len(set(paths)) == 1000
    client = await house.runtime("run_777")
    await house.turn("req_1", "run_777")
    assert (await streamed(client)).text == "a"
    await house.listeners.close_all()
    assert not any(map(os.path.exists, paths))


@pytest.mark.parametrize("sent", [b"", b"GET /v1/models HT", b"GET /v1/models HTTP/1.1\r\nA: b\r\n"])
async def test_a_head_that_does_not_end_is_cut_off(build, sent):
    house = await build(bounds=Bounds(idle_seconds=0.1))
    reader, writer = await dial(house)
    writer.write(sent)
    assert await rest_of(reader) == b""
    writer.close()


async def test_a_head_that_dribbles_is_cut_off_too(build):
    house = await build(bounds=Bounds(idle_seconds=0.2))
    reader, writer = await dial(house)

    async def dribble():
        writer.write(b"GET / HTTP/1.1\r\n")
        while True:
            writer.write(b"a: b\r\n")
            await asyncio.sleep(0.01)

    task = asyncio.create_task(dribble())
    assert await rest_of(reader) == b""
    task.cancel()
    writer.transport.abort()


async def test_a_connection_is_kept_between_requests_but_not_for_ever(build):
    house = await build(bounds=Bounds(idle_seconds=0.2))
    reader, writer = await dial(house)
    for _ in range(2):
        writer.write(GET)
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
    assert b"data" in await rest_of(reader)
    writer.close()


@pytest.mark.parametrize("head", [b"GET /" + b"a" * 70_000, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000])
async def test_a_huge_head_is_refused(house, head):
    reader, writer = await dial(house)
    writer.write(head + b"\r\n\r\n")
    assert (await rest_of(reader)).startswith((b"HTTP/1.1 400", b""))
    writer.close()


async def test_requests_sent_ahead_are_cut_off(house):
    reader, writer = await dial(house)
    writer.write(GET * 5000)
    assert (await rest_of(reader)).count(b"HTTP/1.1 200") <= 2
    writer.close()


async def test_more_connections_than_allowed_are_refused_and_the_others_work(build):
    house = await build(bounds=Bounds(connections=3))
    first = [await dial(house) for _ in range(3)]
    await asyncio.sleep(0.02)
    reader, writer = await dial(house)
    assert await rest_of(reader) == b""
    writer.close()
    for reader, writer in first:
        writer.write(GET)
        assert b"200 OK" in await reader.readline()
        writer.close()


async def test_a_peer_that_never_reads_is_cut_off(build, upstream):
    house = await build(bounds=Bounds(unread_seconds=0.2))
    gone = asyncio.Event()

    async def script(peer):
        await peer.stream()
        try:
            while True:
                await peer.chunk(delta("x" * 10_000))
        finally:
            gone.set()

    upstream.script = script
    turn = await house.turn()
    reader, writer = await dial(house)
    body = b'{"messages": [], "stream": true}'
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nX-Amplifier-Turn: req_1\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    reader._transport.pause_reading()
    async with asyncio.timeout(60):
        await gone.wait()
    [usage] = await house.turns.finish(turn.turn_id, abort=False)
    assert usage.estimated
    writer.transport.abort()


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"CONNECT x:1 HTTP/1.1\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n" * 1000,
    ],
)
async def test_junk_harms_nobody(build, junk):
    house = await build(bounds=Bounds(idle_seconds=0.2))
    reader, writer = await dial(house)
    writer.write(junk)
    answer = await rest_of(reader)
    assert b" 500 " not in answer
    writer.close()
    reader, writer = await dial(house)
    writer.write(GET)
    assert b"200 OK" in await reader.readline()
    writer.close()


async def test_another_runtimes_socket_does_not_speak_for_this_turn(house, upstream):
    upstream.script = answering(delta("a", "stop"), DONE)
    mine, theirs = await house.runtime("run_1"), await house.runtime("run_2")
    await house.turn("req_1", "run_1")
    assert (await streamed(mine)).status == 200
    assert (await theirs.post(CHAT, json=ask(), headers=naming("req_1"))).status_code == 403

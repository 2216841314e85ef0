"""A WebSocket's bounds, whatever runs behind it: sizes, pieces, what is not read, keep-alive, and a server that stops."""

import asyncio
import base64
import contextlib
import json
import os
import struct
from dataclasses import dataclass

import pytest
import uvicorn
import websockets
from websockets.asyncio.client import connect

from amplifier_api_server.control_plane.connections import Bounds, public_protocol
from amplifier_api_server.control_plane.upgraded import KNOWN, SocketBounds, socket_protocol

SMALL = SocketBounds(
    message_bytes=64_000,
    unknown_message_bytes=1_000,
    message_seconds=0.3,
    unread_seconds=0.5,
    ping_seconds=0.2,
    pong_seconds=0.3,
)


@dataclass
class Served:
    server: uvicorn.Server
    port: int
    ends: list
    go: asyncio.Event  # lets a message `wait` end

    @property
    def url(self):
        return f"ws://127.0.0.1:{self.port}/"


@contextlib.asynccontextmanager
async def serving(bounds=SMALL, connections=64, compression=None):
    ends, go = [], asyncio.Event()

    async def app(scope, receive, send):
        """Echoes; `known` makes the peer known, `flood` is answered without end."""
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})
            return
        assert (await receive())["type"] == "websocket.connect"
        if scope["path"] == "/silent":
            await asyncio.Event().wait()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            text = message.get("text") or ""
            if text == "wait":
                await go.wait()
            if text == "known":
                scope["extensions"][KNOWN]()
            with contextlib.suppress(OSError):
                while text == "flood":
                    await send({"type": "websocket.send", "text": "x" * 10_000})
                await send({"type": "websocket.send", "text": str(len(text))})
        ends.append(message["code"])

    config = uvicorn.Config(
        app,
        port=0,
        http=public_protocol(Bounds(connections=connections)),
        ws=socket_protocol(bounds),
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=3,
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield Served(server, server.servers[0].sockets[0].getsockname()[1], ends, go)
    finally:
        server.should_exit = True
        await task


async def closed(client):
    """The code and reason that the server closed with."""
    with contextlib.suppress(websockets.ConnectionClosed):
        async with asyncio.timeout(60):
            while True:
                await client.recv()
    return client.close_code, client.close_reason


@contextlib.asynccontextmanager
async def raw(port, path=b"/"):
    """An upgraded connection, byte by byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(upgrade(path))
    try:
        yield reader, writer
    finally:
        writer.close()


def upgrade(path=b"/", method=b"GET", version=b"13", more=b""):
    key = base64.b64encode(os.urandom(16))
    return (
        method + b" " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: " + version + b"\r\nSec-WebSocket-Key: " + key + b"\r\n" + more + b"\r\n"
    )


def frame(opcode, payload, *, fin=True):
    head = bytes([(0x80 if fin else 0) | opcode])
    size = len(payload)
    head += bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + struct.pack("!H", size)
    return head + b"\0\0\0\0" + payload


async def close_frame(reader):
    """The code and reason of the close frame that comes, past whatever comes before it."""
    async with asyncio.timeout(60):
        while True:
            first, length = await reader.readexactly(2)
            if length == 126:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
            payload = await reader.readexactly(length)
            if first & 0x0F == 8:
                return struct.unpack("!H", payload[:2])[0], payload[2:].decode()


async def test_who_is_not_known_sends_small_messages_only():
    async with serving() as served, connect(served.url) as client:
        await client.send("x" * 900)
        assert await client.recv() == "900"
        await client.send("x" * 1_001)
        assert (await closed(client))[0] == 1009


async def test_who_is_known_sends_messages_up_to_the_limit():
    async with serving() as served, connect(served.url) as client:
        await client.send("known")
        assert await client.recv() == "5"
        await client.send("x" * 64_000)
        assert await client.recv() == "64000"
        await client.send("x" * 64_001)
        assert (await closed(client))[0] == 1009
        assert served.ends == [1009]


async def test_a_message_of_countless_empty_pieces_is_cut_off():
    async with serving(SocketBounds()) as served, raw(served.port) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frame(1, b"x", fin=False) + frame(0, b"", fin=False) * 2_000)
        code, reason = await close_frame(reader)
        assert code == 1008
        assert "fragments" in reason


@pytest.mark.parametrize("begin", [frame(1, b"x", fin=False), frame(1, b"x" * 20)[:12]])
async def test_a_message_that_does_not_end_is_cut_off(begin):
    async with serving() as served, raw(served.port) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(begin)
        assert await close_frame(reader) == (1008, "a message did not arrive in time")


async def test_a_peer_that_does_not_answer_pings_is_cut_off_and_one_that_does_is_not():
    async with serving() as served, connect(served.url, ping_interval=None) as alive, raw(served.port) as (reader, _):
        await reader.readuntil(b"\r\n\r\n")
        assert await close_frame(reader) == (1011, "no pong in time")
        await alive.send("four")
        assert await alive.recv() == "4"


async def test_a_peer_that_reads_nothing_is_told_why_it_was_closed():
    async with serving() as served, raw(served.port) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        reader._transport.pause_reading()
        writer.write(frame(1, b"flood"))
        async with asyncio.timeout(60):
            while not served.server.server_state.connections or not any(
                one._is_failed for one in served.server.server_state.connections
            ):
                await asyncio.sleep(0.05)
        reader._transport.resume_reading()
        code, reason = await close_frame(reader)
        assert code == 4410
        assert "0.5 s" in reason
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("opcode", [9, 10])
@pytest.mark.parametrize("payload", [b"", b"x" * 125])
@pytest.mark.parametrize("is_known", [False, True])
async def test_a_flood_of_control_frames_is_cut_off(opcode, payload, is_known):
    async with serving(SocketBounds()) as served, raw(served.port) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        if is_known:
            writer.write(frame(1, b"known"))
            assert await reader.readexactly(3) == b"\x81\x015"
        (connection,) = served.server.server_state.connections
        handled = frames_handled(connection)
        writer.write(frame(opcode, payload) * 2_000)
        assert await close_frame(reader) == (1008, "more than 10 control frames a second")
        assert len(handled) < 100, "the rest was read, and is not looked at"


def frames_handled(connection):
    """The frames that a connection's protocol parses from now on."""
    handled, receive = [], connection.conn.recv_frame

    def counted(one):
        handled.append(one)
        receive(one)

    connection.conn.recv_frame = counted
    return handled


async def test_control_frames_between_those_of_a_message_count_too():
    async with serving(SocketBounds()) as served, raw(served.port) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frame(1, b"x", fin=False) + (frame(0, b"", fin=False) + frame(10, b"")) * 200)
        assert await close_frame(reader) == (1008, "more than 10 control frames a second")


async def test_a_client_that_pings_now_and_then_is_answered():
    async with serving(SocketBounds()) as served, connect(served.url) as client:
        for _ in range(40):
            await (await client.ping())
        await client.send("four")
        assert await client.recv() == "4"


async def test_frames_of_messages_are_handled_no_faster_than_their_pace():
    """A thousand at once, as one message may have; each further one has to wait."""
    async with serving(SocketBounds()) as served, raw(served.port) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        (connection,) = served.server.server_state.connections
        stopped = connection.loop.time()
        connection._frames._now = lambda: stopped  # its time stands still
        handled = frames_handled(connection)
        message = frame(1, b"", fin=False) + frame(0, b"", fin=False) * 500 + frame(0, b"")
        writer.write(message * 4)
        assert await reader.readexactly(6) == b"\x81\x010" * 2
        while connection._rest is None:
            await asyncio.sleep(0)
        assert len(handled) == 1_024 + 2 + 1, "those of two messages, and the begin of the third"
        assert not connection.transport.is_reading()


async def test_a_message_is_parsed_once_the_one_before_it_was_taken():
    async with serving(SocketBounds()) as served, raw(served.port) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        (connection,) = served.server.server_state.connections
        handled = frames_handled(connection)
        writer.write(frame(1, b"wait") + frame(1, b"x") * 2_000)
        async with asyncio.timeout(60):
            while connection.read_paused is False or len(handled) < 2:
                await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(handled) == 2, "the one that the application works on, and the next"
        served.go.set()
        assert await reader.readexactly(6) == b"\x81\x014\x81\x011"


async def test_a_server_that_stops_says_going_away():
    async with serving() as served:
        client = await connect(served.url)
        await client.send("known")
        await client.recv()
        served.server.should_exit = True
        code, reason = await closed(client)
        assert code == 1001
        assert "stopping" in reason


async def test_sockets_count_as_connections():
    async with serving(connections=2) as served, connect(served.url), connect(served.url) as second:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(served.url)
        assert refused.value.response.status_code == 503
        await second.close()
        async with asyncio.timeout(60):
            while len(served.server.server_state.connections) > 1:
                await asyncio.sleep(0.01)
        async with connect(served.url) as third:
            await third.send("four")
            assert await third.recv() == "4"


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (upgrade(version=b"8"), 400, "invalid_handshake"),
        (
            upgrade().replace(b"Upgrade: websocket", b"Upgrade: websocket\r\nUpgrade: websocket"),
            426,
            "websocket_required",
        ),
        (upgrade(method=b"POST", more=b"Content-Length: 0\r\n"), 405, "invalid_handshake"),
        (upgrade().replace(b"Sec-WebSocket-Key", b"X-Key"), 400, "invalid_handshake"),
        (upgrade(more=b"X-Long: " + b"x" * 9_000 + b"\r\n"), 431, "invalid_handshake"),
        (upgrade(path=b"/" + b"x" * 9_000), 414, "invalid_handshake"),
        (upgrade(more=b"".join(b"X-%d: 1\r\n" % n for n in range(200))), 431, "invalid_handshake"),
    ],
)
async def test_an_upgrade_that_is_none_is_refused_with_a_problem(request_bytes, status, code):
    async with serving() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(request_bytes)
        async with asyncio.timeout(60):
            answer = await reader.read()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status), answer
        assert json.loads(body)["code"] == code
        assert json.loads(body)["status"] == status
        writer.close()


async def test_an_upgrade_sent_ahead_of_an_answer_is_cut_off():
    async with serving() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + upgrade())
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError):
                assert b"101 Switching" not in await reader.read()
        writer.close()


async def test_an_upgrade_after_other_requests_on_the_connection_works():
    async with serving() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await reader.readexactly(2)
        writer.write(upgrade())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        writer.write(frame(1, b"four"))
        assert await reader.readexactly(3) == b"\x81\x014"
        writer.close()


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", frame(3, b""), frame(1, b"\xff\xfe"), b"\x81\x04four", b"\x88\x01x"]
)
async def test_what_is_no_frame_ends_the_connection_alone(data):
    async with serving() as served, connect(served.url) as other, raw(served.port) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        code, _ = await close_frame(reader)
        assert code in {1002, 1007}
        await other.send("four")
        assert await other.recv() == "4"

"""Requests that are sent before their turn: answered in order, and no more of them in memory than were read at once."""

import asyncio
import contextlib
import itertools
import socket

import pytest

from amplifier_api_server.control_plane import peers as peers_module
from amplifier_api_server.control_plane.connections import PublicProtocol
from amplifier_api_server.control_plane.fair_queue import FairQueue
from amplifier_api_server.control_plane.peers import Peers
from amplifier_api_server.control_plane.pieces import PIECE_BYTES
from tests.control_plane.public_door import public_door

READ_AT_ONCE = 256 * 1024  # by the event loop
GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer(reader):
    """The next answer's body."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return await reader.readexactly(length)


async def settled(what, *, turns=50):
    """Wait until `what()` has been the same for so many turns of the loop."""
    before, left = what(), turns
    while left:
        await asyncio.sleep(0.002)
        before, left = (before, left - 1) if what() == before else (what(), turns)
    return before


def small_window(writer):
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


@pytest.mark.parametrize("step", [1, 7, 100_000])
async def test_pipelined_requests_are_answered_in_order_however_they_are_divided(step):
    many = [
        GET % 0,
        b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n\r\n\r\n\n\nGE",
        b"POST /2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\n\r\n\n\r\n0\r\nX-Late: y\r\n\r\n",
        b"GET /3 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"\r\n" + GET % 4,
    ]
    stream = b"".join(many)
    async with public_door() as door:
        reader, writer = await door.connect()
        for begin in range(0, len(stream), step):
            writer.write(stream[begin : begin + step])
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            assert [await answer(reader) for _ in many] == [b"/0", b"/1", b"/2", b"/3", b"/4"]
        assert all(b"x-late" not in dict(scope["headers"]) for scope in door.seen), "a trailer is no header"
        writer.close()


KINDS = {
    "plain": GET % 1,
    "bodies": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789",
    "heads": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 200 + b"\r\n",
    "upgrades": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "trailers": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: y\r\n\r\n",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [b"/wait", b"/large"])
async def test_nothing_is_parsed_behind_a_request_that_is_not_answered_or_an_answer_that_is_not_read(kind, first):
    async with public_door() as door:
        reader, writer = await door.connect()
        small_window(writer)
        reader._transport.pause_reading()
        writer.write(
            b"GET " + first + b" HTTP/1.1\r\nHost: x\r\n\r\n" + KINDS[kind] * (2 * 1024 * 1024 // len(KINDS[kind]))
        )
        held = await settled(lambda: (len(door.seen), door.peers.ahead.held_bytes))
        assert held[0] == 1, "a request was parsed ahead of its turn"
        assert 0 < held[1] <= READ_AT_ONCE
        writer.transport.abort()
        door.go.set()  # whoever has gone is noticed by their answer: nothing is read of them before
        while door.peers.count:
            await asyncio.sleep(0.001)
        assert door.peers.ahead.held_bytes == 0


async def test_what_one_network_sends_ahead_is_bounded_in_all(monkeypatch):
    monkeypatch.setattr(peers_module, "_AHEAD_BYTES", READ_AT_ONCE)
    told = []
    async with public_door(Peers(tell=lambda reason, address: told.append((reason, address)))) as door:

        async def attack(address):
            reader, writer = await door.connect(address)
            writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n" + GET % 1 * 40_000)
            return reader, writer

        held = []
        while not told:  # each holds what was read of it at once
            held.append(await attack("127.0.0.1"))
            await settled(lambda: door.peers.ahead.held_bytes)
            assert door.peers.ahead.held_bytes <= READ_AT_ONCE
        assert told == [("ahead", "127.0.0.1")]
        assert len(held) > 1
        held.append(await attack("127.0.0.2"))
        assert await settled(lambda: len(door.seen)) == len(held)
        assert len(told) == 1, "another network has room of its own"
        for _, writer in held:
            writer.transport.abort()


async def test_what_one_network_leaves_unread_is_bounded_in_all(monkeypatch):
    monkeypatch.setattr(peers_module, "_UNREAD_BYTES", 20 * 1024 * 1024)
    told = []
    async with public_door(Peers(tell=lambda reason, address: told.append((reason, address)))) as door:

        async def attack(address):
            reader, writer = await door.connect(address)
            small_window(writer)
            reader._transport.pause_reading()
            writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            await settled(lambda: (len(door.seen), door.peers.unread.held_bytes))

        for _ in range(10):  # 80 MiB
            await attack("127.0.0.1")
            assert door.peers.unread.held_bytes <= 20 * 1024 * 1024
        assert told[0] == ("unread", "127.0.0.1")
        before = len(told)
        await attack("127.0.0.2")
        assert len(told) == before, "another network has room of its own"
        for writer in door.writers:
            writer.transport.abort()
        while door.peers.count:
            await asyncio.sleep(0.001)
        assert door.peers.unread.held_bytes == 0


@pytest.mark.parametrize(
    "sent",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 200_000,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"4000\r\n" + b"\n" * 16384 + b"\r\n") * 60,
        b"\r\n" * 500_000,
        GET % 1 * 40_000,
    ],
    ids=["chunks", "newlines", "empty_lines", "requests"],
)
async def test_a_read_full_of_small_things_leaves_the_loop_to_others(monkeypatch, sent):
    work = []
    parse = PublicProtocol._parse

    def watched(self):
        """Called once in a turn of the loop, as it schedules itself."""
        done = parse(self)
        work.append(self._work)
        return done

    monkeypatch.setattr(PublicProtocol, "_parse", watched)
    async with public_door() as door:
        reader, writer = await door.connect()
        writer.write(sent)
        draining = asyncio.create_task(reader.read(-1))
        await settled(lambda: len(work))
        draining.cancel()
        writer.transport.abort()
    assert len(work) > 5, "it came in several parts"
    assert 0 < max(work) <= 100 + PIECE_BYTES // 5 + 1, "one connection had more than its share of a turn"


@pytest.mark.parametrize("kind", ["chunks", "requests"])
async def test_many_connections_full_of_small_things_leave_the_loop_to_others(monkeypatch, kind):
    """What they do in one turn of the loop is as much as one may, whatever each of them has to be parsed."""
    chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 30_000
    sent = {"chunks": chunked, "requests": GET % 1 * 200}[kind]
    work, begun = [0], [0]
    parse, turn, begin = PublicProtocol._parse, FairQueue._turn, PublicProtocol.on_headers_complete
    late = itertools.count(0, 3600)

    def watched(self):
        more = parse(self)
        work[-1] += self._work
        return more

    def next_turn(self):
        work.append(0)
        begun.append(0)
        turn(self)

    def counted(self):
        begun[-1] += 1
        begin(self)

    monkeypatch.setattr(PublicProtocol, "_parse", watched)
    monkeypatch.setattr(PublicProtocol, "on_headers_complete", counted)
    monkeypatch.setattr(FairQueue, "_turn", next_turn)
    async with public_door() as door:
        # Each piece of work takes 10 us, and so much time passes in between that nobody had their share.
        door.protocol.fair_queue = FairQueue(lambda: sum(work) * 1e-5, lambda: next(late))
        writers = []
        for _ in range(20):
            reader, writer = await door.connect()
            writer.write(sent)
            writers.append((asyncio.create_task(reader.read(-1)), writer))
        await settled(lambda: sum(work))
        for draining, writer in writers:
            draining.cancel()
            writer.transport.abort()
    assert sum(begun) == 20 * (200 if kind == "requests" else 1)
    assert max(work) <= 2 * 100 + PIECE_BYTES // 5
    assert max(begun) <= 3


async def test_where_too_much_waits_for_its_turn_nothing_is_parsed_before_it_but_what_costs_little(monkeypatch):
    monkeypatch.setattr(peers_module, "_AHEAD_BYTES", 1000)
    work, parse = [], PublicProtocol._parse_cheap

    def watched(self):
        self._work = 0
        parse(self)
        work.append(self._work)

    monkeypatch.setattr(PublicProtocol, "_parse_cheap", watched)
    told = []
    async with public_door(Peers(tell=lambda reason, address: told.append((reason, address)))) as door:
        reader, writer = await door.connect()
        door.protocol.fair_queue._left = 0
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 30_000)
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError):
                await reader.read(-1)
    assert told == [("ahead", "127.0.0.1")]
    assert 0 < max(work) < 500


async def test_a_client_that_waits_for_its_turn_may_upgrade_then():
    """Where others are busy an upgrade's request waits; it was not sent ahead of anything."""
    async with public_door() as door:
        door.protocol.fair_queue._left = 0
        reader, writer = await door.connect()
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        async with asyncio.timeout(60):
            assert (await reader.readline()).startswith(b"HTTP/1.1 101")
        writer.transport.abort()
    assert door.peers.ahead.held_bytes == 0


async def test_uploads_that_wait_for_their_turn_together_are_not_cut_off(monkeypatch):
    monkeypatch.setattr(peers_module, "_AHEAD_BYTES", READ_AT_ONCE)
    told = []
    async with public_door(Peers(tell=lambda reason, address: told.append((reason, address)))) as door:
        connected = [await door.connect() for _ in range(30)]
        body = b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000
        for number, (_, writer) in enumerate(connected):
            writer.write(body % number)
        async with asyncio.timeout(60):
            for number, (reader, _) in enumerate(connected):
                assert await answer(reader) == b"/%d" % number
        for _, writer in connected:
            writer.close()
    assert told == []


async def test_a_head_of_very_many_fields_is_refused():
    async with public_door() as door:
        for fields, status in ((250, b"200"), (300, b"431")):
            reader, writer = await door.connect()
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * fields + b"\r\n")
            assert (await reader.readline()).split()[1] == status
            writer.close()


async def test_a_malformed_body_is_not_answered_into_the_answer_that_has_begun():
    async with public_door() as door:
        reader, writer = await door.connect()
        writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        async with asyncio.timeout(60):
            await reader.readuntil(b"begun")
            writer.write(b"nonsense\r\n")
            rest = b""
            with contextlib.suppress(ConnectionError):
                rest = await reader.read()
        assert rest == b""

"""Each network has its share of the connections, whatever it does with them."""

import asyncio
import json

import pytest

from amplifier_api_server.control_plane.client_addresses import TrustedProxies
from amplifier_api_server.control_plane.peers import Peers
from amplifier_api_server.control_plane.telemetry import RareLines
from tests.control_plane.public_door import public_door
from tests.control_plane.test_upgraded import upgrade

OPENINGS = {
    "idle": b"",
    "slow head": b"GET / HTTP/1.1\r\nHost: ",
    "slow body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx",
    "unanswered": b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n",
    "socket": upgrade(),
}


async def refusal(reader):
    async with asyncio.timeout(60):
        head = await reader.readuntil(b"\r\n\r\n")
        return head.split()[1], json.loads(await reader.read())["code"]


@pytest.mark.parametrize("kind", OPENINGS)
async def test_one_address_has_its_share_of_connections_and_no_more(kind):
    told = []
    peers = Peers(most=10, most_of_network=4, tell=lambda reason, address: told.append((reason, address)))
    async with public_door(peers) as door:
        held = []
        for _ in range(4):
            held.append(await door.connect())
            held[-1][1].write(OPENINGS[kind])
        if kind == "socket":
            assert (await held[-1][0].readline()).startswith(b"HTTP/1.1 101")
        for _ in range(3):
            reader, writer = await door.connect()
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await refusal(reader) == (b"503", "too_many_connections")
            writer.close()
        assert told == [("address", "127.0.0.1")] * 3
        assert peers.count == 4, "what is refused does not count"
        reader, writer = await door.connect("127.0.0.2")
        writer.write(b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200"), "another address is served"
        for _, other in [*held, (reader, writer)]:
            other.transport.abort()
        while peers.count:
            await asyncio.sleep(0.001)
        assert peers.of_network == {}


async def test_all_addresses_together_have_a_bound():
    async with public_door(Peers(most=2, most_of_network=2)) as door:
        held = [await door.connect(f"127.0.0.{number}") for number in (1, 2)]
        reader, writer = await door.connect("127.0.0.3")
        assert await refusal(reader) == (b"503", "too_many_connections")
        for _, one in [*held, (reader, writer)]:
            one.transport.abort()


def test_an_ipv6_network_is_one_and_a_trusted_proxy_is_many():
    peers = Peers(most=5, most_of_network=2, proxies=TrustedProxies(["10.0.0.0/8"]))
    assert peers.enter("2001:db8::1") is not None
    first = peers.enter("2001:db8::2")
    assert first is not None
    assert peers.enter("2001:db8::3") is None
    first.leave()
    first.leave()
    assert peers.enter("2001:db8::3") is not None, "a place that is left is free once"
    assert peers.enter("2001:db8::4") is None
    assert [peers.enter("10.0.0.1") is not None for _ in range(4)] == [True, True, True, False]


def test_a_place_gives_back_what_it_holds():
    peers = Peers()
    one, other = peers.enter("192.0.2.1"), peers.enter("192.0.2.2")
    assert one is not None
    assert other is not None
    assert one.hold_ahead(8 * 1024 * 1024)
    assert not one.hold_ahead(8 * 1024 * 1024 + 1)
    assert other.hold_ahead(1)
    one.leave()
    assert peers.ahead.held_bytes == 1
    other.hold_ahead(0)
    assert peers.ahead.held_bytes == 0


def test_what_a_stranger_makes_happen_at_will_is_told_in_few_lines():
    now = [0.0]
    lines = RareLines(10.0, lambda: now[0])
    assert [lines.count("a") for _ in range(1000)] == [1] + [0] * 999
    assert lines.count("b") == 1
    now[0] = 10.0
    assert lines.count("a") == 1000
    assert lines.count("a") == 0

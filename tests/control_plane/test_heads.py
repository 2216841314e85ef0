"""The head of a request, as the server's protocol hands it on."""

import pytest

from tests.control_plane.public_door import public_door


async def exchange(door, head: bytes) -> bytes:
    reader, writer = await door.connect()
    writer.write(head + b"Connection: close\r\n\r\n")
    return await reader.read()


@pytest.mark.parametrize("sent", [b"abc ", b"abc\t", b" \t abc \t ", b"abc"])
async def test_white_space_around_a_value_is_no_part_of_it(sent):
    async with public_door() as door:
        answer = await exchange(door, b"GET /x HTTP/1.1\r\nHost: \tx \r\nX-Odd:%b\r\nX-Within:a \t b\r\n" % sent)
        assert answer.startswith(b"HTTP/1.1 200 ")
        found = dict(door.seen[0]["headers"])
        assert (found[b"x-odd"], found[b"host"], found[b"x-within"]) == (b"abc", b"x", b"a \t b")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n", 400),
        (b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost:\r\n", 200),
        (b"GET / HTTP/1.0\r\n", 200),
    ],
)
async def test_a_request_has_one_host(head, status):
    async with public_door() as door:
        answer = await exchange(door, head)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer
        if status != 200:
            assert b'"invalid_http"' in answer
            assert b"one Host header" in answer
            assert door.seen == []

"""Bytes are handed to the parser so that it never parses past a message's end, wherever they were divided."""

from itertools import pairwise

import httptools
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane.pieces import PIECE_BYTES, Pieces


class Counting:
    """What a parser says of what it is given."""

    def __init__(self):
        self.begun = self.ended = self.length = self.left = 0
        self.bodies = []

    def on_message_begin(self):
        self.begun += 1
        self.length = 0
        self.bodies.append(b"")

    def on_header(self, name, value):
        if name.lower() == b"content-length":
            self.length = int(value)

    def on_headers_complete(self):
        self.left = self.length

    def on_body(self, body):
        self.bodies[-1] += body

    def on_message_complete(self):
        self.ended += 1
        self.left = 0


def parsed(stream, cuts):
    """Hand over `stream`, divided at `cuts`; fails where a piece has anything behind a message's end."""
    counting, pieces, given_bytes = Counting(), Pieces(), 0
    parser = httptools.HttpRequestParser(counting)
    edges = [0, *sorted(cuts), len(stream)]
    for begin, end in pairwise(edges):
        pieces.add(stream[begin:end])
        while pieces:
            piece = pieces.take(counting.left)
            assert piece
            given_bytes += len(piece)
            counting.left = max(0, counting.left - len(piece))
            before, stopped_at = counting.ended, len(piece)
            try:
                parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                stopped_at = upgrade.args[0]
            assert stopped_at == len(piece), "something stood behind the upgrade"
            assert counting.ended - before <= 1
            if counting.ended > before:
                assert counting.begun == counting.ended, "the next message was begun"
    assert given_bytes == len(stream)
    return counting


lines = st.sampled_from([b"\n", b"\r\n", b"\n\r\n", b"\n\n\n", b"\r\n\r\n0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"x"])
data = st.lists(lines, min_size=1, max_size=6).map(b"".join)


def counted(body):
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def chunked(chunks, trailer):
    inner = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in chunks)
    return b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + inner + b"0\r\n" + trailer + b"\r\n"


messages = st.one_of(
    st.just(b"GET / HTTP/1.1\r\n\r\n"),
    st.just(b"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    st.just(b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),
    st.just(b"CONNECT x:1 HTTP/1.1\r\nContent-Length: 100\r\n\r\n"),
    data.map(counted),
    st.builds(chunked, st.lists(data, max_size=4), st.sampled_from([b"", b"X: y\r\n", b"X: y\r\nZ:\r\n"])),
)


@given(st.lists(messages, min_size=1, max_size=6), st.data())
def test_no_piece_has_anything_behind_a_messages_end(some, drawn):
    stream = b"".join(some)
    cuts = drawn.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert parsed(stream, cuts).ended == len(some)


def test_every_byte_by_itself():
    stream = chunked([b"\n\r\n", b"\n"], b"X: y\r\n") + b"GET / HTTP/1.1\r\n\r\n" * 3 + counted(b"\r\n\r\n")
    counting = parsed(stream, range(len(stream)))
    assert counting.ended == 5
    assert counting.bodies == [b"\n\r\n\n", b"", b"", b"", b"\r\n\r\n"]


def test_a_known_body_is_handed_over_in_one_piece_and_all_else_bit_by_bit():
    pieces = Pieces()
    pieces.add(b"x" * 200_000 + b"y" * 100)
    assert len(pieces.take(200_000)) == 200_000
    assert bytes(pieces.take(5000)) == b"y" * 100
    pieces.add(b"z" * 200_000)
    assert len(pieces.take()) == PIECE_BYTES
    assert len(pieces) == 200_000 - PIECE_BYTES

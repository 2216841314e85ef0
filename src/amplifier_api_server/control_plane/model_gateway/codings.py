"""Bodies that a provider compressed although it was asked not to: gzip and deflate are read all the same (RFC 9110, 8.4.1).

Owns the decoding of one body. Refuses every other coding: `decoder_of` says so before anything is read. Invariant: one
step gives a bounded piece, however much the body holds when it is unpacked.
"""

from __future__ import annotations

import zlib

_PIECE_BYTES = 64 * 1024
_CODINGS = frozenset({"gzip", "x-gzip", "deflate"})
_HEADER_BYTES = 2
_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32


class UnknownCoding(Exception):
    """The body is in a coding that can't be read here; the message is its name."""


class Undecodable(Exception):
    """The body is not what its coding says, or is cut off."""


class Decoder:
    """Of one body. `feed` it, and take `piece`s until there are none."""

    def __init__(self) -> None:
        self._engine: zlib._Decompress | None = None
        self._waiting = b""

    def feed(self, data: bytes) -> None:
        self._waiting += data

    def piece(self) -> bytes:
        """What can be read now, a part of it at most; empty where more of the body is needed. Raises Undecodable."""
        try:
            return self._piece()
        except zlib.error as error:
            raise Undecodable(str(error)) from error

    def finish(self) -> None:
        """The body is at its end. Raises Undecodable where the coding is not."""
        if self._waiting or (self._engine is not None and not self._engine.eof):
            raise Undecodable("it is cut off")

    def _piece(self) -> bytes:
        while self._waiting:
            if self._engine is None or self._engine.eof:  # of gzip there may be several, one after the other
                if len(self._waiting) < _HEADER_BYTES:
                    return b""
                self._engine = zlib.decompressobj(_ZLIB_OR_GZIP if _has_header(self._waiting) else -zlib.MAX_WBITS)
            piece = self._engine.decompress(self._waiting, _PIECE_BYTES)
            self._waiting = self._engine.unconsumed_tail or self._engine.unused_data
            if piece:
                return piece
        return b""


def decoder_of(header: bytes) -> Decoder | None:
    """What reads a body with this Content-Encoding; None where it is as it is. Raises UnknownCoding."""
    names = [name.strip().lower() for name in header.decode("latin-1").split(",")]
    codings = [name for name in names if name not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _CODINGS:
        raise UnknownCoding(", ".join(codings)[:100])
    return Decoder()


def _has_header(data: bytes) -> bool:
    """It is gzip (RFC 1952) or zlib (RFC 1950); some servers leave the header of deflate out."""
    is_zlib = data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0  # noqa: PLR2004 - deflate; the check of its header
    return is_zlib or data[:2] == b"\x1f\x8b"

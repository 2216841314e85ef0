"""How a request's body may be sent: as which media type, and in no coding.

A body in a coding is refused instead of decoded: a kibibyte of gzip can be a mebibyte, which the bounds
on what is sent would not see.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from amplifier_api_server.control_plane.errors import UnsupportedContentEncoding, UnsupportedMediaType

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"
ZIPS: Final = ("application/zip", "application/x-zip-compressed")

_IDENTITY: Final = "identity"
_SHOWN_CHARS: Final = 100


def media_type_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """What `Content-Type` says, without its parameters; "" where it says nothing."""
    return _value(headers, b"content-type").partition(";")[0].strip().lower()


def demand_taken(headers: Sequence[tuple[bytes, bytes]], taken: Sequence[str]) -> None:
    """Raise UnsupportedMediaType for a body that is sent as none of `taken`, or in a coding (RFC 9110, 15.5.16)."""
    coding = _value(headers, b"content-encoding").strip().lower()
    if coding not in ("", _IDENTITY):
        raise UnsupportedContentEncoding(
            f"the body is encoded as {coding[:_SHOWN_CHARS]}; send it as it is, without Content-Encoding", [_IDENTITY]
        )
    kind = media_type_of(headers)
    if kind not in taken and not (JSON in taken and kind.startswith("application/") and kind.endswith("+json")):
        sent = f"is sent as {kind[:_SHOWN_CHARS]}" if kind else "has no type"
        raise UnsupportedMediaType(f"the body {sent}; send it with Content-Type: {' or '.join(taken)}", taken)


def _value(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    """All lines of a header, as one list (RFC 9110, 5.3)."""
    return ", ".join(value.decode("latin-1") for one, value in headers if one == name)

"""The cookies of logins: the login's own, and one for each login that has begun in this browser, in a tab of its own. Pure.

Invariants: all are HttpOnly and go to this host alone (`__Host-`, RFC 6265bis 4.1.3.2): no subdomain can set or read them.
Only where a browser speaks plain http with its own machine are they without prefix and Secure: it would not keep them
otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from amplifier_api_server.control_plane.auth.headers import Headers

_PREFIX: Final = "__Host-"
LOGIN: Final = "amplifier"
_BEGUN: Final = "amplifier-login-"
_MAX_COOKIE_BYTES: Final = 4096


def name_of(kind: str, *, secure: bool) -> str:
    return f"{_PREFIX}{kind}" if secure else kind


def begun(state: str) -> str:
    """The kind of the cookie of the login that was begun with this state."""
    return _BEGUN + hashlib.sha256(state.encode()).hexdigest()[:16]


def begun_in(headers: Headers, *, secure: bool) -> dict[str, bytes]:
    """The logins that were begun in this browser: the values of their cookies, by their kinds."""
    prefix = name_of(_BEGUN, secure=secure).encode()
    found = {
        _BEGUN + name.removeprefix(prefix).decode("latin-1"): value
        for name, value in _pairs(headers)
        if name.startswith(prefix)
    }
    return {kind: value for kind, value in found.items() if len(value) <= _MAX_COOKIE_BYTES}


def value_in(headers: Headers, name: str) -> bytes | None:
    """The cookie's value; None where there is none, and where there are several: which is ours could not be told."""
    wanted = name.encode()
    found = [value for key, value in _pairs(headers) if key == wanted]
    return found[0] if len(found) == 1 and 0 < len(found[0]) <= _MAX_COOKIE_BYTES else None


def _pairs(headers: Headers) -> Iterator[tuple[bytes, bytes]]:
    for header, line in headers:
        for pair in line.split(b";") if header == b"cookie" else ():
            name, _, value = pair.partition(b"=")
            yield name.strip(), value.strip()


def setting(kind: str, value: str, lifetime: timedelta, *, secure: bool) -> tuple[str, str]:
    """The header that sets it. SameSite=Lax: it comes along when a provider leads back here, not when others post here."""
    attributes = f"Path=/; Max-Age={int(lifetime.total_seconds())}; HttpOnly; SameSite=Lax"
    return "set-cookie", f"{name_of(kind, secure=secure)}={value}; {attributes}{'; Secure' if secure else ''}"


def clearing(kind: str, *, secure: bool) -> tuple[str, str]:
    return setting(kind, "", timedelta(0), secure=secure)

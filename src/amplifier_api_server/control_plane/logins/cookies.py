"""The two cookies of logins: the login's own, and that of a login that has begun. Pure.

Invariants: both are HttpOnly and go to this host alone (`__Host-`, RFC 6265bis 4.1.3.2): no subdomain can set or read them.
Only where a browser speaks plain http with its own machine are they without prefix and Secure: it would not keep them
otherwise.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from amplifier_api_server.control_plane.auth.headers import Headers

_PREFIX: Final = "__Host-"
LOGIN: Final = "amplifier"
BEGUN: Final = "amplifier-login"
_MAX_COOKIE_BYTES: Final = 4096


def name_of(kind: str, *, secure: bool) -> str:
    return f"{_PREFIX}{kind}" if secure else kind


def value_in(headers: Headers, name: str) -> bytes | None:
    """The cookie's value; None where there is none, and where there are several: which is ours could not be told."""
    wanted = name.encode()
    found = [
        value.strip()
        for header, line in headers
        if header == b"cookie"
        for key, _, value in (pair.partition(b"=") for pair in line.split(b";"))
        if key.strip() == wanted
    ]
    return found[0] if len(found) == 1 and 0 < len(found[0]) <= _MAX_COOKIE_BYTES else None


def setting(kind: str, value: str, lifetime: timedelta, *, secure: bool) -> tuple[str, str]:
    """The header that sets it. SameSite=Lax: it comes along when a provider leads back here, not when others post here."""
    attributes = f"Path=/; Max-Age={int(lifetime.total_seconds())}; HttpOnly; SameSite=Lax"
    return "set-cookie", f"{name_of(kind, secure=secure)}={value}; {attributes}{'; Secure' if secure else ''}"


def clearing(kind: str, *, secure: bool) -> tuple[str, str]:
    return setting(kind, "", timedelta(0), secure=secure)

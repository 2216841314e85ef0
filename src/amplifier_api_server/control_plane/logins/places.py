"""Where browsers find this server, and where a login may lead back to. Pure.

Invariant: no address that is made here leads to another server: the origin is the operator's word or this machine, and
`next` is a path.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from amplifier_api_server.control_plane.auth.headers import Headers
from amplifier_api_server.control_plane.login_settings import is_loopback
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import Invalid, Unavailable

HOME: Final = "/auth/session"
_MAX_NEXT_CHARS: Final = 1024
# Printable ASCII, no space, no backslash, which browsers read as /; and no second / at once, which would name a host.
NEXT_PATTERN: Final = r"^(/([!-.0-\[\]-~][!-\[\]-~]*)?)?$"
_PATH: Final = re.compile(NEXT_PATTERN)


def header(headers: Headers, name: bytes) -> str | None:
    """A header's value; None where there is none, or where there are two that differ."""
    found = {value for one, value in headers if one == name}
    return found.pop().decode("latin-1") if len(found) == 1 else None


def own_origin(settings: Settings, headers: Headers) -> str:
    """`scheme://host[:port]`, as browsers see it. Raises Unavailable (`public_url_missing`).

    Without `auth.login.public_url` only this machine's own names are believed: any other Host header could be somebody's who
    has a name lead here (DNS rebinding).
    """
    if settings.auth.login.public_url is not None:
        return settings.auth.login.public_url
    host = (header(headers, b"host") or "").lower()
    try:
        parts = urlsplit(f"//{host}")
        name, _ = parts.hostname or "", parts.port
    except ValueError:
        name = ""
    if not is_loopback(name) or parts.netloc != host or "@" in host or re.search(r"[/?#\\\s]", host):
        raise Unavailable(
            "logins are not possible at this address: the operator sets auth.login.public_url to the https address that "
            "browsers use",
            code="public_url_missing",
        )
    return f"http://{host}"


def is_secure(origin: str) -> bool:
    return origin.startswith("https://")


def checked_next(given: str | None) -> str:
    """Where to go after a login: a path on this server. Raises Invalid."""
    if given is None or given == "":
        return HOME
    if len(given) > _MAX_NEXT_CHARS or not _PATH.fullmatch(given):
        message = "should be a path on this server, such as /docs"
        raise Invalid(f"next {message}", errors=[{"field": "next", "message": message}])
    return given

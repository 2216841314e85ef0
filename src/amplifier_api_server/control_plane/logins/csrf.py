"""That a request which a browser authenticated was meant by our own page. Pure.

A cookie comes along whoever made the browser send the request. So what changes something and comes with nothing but a cookie
has to show two things that another site can't: a token that only who reads our answers knows, and that the browser itself
says that the page is ours. GET changes nothing anywhere, so it needs neither.
"""

from __future__ import annotations

import base64
import hmac
from typing import Final

from amplifier_api_server.control_plane.auth.headers import Headers
from amplifier_api_server.control_plane.logins import cookies
from amplifier_api_server.control_plane.logins.places import header, is_secure, own_origin
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import Forbidden

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADER: Final = b"x-csrf-token"


def token_of(secret: bytes) -> str:
    """The token of a login, by its cookie's value: it tells nothing about that, and ends with it."""
    return base64.urlsafe_b64encode(hmac.digest(secret, b"amplifier csrf token", "sha256")).rstrip(b"=").decode()


def login_cookie(settings: Settings, headers: Headers) -> bytes | None:
    """The login cookie that fits the address that browsers use: the other one is never read."""
    origin = settings.auth.login.public_url
    return cookies.value_in(headers, cookies.name_of(cookies.LOGIN, secure=origin is not None and is_secure(origin)))


def require(settings: Settings, method: str, headers: Headers) -> None:
    """Raise Forbidden (`csrf_failed`) unless the request is a safe one, or shows that our own page means it."""
    if method in _SAFE:
        return
    secret = login_cookie(settings, headers)
    require_token(secret, header(headers, _HEADER) or "")
    require_same_origin(settings, headers)


def require_token(secret: bytes | None, given: str) -> None:
    """Raise Forbidden where `given` is not the token of the login with this cookie."""
    wanted = token_of(secret) if secret is not None else ""
    if not wanted or not hmac.compare_digest(wanted.encode(), given.encode("utf-8", "replace")):
        raise Forbidden(
            "a login's cookie alone does not do this: send the csrf_token that GET /auth/session gives as X-CSRF-Token",
            code="csrf_failed",
        )


def require_same_origin(settings: Settings, headers: Headers) -> None:
    """Raise Forbidden where the browser says that another site sent this, or doesn't say (Fetch Metadata; RFC 6454, 7)."""
    origin, site = header(headers, b"origin"), header(headers, b"sec-fetch-site")
    said = [one for one in (origin, site) if one is not None]
    is_ours = origin is None or origin.lower() == own_origin(settings, headers)
    if not said or not is_ours or site not in (None, "same-origin"):
        raise Forbidden("the request does not come from a page of this server", code="csrf_failed")

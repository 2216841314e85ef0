"""Who is at the other end of a connection: by its upgrade request, or by what its messages say.

Owns which credential a connection goes by; it is looked at again with every message, so that what a caller may do, and their
limits, are never older than for a request. A cookie is sent by the browser, not by the page: it counts for pages of our own,
and of origins that the operator named, alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from amplifier_api_server.control_plane.auth.authenticate import Authenticator
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.logins.places import own_origin
from amplifier_api_server.control_plane.routes import Scope
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import Forbidden, Unavailable
from amplifier_api_server.tenants.permissions import beyond

Headers = Sequence[tuple[bytes, bytes]]
_COOKIE: Final = b"cookie"


class Caller:
    """One connection's."""

    def __init__(self, authenticator: Authenticator, headers: Headers | None = None, token: str | None = None) -> None:
        self._authenticator = authenticator
        self._headers = headers
        self._token = token

    async def principal(self) -> Principal:
        """As it would be let in now. Raises Unauthenticated, Forbidden, Unavailable."""
        if self._token is not None:
            return await self._authenticator.authenticate_token(self._token)
        return await self._authenticator.authenticate(list(self._headers or ()))


def carried_by(scope: Scope, authenticator: Authenticator, settings: Settings) -> Caller | None:
    """The caller that an upgrade request names; None where it names none, and the first message has to."""
    names = {one.header.lower().encode("latin-1") for one in settings.auth.keys} | {b"authorization"}
    headers = [(name, value) for name, value in scope["headers"] if name in names]
    has_cookie = authenticator.logins is not None and authenticator.logins.carried_in(scope["headers"]) is not None
    if has_cookie and is_origin_allowed(scope["headers"], settings):
        headers += [(name, value) for name, value in scope["headers"] if name == _COOKIE]
    return Caller(authenticator, headers) if headers else None


def is_origin_allowed(headers: Headers, settings: Settings) -> bool:
    """Whether the page that asks is one whose visitor's cookie may speak: one of ours, or of an origin that is named."""
    found = [value.decode("latin-1") for name, value in headers if name == b"origin"]
    if len(found) != 1:
        return False
    if found[0] != "*" and found[0] in settings.cors.allowed_origins:
        return True
    try:
        return found[0].lower() == own_origin(settings, headers)
    except Unavailable:  # nobody has said what our origin is
        return False


def demand_same(before: Principal, now: Principal) -> None:
    """A connection is one member's from its first message to its last. Raises Forbidden."""
    if (before.tenant_id, before.member_id) != (now.tenant_id, now.member_id):
        raise Forbidden("this connection is somebody else's; open another one", code="another_caller")


def demand_no_less(before: Principal, now: Principal) -> None:
    """What is followed was allowed by what the caller held as it began, and goes on with the newer token. Raises
    Forbidden.
    """
    if lost := beyond(before.grants, now.grants):
        detail = f"this token holds less than the one before ({', '.join(lost[:20])}); open another connection with it"
        raise Forbidden(detail, code="access_ended")

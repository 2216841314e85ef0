"""A login between its start and its end: what the browser keeps for us meanwhile, sealed.

Nothing is stored here for a login that has only begun: whoever starts a million leaves nothing behind. Invariant: a callback
counts only in the browser that began, within `LIFETIME`, and for the provider that was begun with.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Final

from pydantic import SecretStr

from amplifier_api_server.control_plane.secrets import SealBroken, Vault
from amplifier_api_server.tenants.errors import Forbidden

LIFETIME: Final = timedelta(minutes=10)
MAX_BEGUN: Final = 4  # in one browser: each is a cookie of half a kilobyte, and proxies take 8 KiB of a head
_OWNER: Final = ("login", "begun")


@dataclass(frozen=True, slots=True)
class Begun:
    """`link_login` is the id of the login whose person gets another identity; "" for a login."""

    provider: str
    next: str
    link_login: str
    expires_at: float  # seconds since the epoch
    state: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    nonce: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48))  # of PKCE: 64 characters (RFC 7636, 4.1)

    def __repr__(self) -> str:
        return f"Begun(provider={self.provider!r})"

    @property
    def challenge(self) -> str:
        """S256 of the verifier (RFC 7636, 4.2)."""
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def begin(provider: str, following: str, link_login: str, now: datetime) -> Begun:
    return Begun(provider, following, link_login, (now + LIFETIME).timestamp())


def sealed(vault: Vault, begun: Begun) -> str:
    """As a cookie's value."""
    return base64.urlsafe_b64encode(vault.seal(SecretStr(json.dumps(asdict(begun))), _OWNER)).rstrip(b"=").decode()


def opened(vault: Vault, cookie: bytes | None, provider: str, now: datetime) -> Begun:
    """What was begun in this browser. Raises Forbidden (`login_not_begun`, `login_expired`)."""
    found = _read(vault, cookie) if cookie is not None else None
    if found is None or found.provider != provider:
        raise _not_begun()
    if found.expires_at <= now.timestamp():
        raise Forbidden("this login was begun too long ago; begin again", code="login_expired")
    return found


def surplus(vault: Vault, kept: Mapping[str, bytes]) -> list[str]:
    """Those of the begun logins, by the kinds of their cookies, that make room for another one: the oldest."""

    def age(kind: str) -> float:
        found = _read(vault, kept[kind])
        return found.expires_at if found is not None else 0.0

    return sorted(kept, key=age)[: max(0, len(kept) + 1 - MAX_BEGUN)]


def _read(vault: Vault, cookie: bytes) -> Begun | None:
    try:
        raw = base64.urlsafe_b64decode(cookie + b"=" * (-len(cookie) % 4))
        return Begun(**json.loads(vault.open(raw, _OWNER).get_secret_value()))
    except (SealBroken, binascii.Error, ValueError, TypeError):
        return None


def _not_begun() -> Forbidden:
    return Forbidden(
        "this login was not begun in this browser, or too many were begun since; begin again. Cookies have to be allowed",
        code="login_not_begun",
    )

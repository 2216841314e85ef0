"""Who a provider says somebody is, and what a provider is asked for. The seam between logins and their providers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from amplifier_api_server.control_plane.logins.begun import Begun
from amplifier_api_server.tenants.errors import Forbidden

MAX_SUBJECT_CHARS: Final = 255  # OpenID Connect Core, 2: `sub`
_MAX_NAME_CHARS: Final = 100
_MAX_EMAIL_CHARS: Final = 254  # RFC 5321, 4.5.3.1.3


@dataclass(frozen=True, slots=True)
class Profile:
    """A person, as the provider that just saw them knows them."""

    subject: str  # never another person's
    name: str
    email: str | None  # that the provider verified


@dataclass(frozen=True, slots=True)
class Answered:
    """What the provider's redirect said."""

    code: str
    issuer: str | None  # RFC 9207


class Provider(Protocol):
    """GitHub, or an issuer of ID tokens. Calls out, each time within bounds."""

    async def authorize_url(self, begun: Begun, redirect_uri: str) -> str:
        """Where the browser goes. Raises Unavailable (`login_provider_unavailable`)."""

    async def profile(self, answered: Answered, begun: Begun, redirect_uri: str) -> Profile:
        """Who logged in. Raises Forbidden (`login_failed`), Unavailable (`login_provider_unavailable`)."""

    async def close(self) -> None: ...


class ProviderWrong(Exception):
    """What a provider answered proves nothing; the message says why, for the operator's log. It holds no token."""


def failed() -> Forbidden:
    """What the person reads: what was wrong is between the operator and the provider."""
    return Forbidden(
        "the provider's answer could not be verified, so nobody was logged in; begin again. The server's log says why",
        code="login_failed",
    )


def text_of(value: Any, most: int = _MAX_NAME_CHARS) -> str:
    """Somebody else's text, fit for a row and a page; "" for what is none."""
    if not isinstance(value, str):
        return ""
    return "".join(char for char in value[:most] if char.isprintable()).strip()


def email_of(value: Any) -> str | None:
    if not isinstance(value, str) or len(value) > _MAX_EMAIL_CHARS:
        return None
    text = text_of(value, _MAX_EMAIL_CHARS)
    return text if text == value and "@" in text else None


def first_text(claims: Mapping[str, Any], *names: str) -> str:
    """The first of these claims that is a text."""
    return next((text for name in names if (text := text_of(claims.get(name)))), "")

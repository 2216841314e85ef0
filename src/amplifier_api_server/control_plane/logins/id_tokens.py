"""What an ID token has to be before it is believed (OpenID Connect Core, 3.1.3.7; RFC 8725). Pure, given the issuer's keys.

Invariants: the algorithm is one that we named and that the key itself is for, never merely what the token says; a token
that was made for another client, another login or another time proves nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import orjson

from amplifier_api_server.control_plane.auth.key_sets import IssuerKey
from amplifier_api_server.control_plane.logins.profiles import MAX_SUBJECT_CHARS, ProviderWrong

ALGORITHMS: Final = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
    "Ed25519",
)
_MAX_CHARS: Final = 16_384
_LEEWAY_SECONDS: Final = 60  # how far the issuer's clock may be from ours
_MAX_AGE_SECONDS: Final = 600  # as long as a login takes at most
_PARTS: Final = 3

Fitting = Callable[[str | None, str], Awaitable[Sequence[IssuerKey]]]


async def verified(text: str, fitting: Fitting) -> tuple[Mapping[str, Any], str]:
    """The claims of a token that the issuer signed, and by which algorithm. Raises ProviderWrong, Unavailable."""
    head, payload, signature = _parts(text)
    algorithm, kid = head.get("alg"), head.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise ProviderWrong(f"the ID token's alg is {str(algorithm)[:20]!r}")
    if "crit" in head or not (kid is None or isinstance(kid, str)):
        raise ProviderWrong("the ID token's header has what is not understood here")
    if str(head.get("typ", "JWT")).lower().removeprefix("application/") != "jwt":
        raise ProviderWrong(f"the ID token's typ is {str(head.get('typ'))[:40]!r}")
    by = text.rpartition(".")[0].encode("ascii")
    if not any(key.proves(algorithm, by, signature) for key in await fitting(kid, algorithm)):
        raise ProviderWrong("no key of the issuer's made the ID token's signature")
    return _object(payload, "claims"), algorithm


def require(claims: Mapping[str, Any], *, issuer: str, client_id: str, nonce: str, now: float) -> None:
    """Raise ProviderWrong unless the token is of this issuer, for us, of this login and of now."""
    if claims.get("iss") != issuer:
        raise ProviderWrong(f"the ID token is of the issuer {str(claims.get('iss'))[:200]!r}")
    audience = claims.get("aud")
    named = [audience] if isinstance(audience, str) else audience if isinstance(audience, list) else []
    if client_id not in named:
        raise ProviderWrong("the ID token is for another client")
    azp = claims.get("azp")
    if (azp is not None or len(named) > 1) and azp != client_id:
        raise ProviderWrong("the ID token was given to another client (azp)")
    expires, issued, begins = (_time(claims, name) for name in ("exp", "iat", "nbf"))
    if expires is None or expires <= now - _LEEWAY_SECONDS:
        raise ProviderWrong("the ID token has expired, or never would")
    if issued is None or not now - _MAX_AGE_SECONDS - _LEEWAY_SECONDS <= issued <= now + _LEEWAY_SECONDS:
        raise ProviderWrong("the ID token is not of now (iat); are both clocks right?")
    if begins is not None and begins > now + _LEEWAY_SECONDS:
        raise ProviderWrong("the ID token is not valid yet (nbf)")
    given = claims.get("nonce")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), nonce.encode()):
        raise ProviderWrong("the ID token is of another login (nonce)")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_CHARS:
        raise ProviderWrong("the ID token names nobody (sub)")


def require_access_token(claims: Mapping[str, Any], algorithm: str, access_token: str) -> None:
    """Raise ProviderWrong where the ID token came with another access token (at_hash; OpenID Connect Core, 3.1.3.6)."""
    wanted = claims.get("at_hash")
    if wanted is None:
        return
    # Ed25519 signs by way of SHA-512; all others say their hash in their name.
    bits = algorithm[-3:] if algorithm[-3:] in ("256", "384", "512") else "512"
    digest = hashlib.new(f"sha{bits}", access_token.encode()).digest()
    half = base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()
    if not isinstance(wanted, str) or not hmac.compare_digest(half.encode(), wanted.encode()):
        raise ProviderWrong("the ID token came with another access token (at_hash)")


def _parts(text: str) -> tuple[Mapping[str, Any], bytes, bytes]:
    """Header, claims as they came, and signature (RFC 7515, 7.1)."""
    parts = text.split(".")
    if len(text) > _MAX_CHARS or len(parts) != _PARTS or not text.isascii():
        raise ProviderWrong("the ID token is no signed JWT")
    try:
        head, payload, signature = (
            base64.b64decode(one + "=" * (-len(one) % 4), b"-_", validate=True) for one in parts
        )
    except (binascii.Error, ValueError) as error:
        raise ProviderWrong("the ID token can't be read") from error
    return _object(head, "header"), payload, signature


def _object(raw: bytes, what: str) -> Mapping[str, Any]:
    try:
        found = orjson.loads(raw)
    except ValueError as error:
        raise ProviderWrong(f"the ID token's {what} can't be read") from error
    if not isinstance(found, dict):
        raise ProviderWrong(f"the ID token's {what} is no object")
    return found


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """Raises ProviderWrong for what is there and is no time."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ProviderWrong(f"the ID token's {name} is no time")
    return float(value)

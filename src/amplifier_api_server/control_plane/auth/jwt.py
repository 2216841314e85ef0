"""JWTs as text: taken apart, and checked against what its issuer was configured with. Pure, but for the issuer's keys.

Follows RFC 8725: what is accepted is said by the configuration alone. A token chooses among that by `iss`, `alg` and `kid`;
nothing else that it says about itself is believed: no `jku`, `x5u`, `jwk` or `x5c` is looked at, and one that has `crit` is
refused, because no extension is understood here.
"""

from __future__ import annotations

import binascii
import math
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from amplifier_api_server.control_plane.auth_settings import BearerAuth
from amplifier_api_server.tenants.errors import Unauthenticated

MAX_TOKEN_BYTES: Final = 16 * 1024
_MAX_KID_CHARS: Final = 256
_MAX_SUBJECT_CHARS: Final = 255  # OpenID Connect Core, 2
# A day before the end of the year 9999, which is the last that a time can be written in: whatever is added to it fits.
_LAST_SECOND: Final = 253402214400
_FORM: Final = re.compile(rb"[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*")


def looks_like_a_token(given: bytes) -> bool:
    """Whether it has a JWT's dots, as no API key has."""
    return given.count(b".") in (2, 4)


def invalid(why: str) -> Unauthenticated:
    return Unauthenticated(f"the token is not valid: {why}", code="invalid_token")


@dataclass(frozen=True, slots=True)
class Jwt:
    """A token in its parts. Nothing of it is believed yet."""

    algorithm: str
    kid: str | None
    kind: str  # `typ`, in lower case and without `application/`; "" where it has none
    issuer: str
    claims: Mapping[str, Any]
    signed: bytes
    signature: bytes


def taken_apart(given: bytes) -> Jwt:
    """The parts. Raises Unauthenticated (`invalid_token`)."""
    if len(given) > MAX_TOKEN_BYTES:
        raise invalid(f"it has {len(given)} bytes; at most {MAX_TOKEN_BYTES} are taken")
    if given.count(b".") == 4:  # noqa: PLR2004 - the five parts of RFC 7516
        raise invalid("it is encrypted; signed ones are taken")
    if _FORM.fullmatch(given) is None:
        raise invalid("it is not three parts of base64url")
    signed, _, signature = given.rpartition(b".")
    head, _, body = signed.partition(b".")
    header, claims = _object(head, "header"), _object(body, "payload")
    if "crit" in header:
        raise invalid("it has critical extensions, none of which is understood here")
    algorithm, kid, kind, issuer = header.get("alg"), header.get("kid"), header.get("typ", ""), claims.get("iss")
    if not isinstance(algorithm, str) or not isinstance(kind, str):
        raise invalid("its header has no alg, or a typ that is no text")
    if kid is not None and not (isinstance(kid, str) and len(kid) <= _MAX_KID_CHARS):
        raise invalid("its kid is no text, or too long")
    if not isinstance(issuer, str):
        raise invalid("it has no issuer (iss)")
    return Jwt(algorithm, kid, kind.lower().removeprefix("application/"), issuer, claims, signed, _decoded(signature))


def check_header(token: Jwt, method: BearerAuth) -> None:
    """Raise Unauthenticated for an algorithm or a kind of token that is not taken from this issuer."""
    if token.algorithm not in method.algorithms:
        raise invalid(f"its alg is {token.algorithm[:20]!r}; {', '.join(method.algorithms)} are taken")
    # RFC 8725, 3.11: an ID token, a logout token or an event is no access token, whoever signed it.
    if (token.kind or "jwt") not in {one.lower() for one in method.token_types}:
        raise invalid(f"its typ is {token.kind[:40]!r}; {', '.join(method.token_types)} are taken")


def check_claims(token: Jwt, method: BearerAuth, now: float) -> float:
    """Until when it is good here, in seconds since the epoch. The signature was checked before. Raises Unauthenticated."""
    claims, leeway = token.claims, method.leeway.total_seconds()
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    if not any(one in method.audience for one in named if isinstance(one, str)):
        raise invalid("it is meant for somebody else (aud)")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject.isprintable() or not 0 < len(subject) <= _MAX_SUBJECT_CHARS:
        raise invalid("it has no subject (sub) that can be taken")
    expires_at, not_before, issued_at = (_time(claims, name) for name in ("exp", "nbf", "iat"))
    if expires_at is None:
        raise invalid("it never expires (exp)")
    if expires_at + leeway <= now:
        raise Unauthenticated("the token has expired; get a new one from its issuer", code="token_expired")
    if not_before is not None and not_before - leeway > now:
        raise invalid("it is not valid yet (nbf)")
    if issued_at is not None and issued_at - leeway > now:
        raise invalid("it was issued in the future (iat)")
    return expires_at + leeway


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """A time that can be reckoned with and written down, leeway included. Raises Unauthenticated."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise invalid(f"its {name} is no time")
    if not 0 <= value <= _LAST_SECOND:
        raise invalid(f"its {name} is no time that can be")
    return float(value)


def _object(part: bytes, what: str) -> Mapping[str, Any]:
    try:
        found = orjson.loads(_decoded(part))
    except ValueError as error:
        raise invalid(f"its {what} is no JSON") from error
    if not isinstance(found, dict):
        raise invalid(f"its {what} is no object")
    return found


def _decoded(part: bytes) -> bytes:
    try:
        return urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except binascii.Error as error:
        raise invalid("it is not three parts of base64url") from error

"""Where a request carries what says who it is: `X-API-Key` (its name can be set) or `Authorization: Bearer` (RFC 6750, 2.1).

Pure. Refuses a request that carries two different ones: which of them a proxy logged or a rule matched could not be told.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from amplifier_api_server.tenants.api_keys import is_well_formed
from amplifier_api_server.tenants.errors import Unauthenticated

Headers = Iterable[tuple[bytes, bytes]]  # names in lower case

_BEARER = b"bearer"
_BEARING = "`Authorization: Bearer eyJ...`"
TWO = "the request carries two different credentials; send one"


@dataclass(frozen=True, slots=True)
class Carried:
    """What stands in a credential's place, whatever it looks like."""

    given: bytes | None = None
    is_bearer: bool = False  # at least once in `Authorization`, where a token may stand
    has_other_scheme: bool = False


def carried_in(headers: Headers, key_headers: Collection[bytes]) -> Carried:
    """What the request carries. Raises Unauthenticated for two different ones; an empty one is none."""
    found: bytes | None = None
    is_bearer = has_other_scheme = False
    for name, value in headers:
        if name in key_headers:
            given = value
        elif name == b"authorization":
            scheme, _, given = value.partition(b" ")
            if scheme.lower() != _BEARER:
                has_other_scheme = has_other_scheme or bool(value)
                continue
            given = given.strip()
            is_bearer = is_bearer or bool(given)
        else:
            continue
        if not given:  # a header that was left empty carries none
            continue
        if found is not None and not hmac.compare_digest(found, given):
            raise Unauthenticated(TWO)
        found = given
    return Carried(found, is_bearer, has_other_scheme)


def well_formed(given: bytes) -> str:
    """What was carried, as a key's text. Raises Unauthenticated."""
    text = given.decode("latin-1")
    if not is_well_formed(text):
        raise Unauthenticated("the API key is not well-formed: mistyped, or cut when it was copied")
    return text


def nothing(key_headers: Collection[bytes], *, takes_tokens: bool, has_other_scheme: bool) -> Unauthenticated:
    """The refusal of a request that carries nothing that could be read."""
    ways = [f"`{_in_words(name)}: amp_live_...`" for name in key_headers]
    wanted = f"send an API key as {' or '.join([*ways, '`Authorization: Bearer amp_live_...`'])}"
    if takes_tokens:
        wanted = f"{wanted}, or a token as {_BEARING}" if ways else f"send a token as {_BEARING}"
    if has_other_scheme:
        return Unauthenticated(f"the Authorization header's scheme is not Bearer; {wanted}")
    return Unauthenticated(f"{'no credential' if takes_tokens else 'no API key'} was sent; {wanted}")


def misplaced_token() -> Unauthenticated:
    """The refusal of a token that stands where a key should."""
    return Unauthenticated(f"a token was sent in the header of API keys; send it as {_BEARING}")


def _in_words(name: bytes) -> str:
    return "-".join(part.capitalize() for part in name.decode("latin-1").split("-")).replace("Api", "API")

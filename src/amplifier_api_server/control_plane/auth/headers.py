"""Where a request carries its key: `X-API-Key` (its name can be set) or `Authorization: Bearer` (RFC 6750, 2.1). Pure.

Refuses a request that carries two different ones: which of them a proxy logged or a rule matched could not be told.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from amplifier_api_server.tenants.api_keys import is_well_formed
from amplifier_api_server.tenants.errors import Unauthenticated

_BEARER = b"bearer"


def carried_in(headers: Iterable[tuple[bytes, bytes]], key_header: bytes) -> bytes:
    """What the request carries in a key's place, whatever it looks like. Raises Unauthenticated where that is nothing."""
    found: bytes | None = None
    has_other_scheme = False
    for name, value in headers:
        if name == key_header:
            given = value.strip()
        elif name == b"authorization":
            scheme, _, given = value.strip().partition(b" ")
            if scheme.lower() != _BEARER:
                has_other_scheme = True
                continue
            given = given.strip()
        else:
            continue
        if found is not None and not hmac.compare_digest(found, given):
            raise Unauthenticated("the request carries two different API keys; send one")
        found = given
    if found is None:
        raise Unauthenticated(_nothing(key_header, has_other_scheme=has_other_scheme))
    return found


def well_formed(given: bytes) -> str:
    """What was carried, as a key's text. Raises Unauthenticated."""
    text = given.decode("latin-1")
    if not is_well_formed(text):
        raise Unauthenticated("the API key is not well-formed: mistyped, or cut when it was copied")
    return text


def _nothing(key_header: bytes, *, has_other_scheme: bool) -> str:
    name = "-".join(part.capitalize() for part in key_header.decode("latin-1").split("-")).replace("Api", "API")
    wanted = f"send an API key as `{name}: amp_live_...` or `Authorization: Bearer amp_live_...`"
    if has_other_scheme:
        return f"the Authorization header's scheme is not Bearer; {wanted}"
    return f"no API key was sent; {wanted}"

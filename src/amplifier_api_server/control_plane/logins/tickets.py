"""Letting a device in by an API key: who shows one has said who they are for as long as they read one page.

The ticket is in that page alone, sealed: the key in it is nobody else's to read, and it is good for one code.
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import timedelta
from typing import Final

from pydantic import SecretStr

from amplifier_api_server.control_plane.auth.headers import well_formed
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.logins.service import LoginServices
from amplifier_api_server.control_plane.origin import current_origin
from amplifier_api_server.control_plane.secrets import SealBroken
from amplifier_api_server.tenants.errors import Forbidden

_LIFETIME: Final = timedelta(minutes=5)
_OWNER: Final = ("device", "ticket")


async def principal_of_key(services: LoginServices, text: str) -> Principal:
    """Whose key it is. Wrong ones are counted. Raises Unauthenticated, Forbidden, Refused (`too_many_attempts`)."""
    throttle, network = services.logins.throttles.guesses_of_network, current_origin().network
    throttle.take(network)
    well_formed(text.strip().encode("utf-8", "replace"))
    found = await services.authenticator.principal_of(text.strip())
    throttle.give_back(network)
    return found


def sealed(services: LoginServices, key_text: str, code: str) -> str:
    until = (services.clock.now() + _LIFETIME).timestamp()
    secret = SecretStr(json.dumps([key_text, code, until]))
    return base64.urlsafe_b64encode(services.logins.vault.seal(secret, _OWNER)).decode()


def opened(services: LoginServices, ticket: str) -> tuple[str, str]:
    """The key and the code. Raises Forbidden (`ticket_expired`)."""
    try:
        raw = base64.urlsafe_b64decode(ticket.encode("ascii"))
        key_text, code, until = json.loads(services.logins.vault.open(raw, _OWNER).get_secret_value())
    except (SealBroken, binascii.Error, ValueError) as error:
        raise Forbidden("this page is not ours; begin again at /auth/device", code="ticket_expired") from error
    if until <= services.clock.now().timestamp():
        raise Forbidden("this page is too old; begin again at /auth/device", code="ticket_expired")
    return key_text, code

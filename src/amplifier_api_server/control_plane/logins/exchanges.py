"""Asking a provider: a form or a question out, one JSON object back, within bounds of time and size.

Goes by the guarded client (`egress`): hosts that the operator wrote down may be anywhere, all others have to be public.
Tokens and codes are in no message.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import orjson

from amplifier_api_server.control_plane.auth_settings import OAuth2Auth
from amplifier_api_server.control_plane.egress.addresses import EgressError
from amplifier_api_server.control_plane.egress.client import Answer, Client, Patience
from amplifier_api_server.control_plane.logins.profiles import ProviderWrong

_SECONDS: Final = 10.0
_MAX_BYTES: Final = 512 * 1024
_PATIENCE: Final = Patience(connect_seconds=5.0, idle_seconds=5.0, max_redirects=2)
_SCHEMES: Final = ("https", "http")  # which of them for which host was decided with the settings (`check_url`)
_SERVER_ERRORS: Final = 500
_OK: Final = 200


class ProviderDown(Exception):
    """It did not answer, or said that it can't now."""


async def get_json(client: Client, url: str, headers: Mapping[str, str] | None = None) -> Any:
    """What is there. Raises ProviderDown, ProviderWrong."""
    try:
        async with (
            asyncio.timeout(_SECONDS),
            # A token goes to where it is meant for and nowhere else: with one, no redirect is followed.
            client.get(
                url,
                schemes=_SCHEMES,
                headers={"Accept": "application/json", **(headers or {})},
                patience=Patience(_PATIENCE.connect_seconds, _PATIENCE.idle_seconds, 0) if headers else _PATIENCE,
            ) as answer,
        ):
            return _json(url, answer.status, await _body(answer))
    except (EgressError, TimeoutError) as error:
        raise ProviderDown(f"{_named(url)}: {str(error) or 'no answer in time'}") from error


async def post_form(client: Client, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Any:
    """What it answers. Raises ProviderDown, ProviderWrong with the `error` of RFC 6749, 5.2."""
    body = urlencode(form).encode()
    fields = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded", **headers}
    try:
        async with (
            asyncio.timeout(_SECONDS),
            client.post(url, body, schemes=_SCHEMES, headers=fields, patience=_PATIENCE) as answer,
        ):
            return _json(url, answer.status, await _body(answer))
    except (EgressError, TimeoutError) as error:
        raise ProviderDown(f"{_named(url)}: {str(error) or 'no answer in time'}") from error


async def exchanged(client: Client, method: OAuth2Auth, token_url: str, form: Mapping[str, str]) -> dict[str, Any]:
    """The tokens for a code (RFC 6749, 4.1.3; with the verifier of RFC 7636). Raises ProviderDown, ProviderWrong."""
    secret = method.client_secret.get_secret_value() if method.client_secret is not None else ""
    client_id, headers = method.client_id or "", {}
    body = {"grant_type": "authorization_code", **form}
    # GitHub documents its credentials in the form alone.
    if method.token_auth == "client_secret_basic" and method.provider != "github":  # noqa: S105 - a method's name
        # Each half is form-encoded before they are joined (RFC 6749, 2.3.1).
        both = f"{quote(client_id, safe='')}:{quote(secret, safe='')}".encode()
        headers["Authorization"] = "Basic " + base64.b64encode(both).decode()
    else:
        body["client_id"] = client_id
        if method.token_auth != "none":  # noqa: S105 - a method's name
            body["client_secret"] = secret
    tokens = await post_form(client, token_url, body, headers)
    if not isinstance(tokens, dict) or tokens.get("error"):
        named = tokens.get("error") if isinstance(tokens, dict) else type(tokens).__name__
        raise ProviderWrong(f"the code was not taken: {str(named)[:100]}")
    if str(tokens.get("token_type", "")).lower() != "bearer" or not isinstance(tokens.get("access_token"), str):
        raise ProviderWrong("the answer to the code has no bearer token")
    return tokens


async def _body(answer: Answer) -> bytes:
    seen = bytearray()
    while data := await answer.read():
        seen += data
        if len(seen) > _MAX_BYTES:
            raise ProviderWrong(f"{answer.place.host} answered with more than {_MAX_BYTES} bytes")
    return bytes(seen)


def _json(url: str, status: int, body: bytes) -> Any:
    if status >= _SERVER_ERRORS:
        raise ProviderDown(f"{_named(url)} answered {status}")
    try:
        found = orjson.loads(body)
    except ValueError as error:
        raise ProviderWrong(f"{_named(url)} answered {status}, and no JSON") from error
    if status != _OK:
        named = found.get("error") if isinstance(found, dict) else None
        raise ProviderWrong(f"{_named(url)} answered {status}: {str(named)[:100]}")
    return found


def _named(url: str) -> str:
    """An address without its query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"

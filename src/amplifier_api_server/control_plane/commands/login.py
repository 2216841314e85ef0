"""`amplifier-api-server login`, `logout`, `whoami` and `token`: the client's side of a device login (RFC 8628).

Opens no browser and listens on no port: it prints an address and a code, and asks until somebody has decided. Refuses plain
http to anything but this machine, and shows nothing of a server's that could drive the terminal.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx2

from amplifier_api_server import __version__
from amplifier_api_server.control_plane.clock import SystemClock, rfc3339
from amplifier_api_server.control_plane.commands import credentials_file
from amplifier_api_server.control_plane.commands.credentials_file import Kept
from amplifier_api_server.control_plane.commands.output import console, show_json
from amplifier_api_server.control_plane.login_settings import is_loopback
from amplifier_api_server.tenants.errors import DomainError, Forbidden, Invalid, Unauthenticated, Unavailable

_GRANT_TYPE = "urn:ietf:params:oauth:grant-type:device_code"
_TIMEOUT_SECONDS = 15.0
_MAX_BYTES = 1024 * 1024
_MIN_INTERVAL_SECONDS = 1.0
_MAX_INTERVAL_SECONDS = 60.0
_MAX_WAIT_SECONDS = 3600.0
_SLOWER_SECONDS = 5.0  # RFC 8628, 3.5
_OK, _NO_CONTENT, _BAD_REQUEST, _UNAUTHENTICATED, _FORBIDDEN, _NOT_FOUND, _REFUSED = 200, 204, 400, 401, 403, 404, 429


def server_of(given: str | None) -> str:
    """The server's origin; the only one that a key is kept of, if none is given. Raises Invalid."""
    if given is None:
        known = list(credentials_file.read(credentials_file.path_of(os.environ)))
        if not known:
            raise Invalid("nobody is logged in here; `amplifier-api-server login --server ADDRESS` does that")
        if len(known) > 1:
            raise Invalid(f"--server: which of {', '.join(known)}?")
        return known[0]
    try:
        parts = urlsplit(given if "://" in given else f"https://{given}")
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise Invalid(f"--server: {given!r} is not an address: {error}") from error
    if parts.scheme not in ("https", "http") or not host or "@" in parts.netloc or parts.path.strip("/") or parts.query:
        raise Invalid(f"--server: {given!r} should be an address such as https://api.example.com")
    if parts.scheme == "http" and not is_loopback(host):
        raise Invalid(f"--server: {given!r} should begin with https://: what goes there by http can be read on its way")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def login(server: str | None, name: str | None, *, as_json: bool) -> None:
    """Get a key by way of somebody's browser, and keep it. Raises Invalid, Forbidden, Unavailable."""
    if server is None:
        raise Invalid("--server: which server? such as https://api.example.com")
    origin = server_of(server)
    path = credentials_file.path_of(os.environ)
    kept = credentials_file.read(path)  # before anybody is asked for anything
    begun = _asked(origin, "POST", "/auth/device/code", form={"client_name": name or _own_name()})
    out = console()
    if not as_json:
        out.print(f"Open {_plain(begun['verification_uri_complete'])}", markup=False, soft_wrap=True)
        out.print(f"and check that it shows this code: {_plain(begun['user_code'])}", markup=False)
    else:
        show_json({name: begun[name] for name in ("verification_uri", "verification_uri_complete", "user_code")})
    got = _polled(origin, begun)
    expires_in = got.get("expires_in")
    expires_at = (
        rfc3339(SystemClock().now().replace(microsecond=0) + timedelta(seconds=int(expires_in)))
        if isinstance(expires_in, int)
        else None
    )
    new = Kept(str(got["access_token"]), str(got["key_id"]), str(got["tenant_id"]), bool(got["is_new"]), expires_at)
    credentials_file.write(path, {**kept, origin: new})
    if as_json:
        show_json(_told(origin, new))
    else:
        until = f" It works until {expires_at}." if expires_at else ""
        out.print(f"Logged in at {origin}.{until} The key is in {path}", markup=False, soft_wrap=True)
        out.print("`amplifier-api-server token` prints it, for curl and other clients.", markup=False, soft_wrap=True)


def logout(server: str | None) -> None:
    """Forget the key; end it too, where `login` had it made. Raises Invalid, Unavailable."""
    origin, path = server_of(server), credentials_file.path_of(os.environ)
    kept = credentials_file.read(path)
    mine = kept.pop(origin, None)
    if mine is None:
        raise Invalid(f"nobody is logged in at {origin}")
    left = f"The key {mine.key_id} was yours before and works still."
    if mine.is_new:
        left = _ended(origin, mine)
    credentials_file.write(path, kept)
    console().print(f"Logged out of {origin}. {left}", markup=False, soft_wrap=True)


def token(server: str | None) -> None:
    """Print the key alone, for other programs. Raises Invalid."""
    sys.stdout.write(f"{_kept(server)[1].api_key}\n")


def _kept(server: str | None) -> tuple[str, Kept]:
    """A server, and its key. Raises Invalid."""
    origin = server_of(server)
    mine = credentials_file.read(credentials_file.path_of(os.environ)).get(origin)
    if mine is None:
        raise Invalid(f"nobody is logged in at {origin}; run `amplifier-api-server login --server {origin}`")
    return origin, mine


def whoami(server: str | None, *, as_json: bool) -> None:
    """What the server says of the key that is kept. Raises Invalid, Unauthenticated, Unavailable."""
    origin, mine = _kept(server)
    found = _asked(origin, "GET", "/v1/me", key=mine.api_key)
    if as_json:
        show_json({"server": origin, **found})
        return
    for field, value in _flat(origin, found):
        console().print(f"{field}: {_plain(value)}", markup=False, soft_wrap=True)


def _flat(origin: str, found: dict[str, Any]) -> list[tuple[str, Any]]:
    """What a person wants to read of GET /v1/me."""
    tenant, member = found.get("tenant") or {}, found.get("member") or {}
    told = [
        ("server", origin),
        ("tenant", f"{tenant['name']} ({tenant['id']})" if tenant else None),
        ("member", f"{member['name']} ({member['id']})" if member else None),
        *((field, found.get(field)) for field in ("role", "tier", "credential_id", "expires_at")),
    ]
    return [(field, value) for field, value in told if value]


def _polled(origin: str, begun: dict[str, Any]) -> dict[str, Any]:
    """What the device gets, once somebody has decided."""
    interval = min(max(float(begun.get("interval", 5)), _MIN_INTERVAL_SECONDS), _MAX_INTERVAL_SECONDS)
    until = time.monotonic() + min(float(begun["expires_in"]), _MAX_WAIT_SECONDS)
    form = {"grant_type": _GRANT_TYPE, "device_code": str(begun["device_code"])}
    while time.monotonic() < until:
        time.sleep(interval)
        try:
            return _asked(origin, "POST", "/auth/device/token", form=form)
        except _Refusal as error:
            if error.word == "slow_down":
                interval = min(interval + _SLOWER_SECONDS, _MAX_INTERVAL_SECONDS)
            elif error.word != "authorization_pending":
                raise Forbidden(f"not logged in: {error.detail}") from error
        except Unavailable:
            interval = min(interval * 2, _MAX_INTERVAL_SECONDS)  # RFC 8628, 3.5: back off where nothing answers
    raise Forbidden("not logged in: nobody decided in time")


def _ended(origin: str, mine: Kept) -> str:
    """Revoke the key; in words what became of it."""
    try:
        _asked(origin, "DELETE", f"/v1/keys/{mine.key_id}", key=mine.api_key)
    except Unauthenticated:
        return f"The key {mine.key_id} worked no more."
    except Forbidden:
        return f"The key {mine.key_id} works still: your role may not revoke keys; ask an admin to."
    except _Refusal as error:
        return f"The key {mine.key_id} works still: {error.detail}"
    return f"The key {mine.key_id} is revoked."


class _Refusal(DomainError):
    """An answer that is no success; `word` is the `error` of RFC 6749, or the problem's code."""

    def __init__(self, word: str, detail: str) -> None:
        super().__init__(detail)
        self.word = word


def _asked(
    origin: str, method: str, path: str, *, form: dict[str, str] | None = None, key: str | None = None
) -> dict[str, Any]:
    """One request. Raises Unavailable, Unauthenticated, Forbidden, _Refusal."""
    headers = {"Accept": "application/json", "User-Agent": f"amplifier-api-server/{__version__}"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    # To this machine a proxy from the environment is no way.
    by_environment = not is_loopback(urlsplit(origin).hostname or "")
    seen = bytearray()
    try:
        with (
            httpx2.Client(timeout=_TIMEOUT_SECONDS, trust_env=by_environment) as client,
            client.stream(method, origin + path, data=form, headers=headers) as answer,
        ):
            for chunk in answer.iter_bytes():
                seen += chunk
                if len(seen) > _MAX_BYTES:
                    raise Unavailable(f"{origin} answers with too much; is it an Amplifier API server?")
            status = answer.status_code
            found = {} if status == _NO_CONTENT else answer_of(bytes(seen))
    except (httpx2.HTTPError, OSError, ValueError) as error:
        raise Unavailable(f"{origin} can't be asked: {_plain(error) or type(error).__name__}") from error
    if status in (_OK, _NO_CONTENT):
        return found
    detail = _plain(found.get("detail") or f"{origin} answered {status}")
    if status == _UNAUTHENTICATED:
        raise Unauthenticated(detail)
    if status == _FORBIDDEN:
        raise Forbidden(detail)
    if status == _REFUSED or status > 499:  # noqa: PLR2004 - a server's own troubles
        raise Unavailable(detail)
    raise _Refusal(str(found.get("error") or found.get("code") or status), detail)


def answer_of(raw: bytes) -> dict[str, Any]:
    """A JSON object. Raises ValueError."""
    import orjson

    found = orjson.loads(raw)
    if not isinstance(found, dict):
        raise ValueError("the answer is no object")  # noqa: TRY004 - it is the other side's, not a caller's type
    return found


def _plain(text: object) -> str:
    """Without what a terminal would act upon."""
    return "".join(char for char in str(text)[:1000] if char.isprintable())


def _own_name() -> str:
    return _plain(f"{os.environ.get('USER') or 'somebody'} at {socket.gethostname() or 'a machine'}")[:100]


def _told(origin: str, kept: Kept) -> dict[str, Any]:
    return {
        "server": origin,
        "key_id": kept.key_id,
        "tenant_id": kept.tenant_id,
        "expires_at": kept.expires_at,
    }

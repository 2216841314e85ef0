"""The `auth.login` section: browsers' sessions, and where browsers find this server."""

from __future__ import annotations

from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

from pydantic import field_validator, model_validator

from amplifier_api_server.control_plane.sections import Duration, Section

_SHORTEST: Final = timedelta(minutes=5)  # when a login was used is written down about twice a minute
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """Whether a host's name is this machine's own, where plain http is nobody else's to read."""
    return host.lower() in _LOOPBACK


class LoginTimes(Section):
    """Of logins in a browser, and of the keys that devices get by one."""

    public_url: str | None = None  # https://api.example.com, as browsers see it; None: logins from this machine alone
    idle_timeout: Duration = timedelta(hours=12)  # a login that is not used ends
    max_duration: Duration = timedelta(days=7)  # every login ends
    device_key_lifetime: Duration = timedelta(days=90)  # of the API key that `amplifier-api-server login` gets

    @field_validator("public_url")
    @classmethod
    def _is_an_origin(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname or "", parts.port
        except ValueError as error:
            raise ValueError(f"{value!r} is not an address: {error}") from error
        is_bare = bool(host) and "@" not in parts.netloc and parts.path in ("", "/") and not parts.query
        if not is_bare or parts.fragment or parts.scheme not in ("https", "http"):
            raise ValueError(f"{value!r} should be an address such as https://api.example.com, without a path")
        if parts.scheme == "http" and not is_loopback(host):
            raise ValueError(f"{value!r} should begin with https://: a login's cookie is sent to no other place")
        return f"{parts.scheme}://{parts.netloc.lower()}"

    @model_validator(mode="after")
    def _idle_is_within(self) -> LoginTimes:
        if not _SHORTEST <= self.idle_timeout <= self.max_duration:
            raise ValueError("idle_timeout should be from 5m to max_duration")
        if self.device_key_lifetime < _SHORTEST:
            raise ValueError("device_key_lifetime should be at least 5m")
        return self

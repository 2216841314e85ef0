"""The providers that people log in by, one for each `oauth2` method. Owns what of their troubles a person is told."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

import structlog

from amplifier_api_server.control_plane.auth_settings import OAuth2Auth
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.egress.addresses import HostRules
from amplifier_api_server.control_plane.egress.certificates import context_of
from amplifier_api_server.control_plane.egress.client import Client
from amplifier_api_server.control_plane.logins.begun import Begun
from amplifier_api_server.control_plane.logins.exchanges import ProviderDown
from amplifier_api_server.control_plane.logins.github import GitHub
from amplifier_api_server.control_plane.logins.oidc import OpenId
from amplifier_api_server.control_plane.logins.profiles import Answered, Profile, Provider, ProviderWrong, failed
from amplifier_api_server.control_plane.logins.provider_places import ProviderPlaces
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import NotFound, Unavailable

log = structlog.get_logger(__name__)

_RETRY_SECONDS: Final = 10.0


class Providers:
    """All that are configured whole. `close` at the end."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        auth = settings.auth
        rules = HostRules(private=auth.named_hosts)
        self._client = Client(rules, lambda: context_of(auth.ca_file))
        self._places = ProviderPlaces()
        self.methods = {one.name: one for one in auth.logins if one.is_complete}
        for one in auth.logins:
            if not one.is_complete:
                lacks = "client_secret" if one.client_id else "client_id"
                log.warning("nobody can log in by a method", method=one.name, lacks=lacks)
        self._providers: dict[str, Provider] = {
            name: GitHub(method, self._client)
            if method.provider == "github"
            else OpenId(method, self._client, clock, private_hosts=auth.named_hosts)
            for name, method in self.methods.items()
        }

    def method(self, name: str) -> OAuth2Auth:
        """Raises NotFound (`unknown_login_method`)."""
        found = self.methods.get(name)
        if found is None:
            raise NotFound(
                "nobody logs in by this here; GET /auth/methods lists the ways that there are",
                code="unknown_login_method",
            )
        return found

    async def authorize_url(self, begun: Begun, redirect_uri: str) -> str:
        """Where the browser goes. Raises Unavailable (`login_provider_unavailable`), Forbidden (`login_failed`)."""
        try:
            return await self._providers[begun.provider].authorize_url(begun, redirect_uri)
        except ProviderDown as error:
            raise self._down(begun.provider, error) from error
        except ProviderWrong as error:
            log.warning("a login failed", provider=begun.provider, why=str(error))
            raise failed() from error

    async def profile(self, answered: Answered, begun: Begun, redirect_uri: str) -> Profile:
        """Who logged in. Raises the same. The caller holds a place (`place`)."""
        try:
            return await self._providers[begun.provider].profile(answered, begun, redirect_uri)
        except ProviderDown as error:
            raise self._down(begun.provider, error) from error
        except (ProviderWrong, ValueError) as error:
            log.warning("a login failed", provider=begun.provider, why=str(error))
            raise failed() from error

    def place(self, provider: str, network: str) -> AbstractContextManager[None]:
        """A place among those who wait for a provider. Raises Unavailable (`busy`)."""
        return self._places.taken(provider, network)

    async def close(self) -> None:
        for one in self._providers.values():
            await one.close()

    def _down(self, provider: str, error: ProviderDown) -> Unavailable:
        log.warning("a login provider does not answer", provider=provider, why=str(error))
        return Unavailable(
            f"{self.methods[provider].label or provider} does not answer now; try again",
            code="login_provider_unavailable",
            retry_after_seconds=_RETRY_SECONDS,
        )

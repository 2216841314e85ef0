"""Logging in by GitHub (docs.github.com, "Authorizing OAuth apps"): OAuth 2.0 without ID tokens, so its API says who it was.

A person is known by the numeric id of their account: names there change hands. Their e-mail address is the primary one that
GitHub has verified, or none.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

from amplifier_api_server.control_plane.auth_settings import OAuth2Auth
from amplifier_api_server.control_plane.egress.client import Client
from amplifier_api_server.control_plane.logins.begun import Begun
from amplifier_api_server.control_plane.logins.exchanges import exchanged, get_json
from amplifier_api_server.control_plane.logins.profiles import (
    Answered,
    Profile,
    ProviderWrong,
    email_of,
    first_text,
)

_API: Final = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}


class GitHub:
    """GitHub, or a GitHub Enterprise Server."""

    def __init__(self, method: OAuth2Auth, client: Client) -> None:
        self._method = method
        self._client = client

    async def authorize_url(self, begun: Begun, redirect_uri: str) -> str:
        query = {
            "client_id": self._method.client_id or "",
            "redirect_uri": redirect_uri,
            "scope": " ".join(self._method.wanted_scopes),
            "state": begun.state,
            "code_challenge": begun.challenge,
            "code_challenge_method": "S256",
        }
        return f"{self._method.authorize_url}?{urlencode(query)}"

    async def profile(self, answered: Answered, begun: Begun, redirect_uri: str) -> Profile:
        form = {"code": answered.code, "redirect_uri": redirect_uri, "code_verifier": begun.verifier}
        tokens = await exchanged(self._client, self._method, self._method.token_url or "", form)
        headers = {**_API, "Authorization": f"Bearer {tokens['access_token']}"}
        user = await get_json(self._client, f"{self._method.api_url}/user", headers)
        account = user.get("id") if isinstance(user, dict) else None
        if not isinstance(account, int) or isinstance(account, bool) or account <= 0:
            raise ProviderWrong("the account has no numeric id")
        name = first_text(user, "name", "login") or f"GitHub account {account}"
        return Profile(str(account), name, await self._email(headers))

    async def close(self) -> None:
        """There is nothing that is kept."""

    async def _email(self, headers: dict[str, str]) -> str | None:
        """The verified primary address; None where the person gave no leave to read it (scope user:email)."""
        try:
            listed: Any = await get_json(self._client, f"{self._method.api_url}/user/emails", headers)
        except ProviderWrong:
            return None
        for one in listed if isinstance(listed, list) else ():
            if isinstance(one, dict) and one.get("primary") is True and one.get("verified") is True:
                return email_of(one.get("email"))
        return None

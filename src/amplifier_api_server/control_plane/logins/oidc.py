"""Logging in by an OpenID Connect provider: the code flow with PKCE, and what its ID token proves.

Owns the provider's discovery document, which is believed for `_DOCUMENT_SECONDS`, and after that for as long as no newer one
is to be had. It is asked for by one request for all who wait, and not again within the cooldown (`auth.fetching`). Refuses a
document of another issuer, endpoints by plain http to elsewhere, and every answer that is not bound to the login that asked
for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import structlog

from amplifier_api_server.control_plane.auth.fetching import Fetching
from amplifier_api_server.control_plane.auth.issuers import IssuerKeys
from amplifier_api_server.control_plane.auth_settings import BearerAuth, OAuth2Auth, check_url
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.egress.client import Client
from amplifier_api_server.control_plane.logins import id_tokens
from amplifier_api_server.control_plane.logins.begun import Begun
from amplifier_api_server.control_plane.logins.exchanges import ProviderDown, exchanged, get_json
from amplifier_api_server.control_plane.logins.profiles import Answered, Profile, ProviderWrong, email_of, first_text

log = structlog.get_logger(__name__)

_DOCUMENT_SECONDS: Final = 3600.0


class OpenId:
    """One issuer, as one method names it. `close` at the end."""

    def __init__(
        self, method: OAuth2Auth, client: Client, clock: Clock, *, private_hosts: tuple[str, ...] = ()
    ) -> None:
        self._method = method
        self._issuer = method.issuer or ""
        self._client = client
        self._clock = clock
        self._private_hosts = private_hosts
        self._document: Mapping[str, Any] = {}
        self._fetching = Fetching(self._read_document, clock)
        self._failure: ProviderDown | ProviderWrong | None = None
        self._keys: IssuerKeys | None = None
        self._keys_url = ""

    async def authorize_url(self, begun: Begun, redirect_uri: str) -> str:
        document = await self._discovered()
        endpoint = self._method.authorize_url or self._endpoint(document, "authorization_endpoint")
        query = {
            "response_type": "code",
            "client_id": self._method.client_id or "",
            "redirect_uri": redirect_uri,
            "scope": " ".join(self._method.wanted_scopes),
            "state": begun.state,
            "nonce": begun.nonce,
            "code_challenge": begun.challenge,
            "code_challenge_method": "S256",
        }
        return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(query)}"

    async def profile(self, answered: Answered, begun: Begun, redirect_uri: str) -> Profile:
        document = await self._discovered()
        self._require_issuer(document, answered)
        token_url = self._method.token_url or self._endpoint(document, "token_endpoint")
        form = {"code": answered.code, "redirect_uri": redirect_uri, "code_verifier": begun.verifier}
        tokens = await exchanged(self._client, self._method, token_url, form)
        text = tokens.get("id_token")
        if not isinstance(text, str):
            raise ProviderWrong("the answer to the code has no ID token")
        claims, algorithm = await id_tokens.verified(text, (await self._issuer_keys(document)).fitting)
        id_tokens.require(
            claims,
            issuer=self._issuer,
            client_id=self._method.client_id or "",
            nonce=begun.nonce,
            now=self._clock.now().timestamp(),
        )
        id_tokens.require_access_token(claims, algorithm, tokens["access_token"])
        return await self._told(document, claims, tokens["access_token"])

    async def close(self) -> None:
        await self._fetching.close()
        if self._keys is not None:
            await self._keys.close()

    def _require_issuer(self, document: Mapping[str, Any], answered: Answered) -> None:
        """Whose answer it is (RFC 9207, 2.4): another provider's code must not come in by this one's door."""
        promised = document.get("authorization_response_iss_parameter_supported") is True
        if (answered.issuer is None and promised) or answered.issuer not in (None, self._issuer):
            raise ProviderWrong(f"the redirect is of the issuer {str(answered.issuer)[:200]!r}")

    async def _told(self, document: Mapping[str, Any], claims: Mapping[str, Any], access_token: str) -> Profile:
        """The person. What the ID token doesn't say, the provider's UserInfo may (OpenID Connect Core, 5.3)."""
        subject = str(claims["sub"])
        said = of_email = claims
        is_whole = "email" in claims and first_text(claims, "name", "preferred_username")
        if not is_whole and document.get("userinfo_endpoint"):
            url = self._endpoint(document, "userinfo_endpoint")
            more = await get_json(self._client, url, {"Authorization": f"Bearer {access_token}"})
            if not isinstance(more, dict) or more.get("sub") != subject:
                raise ProviderWrong("the UserInfo is of somebody else (sub)")
            said = {**more, **claims}
            of_email = claims if "email" in claims else more  # an address and its verification belong together
        email = email_of(of_email.get("email")) if of_email.get("email_verified") is True else None
        name = first_text(said, "name", "preferred_username", "nickname", "given_name") or email or subject[:100]
        return Profile(subject, name, email)

    async def _discovered(self) -> Mapping[str, Any]:
        """The discovery document. Raises ProviderDown, ProviderWrong."""
        if not self._document:
            await self._fetching.finished()
        elif self._fetching.age_seconds >= _DOCUMENT_SECONDS:
            self._fetching.begin()  # beside the logins, which go on with what is known
        if not self._document:
            raise self._failed()
        return self._document

    def _failed(self) -> ProviderDown | ProviderWrong:
        """Why there is no document, as whoever asked last was told."""
        why = self._failure or ProviderDown(f"{self._issuer} was not asked in time")
        return type(why)(str(why))

    async def _read_document(self) -> bool:
        try:
            found = await get_json(self._client, self._issuer.rstrip("/") + "/.well-known/openid-configuration")
            if not isinstance(found, dict) or found.get("issuer") != self._issuer:
                # OpenID Connect Discovery, 4.3: another issuer's document proves nothing of this one.
                named = found.get("issuer") if isinstance(found, dict) else None
                raise ProviderWrong(f"its discovery document is of the issuer {str(named)[:200]!r}")
        except (ProviderDown, ProviderWrong) as error:
            self._failure = error
            log.warning("a login provider's document can't be read", provider=self._method.name, why=str(error))
            return False
        except Exception as error:
            self._failure = ProviderDown(f"its discovery document can't be read: {type(error).__name__}")
            log.exception("a login provider's document can't be read", provider=self._method.name)
            return False
        self._document = found
        return True

    def _endpoint(self, document: Mapping[str, Any], name: str) -> str:
        url = document.get(name)
        if not isinstance(url, str):
            raise ProviderWrong(f"its discovery document has no {name}")
        try:
            check_url(url.partition("?")[0], name, self._private_hosts)
        except ValueError as error:
            raise ProviderWrong(str(error)) from error
        return url

    async def _issuer_keys(self, document: Mapping[str, Any]) -> IssuerKeys:
        url = self._endpoint(document, "jwks_uri")
        if self._keys is None or url != self._keys_url:
            old, self._keys_url = self._keys, url
            # The issuer's keys are kept as those of bearer tokens are; nothing but keys is taken from this method.
            method = BearerAuth(issuer=self._issuer, audience=(self._method.client_id or "",), jwks_url=url)
            self._keys = IssuerKeys(method, self._client, self._clock, private_hosts=self._private_hosts)
            if old is not None:
                await old.close()
        return self._keys

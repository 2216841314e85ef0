"""The keys of one issuer: fetched, kept, and fetched again when they may have changed.

Owns when the issuer is asked: its keys are believed for `jwks_ttl`; then they are fetched anew beside the requests, and go on
being good for `jwks_stale` while the issuer doesn't answer. A key that is not among them is asked for at once, but not again
within the cooldown (`fetching`): tokens that anybody can invent make no storm. Refuses what a token says about where keys are
(`jku`, `x5u`, `jwk`). Invariant: each fetch ends within its time, and within its size.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import orjson
import structlog

from amplifier_api_server.control_plane.auth.fetching import COOLDOWN_SECONDS, Fetching
from amplifier_api_server.control_plane.auth.key_sets import IssuerKey, Unusable, keys_in
from amplifier_api_server.control_plane.auth_settings import BearerAuth, check_url
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.egress.addresses import EgressError
from amplifier_api_server.control_plane.egress.client import Client, Patience
from amplifier_api_server.tenants.errors import Unavailable

log = structlog.get_logger(__name__)

_FETCH_SECONDS: Final = 10.0  # discovery and keys together
_MAX_DOCUMENT_BYTES: Final = 512 * 1024
_PATIENCE: Final = Patience(connect_seconds=5.0, idle_seconds=5.0, max_redirects=2)
_OK: Final = 200


class WrongDocument(Exception):
    """What the issuer answered is not what it should be; the message says why, for the operator."""


class IssuerKeys:
    """One an issuer. `close` at the end."""

    def __init__(
        self, method: BearerAuth, client: Client, clock: Clock, *, private_hosts: tuple[str, ...] = ()
    ) -> None:
        self._method = method
        self._client = client
        self._private_hosts = private_hosts
        self._keys: tuple[IssuerKey, ...] = ()
        self._thumbprints: frozenset[str] = frozenset()
        self._fetching = Fetching(self._fetch, clock)

    def holds(self, thumbprint: str) -> bool:
        """Whether the key is the issuer's still, as far as is known. Looks for news beside, when it is time."""
        self._renew()
        return thumbprint in self._thumbprints and not self._is_stale()

    async def fitting(self, kid: str | None, algorithm: str) -> list[IssuerKey]:
        """The keys that may have signed such a token; none where the issuer has no such key. Raises Unavailable."""
        if self._is_stale():
            await self._fetching.finished()
            if self._is_stale():
                raise Unavailable(
                    "the issuer of the token does not answer, so that nobody can tell whether it is genuine; try again",
                    code="issuer_unavailable",
                    retry_after_seconds=COOLDOWN_SECONDS,
                )
        else:
            self._renew()
        found = self._named(kid, algorithm)
        if not found:
            await self._fetching.finished()
            found = self._named(kid, algorithm)
        return found

    async def close(self) -> None:
        await self._fetching.close()

    def _renew(self) -> None:
        """Look for news beside the requests, when it is time."""
        if self._fetching.age_seconds >= self._method.jwks_ttl.total_seconds():
            self._fetching.begin()

    def _named(self, kid: str | None, algorithm: str) -> list[IssuerKey]:
        """A token that names no key may be signed by the only one that there is; more are not tried."""
        fitting = [one for one in self._keys if algorithm in one.algorithms and (kid is None or one.kid == kid)]
        return fitting if kid is not None or len(fitting) == 1 else []

    def _is_stale(self) -> bool:
        return self._fetching.age_seconds >= self._method.jwks_stale.total_seconds()

    async def _fetch(self) -> bool:
        """Take the issuer's keys; whether there were any. What goes wrong is logged, and the keys stay as they were."""
        try:
            async with asyncio.timeout(_FETCH_SECONDS):
                keys = keys_in(await self._document(await self._jwks_url()), self._method.issuer)
            if not keys:
                raise WrongDocument("none of its keys can be used")
        except (EgressError, WrongDocument, Unusable, ValueError, TimeoutError) as error:
            kept = len(self._keys) if not self._is_stale() else 0
            why = str(error) or type(error).__name__
            log.warning("an issuer's keys can't be fetched", issuer=self._method.issuer, why=why, keys_kept=kept)
        except Exception:
            log.exception("an issuer's keys can't be fetched", issuer=self._method.issuer)
        else:
            self._keys = tuple(keys)
            self._thumbprints = frozenset(one.thumbprint for one in keys)
            log.info("an issuer's keys were fetched", issuer=self._method.issuer, keys=len(keys))
            return True
        return False

    async def _jwks_url(self) -> str:
        """Where the keys are: as the operator says, or the issuer's discovery document."""
        if self._method.jwks_url is not None:
            return self._method.jwks_url
        document = await self._document(self._method.issuer.rstrip("/") + "/.well-known/openid-configuration")
        if not isinstance(document, dict) or document.get("issuer") != self._method.issuer:
            # OpenID Connect Discovery, 4.3: another issuer's document proves nothing of this one.
            named = document.get("issuer") if isinstance(document, dict) else None
            raise WrongDocument(f"its discovery document is of the issuer {str(named)[:200]!r}")
        url = document.get("jwks_uri")
        if not isinstance(url, str):
            raise WrongDocument("its discovery document has no jwks_uri")
        check_url(url, "jwks_uri", self._private_hosts)
        return url

    async def _document(self, url: str) -> Any:
        """JSON from there. Raises EgressError, WrongDocument."""
        seen = bytearray()
        headers = {"Accept": "application/json"}
        async with self._client.get(url, schemes=("https", "http"), headers=headers, patience=_PATIENCE) as answer:
            if answer.status != _OK:
                raise WrongDocument(f"{url} answered {answer.status}")
            while data := await answer.read():
                seen += data
                if len(seen) > _MAX_DOCUMENT_BYTES:
                    raise WrongDocument(f"{url} has more than {_MAX_DOCUMENT_BYTES} bytes")
        try:
            return orjson.loads(seen)
        except ValueError as error:
            raise WrongDocument(f"{url} is no JSON") from error

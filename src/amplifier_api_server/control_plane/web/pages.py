"""Fetching one page of the public web for a tenant.

Owns the bounds of a fetch, and the codes of what is refused. Sends no cookie, no credential and no referrer, and keeps
nothing. Invariant: what comes back is text of at most so many bytes, from an address that the operator's rules and the
tenant's lists allow, at each redirect anew.
"""

from __future__ import annotations

import asyncio

import structlog

from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.egress.addresses import (
    EgressError,
    HostRules,
    NotAllowed,
    Resolve,
    TooSlow,
    system_resolve,
)
from amplifier_api_server.control_plane.egress.certificates import context_of
from amplifier_api_server.control_plane.egress.client import Answer, Client, Patience
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.shares import Shares
from amplifier_api_server.control_plane.web.policy import WebPolicy, policy_in
from amplifier_api_server.control_plane.web.text import Inflater, Unreadable, decoded, is_text
from amplifier_api_server.runtime.protocol import Fetched
from amplifier_api_server.tenants.errors import Forbidden, Invalid, Unavailable
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.repository import tenants

log = structlog.get_logger(__name__)

_HEADERS = {
    "Accept": "text/html, text/markdown, text/plain, application/json, application/xml;q=0.9, */*;q=0.1",
    "Accept-Language": "en, *;q=0.5",
}
_FIRST_ERROR = 400
_LOOKS = 64  # chunks of compressed content that may add nothing


class Pages:
    """One for the process."""

    def __init__(self, settings: Settings, database: Database, *, resolve: Resolve = system_resolve) -> None:
        self._settings = settings.web
        self._database = database
        rules = HostRules(self._settings.allow, self._settings.deny, self._settings.private_hosts)
        self._client = Client(rules, lambda: context_of(settings.collections.ca_file), resolve=resolve)
        self._places = Shares(self._settings.max_concurrent)

    async def fetch(self, tenant_id: TenantId, url: str, max_bytes: int) -> Fetched:
        """The page at `url`, cut to `max_bytes`. Raises Forbidden (`web_disabled`, `web_not_allowed`), Invalid
        (`web_unsupported`), Unavailable (`web_unreachable`, `web_timeout`, `busy`).
        """
        if not self._settings.enabled:
            raise Forbidden("this server fetches no pages: its operator has switched that off", code="web_disabled")
        if not self._places.has_room(tenant_id):
            log.warning("all places for fetches are taken", tenant_id=tenant_id)
            raise Unavailable("too many pages are being fetched; try again", code="busy", retry_after_seconds=1)
        seconds = self._settings.timeout.total_seconds()
        try:
            with self._places.place(tenant_id):
                async with asyncio.timeout(seconds):
                    return await self._fetch(await self._policy(tenant_id), url, max_bytes)
        except TimeoutError as error:
            raise Unavailable(f"the page did not come within {seconds:.0f} s", code="web_timeout") from error
        except TooSlow as error:
            raise Unavailable(str(error), code="web_timeout") from error
        except NotAllowed as error:
            raise Forbidden(str(error), code="web_not_allowed") from error
        except EgressError as error:
            raise Unavailable(str(error), code="web_unreachable") from error
        except Unreadable as error:
            raise Invalid(f"the page can't be shown: {error}", code="web_unsupported") from error

    async def _policy(self, tenant_id: TenantId) -> WebPolicy:
        async with self._database.read() as db:
            tenant = await tenants.find(db, tenant_id)
        return policy_in(tenant.web) if tenant is not None else WebPolicy(allow=())

    async def _fetch(self, policy: WebPolicy, url: str, max_bytes: int) -> Fetched:
        patience = Patience(
            idle_seconds=self._settings.timeout.total_seconds(), max_redirects=self._settings.max_redirects
        )
        async with self._client.get(
            url, schemes=("https", "http"), headers=_HEADERS, patience=patience, check=policy.check
        ) as answer:
            kind = answer.header("content-type")[:200]
            if not is_text(kind):
                if answer.status < _FIRST_ERROR:
                    raise Unreadable(f"it is {kind.partition(';')[0]!r}; only text, JSON, XML and scripts are")
                return Fetched(url=answer.place.url, status=answer.status, content_type=kind, content="")
            most = min(max_bytes, self._settings.max_response)
            raw = await _body_of(answer, most + 1)
        is_cut = len(raw) > most
        content = await asyncio.to_thread(decoded, raw[:most], kind, is_cut=is_cut)
        return Fetched(url=answer.place.url, status=answer.status, content_type=kind, content=content, is_cut=is_cut)


async def _body_of(answer: Answer, most: int) -> bytes:
    """As much of the body as is wanted; the rest is not read. Raises EgressError, Unreadable."""
    inflater = Inflater(answer.header("content-encoding"))
    raw = bytearray()
    fruitless = 0
    while len(raw) < most and (chunk := await answer.read()):
        more = inflater.more(chunk, most - len(raw))
        raw += more
        fruitless = 0 if more else fruitless + 1
        if fruitless > _LOOKS:
            raise Unreadable("its compressed content holds nothing")
    return bytes(raw)

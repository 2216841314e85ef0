"""A tenant's own keys for model providers.

Owns setting, hinting at and removing them, and giving them to the model gateway. Invariants: a key is stored encrypted,
for its tenant and provider, and leaves here only as a SecretStr to a call of that tenant to that provider; a key that
can't be decrypted refuses the call, it is never passed over for the operator's.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import structlog
from pydantic import SecretStr

from amplifier_api_server.control_plane.audit.recording import record
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.model_gateway.answers import Refusal, busy
from amplifier_api_server.control_plane.secrets import SealBroken, Vault
from amplifier_api_server.control_plane.settings import ModelProvider
from amplifier_api_server.tenants.errors import Conflict, Invalid, NotFound
from amplifier_api_server.tenants.ids import TenantId, new_provider_key_id
from amplifier_api_server.tenants.models import ProviderKey
from amplifier_api_server.tenants.repository import provider_keys

log = structlog.get_logger(__name__)

_CACHED_SECONDS = 5.0  # how late a change that another process made can be noticed; within this one it is at once
_MAX_CACHED = 4096
_READ_SECONDS = 10.0
_HINT_CHARS = 4
_CHECKED_ROWS = 10_000
_NAMED_ROWS = 50  # in one line of the log

OnChange = Callable[[TenantId, str], None]


class ProviderKeys:
    """The keys of all tenants. Also `model_gateway.providers.TenantKeys`."""

    def __init__(
        self,
        providers: Sequence[ModelProvider],
        database: Database,
        vault: Vault,
        clock: Clock,
        *,
        on_change: OnChange | None = None,
    ) -> None:
        self._providers = {provider.name: provider for provider in providers}
        self._database = database
        self._vault = vault
        self._clock = clock
        self._on_change = on_change
        self._cached: OrderedDict[tuple[TenantId, str], tuple[float, SecretStr | None]] = OrderedDict()
        self._changes = 0  # a read that began before a change is not kept

    # For the tenant.

    async def put(self, principal: Principal, provider: str, key: SecretStr) -> ProviderKey:
        """Set the tenant's key for a provider, in the place of the one that there is. Commits.

        Raises Invalid for a provider that there is not, Conflict (`tenant_keys_refused`) for one that takes none.
        """
        self._require_taken(provider)
        tenant_id = principal.tenant_id
        text = key.get_secret_value()
        row = ProviderKey(
            id=new_provider_key_id(),
            tenant_id=tenant_id,
            provider=provider,
            ciphertext=self._vault.seal(key, _owner(tenant_id, provider)),
            hint=text[-_HINT_CHARS:],
            created_at=self._clock.now(),
            created_by=principal.credential_id,
        )
        shown = row.model_copy()
        async with self._database.write() as db:
            await provider_keys.put(db, tenant_id, row)
            secret = {"api_key": (None, None), "hint": (None, row.hint)}
            await record(db, self._clock, principal, "setProviderKey", target=provider, changes=secret)
        self._changed(tenant_id, provider)
        log.info("provider_keys:set", tenant_id=tenant_id, provider=provider, created_by=principal.credential_id)
        return shown

    async def all_of(self, tenant_id: TenantId) -> Sequence[ProviderKey]:
        """The tenant's, by provider; those for a provider that is not configured any more too."""
        async with self._database.read() as db:
            return await provider_keys.all_of(db, tenant_id)

    async def find(self, tenant_id: TenantId, provider: str) -> ProviderKey:
        """The tenant's for one provider. Raises NotFound."""
        async with self._database.read() as db:
            row = await provider_keys.find(db, tenant_id, provider)
        if row is None:
            raise _nothing(provider)
        return row

    def taking(self) -> list[ModelProvider]:
        """The providers that tenants' own keys are taken for."""
        return [provider for provider in self._providers.values() if provider.tenant_keys != "refused"]

    async def remove(self, principal: Principal, provider: str) -> None:
        """Commits. Raises NotFound."""
        tenant_id = principal.tenant_id
        async with self._database.write() as db:
            was_there = await provider_keys.remove(db, tenant_id, provider)
            if was_there:
                await record(db, self._clock, principal, "deleteProviderKey", target=provider)
        self._changed(tenant_id, provider)
        if not was_there:
            raise _nothing(provider)
        log.info("provider_keys:removed", tenant_id=tenant_id, provider=provider)

    def forget_tenant(self, tenant_id: TenantId) -> None:
        """It is suspended or deleted."""
        for whose in [one for one in self._cached if one[0] == tenant_id]:
            self._changed(*whose)

    # For the model gateway.

    async def key_of(self, tenant_id: TenantId, provider: str) -> SecretStr | None:
        """The tenant's key for this provider, None where it has none. Raises Refusal (503) where it can't be decrypted."""
        found = self._cached.get((tenant_id, provider))
        if found is not None and time.monotonic() - found[0] < _CACHED_SECONDS:
            return found[1]
        changes = self._changes
        try:
            async with asyncio.timeout(_READ_SECONDS), self._database.read() as db:
                row = await provider_keys.find(db, tenant_id, provider)
        except TimeoutError as error:
            raise busy("the tenant's own key can't be read now") from error
        key = self._opened(row, tenant_id, provider) if row is not None else None
        if changes == self._changes:
            self._cached[tenant_id, provider] = time.monotonic(), key
            self._cached.move_to_end((tenant_id, provider))
            if len(self._cached) > _MAX_CACHED:
                self._cached.popitem(last=False)
        return key

    async def check(self) -> int:
        """How many stored keys can't be decrypted with the key that is set; told as one line for all of them.

        The server starts all the same: calls that need one of them are refused, its tenant sees which, and everybody else
        is served (docs/models.md).
        """
        async with self._database.read() as db:
            stored = await provider_keys.stored_of_all_tenants(db, _CHECKED_ROWS)
        unreadable = [f"{row.tenant_id}/{row.provider}" for row in stored if not self.is_readable(row)]
        if unreadable:
            log.error(
                "provider_keys:other_encryption_key",
                unreadable=len(unreadable),
                of=len(stored),
                keys=unreadable[:_NAMED_ROWS],
                advice="set secrets.encryption_key to the one they were stored with, or have these tenants set them again",
            )
        return len(unreadable)

    def is_readable(self, row: ProviderKey) -> bool:
        """Whether it was stored with the encryption key that is set now."""
        return self._vault.sealed_here(row.ciphertext)

    def _opened(self, row: ProviderKey, tenant_id: TenantId, provider: str) -> SecretStr:
        try:
            return self._vault.open(row.ciphertext, _owner(tenant_id, provider))
        except SealBroken as error:
            log.error("provider_keys:unreadable", tenant_id=tenant_id, provider=provider, why=str(error))
            detail = (
                f"your tenant's own key for the provider {provider} can't be decrypted by this server; "
                "set it again with POST /v1/provider-keys, or ask the operator"
            )
            raise Refusal(503, "provider_key_unreadable", detail) from error

    def _changed(self, tenant_id: TenantId, provider: str) -> None:
        self._changes += 1
        self._cached.pop((tenant_id, provider), None)
        if self._on_change is not None:
            self._on_change(tenant_id, provider)

    def _require_taken(self, provider: str) -> None:
        taking = sorted(one.name for one in self.taking())
        if provider in taking:
            return
        known = ", ".join(taking) or "none"
        if provider in self._providers:
            detail = f"the provider {provider} is asked with the operator's key alone; your own are taken for: {known}"
            raise Conflict(detail, code="tenant_keys_refused")
        message = f"there is no provider {provider!r}; your own keys are taken for: {known}"
        raise Invalid(f"provider: {message}", errors=[{"field": "provider", "message": message}])


def _nothing(provider: str) -> NotFound:
    return NotFound(f"there is no key for a provider {provider!r}", code="provider_key_not_found")


def _owner(tenant_id: TenantId, provider: str) -> tuple[str, ...]:
    return "provider_key", tenant_id, provider

"""Open streams by who reads them, so that a revoked key or a suspended tenant ends them at once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.tenants.ids import KeyId, TenantId


class OpenStreams:
    """The streams of this process."""

    def __init__(self) -> None:
        self._by_key: defaultdict[KeyId, set[asyncio.Event]] = defaultdict(set)
        self._by_tenant: defaultdict[TenantId, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def open(self, principal: Principal) -> Iterator[asyncio.Event]:
        """An event that is set when the principal may read no more."""
        ended = asyncio.Event()
        owners = (self._by_key, principal.key_id), (self._by_tenant, principal.tenant_id)
        for index, owner in owners:
            index[owner].add(ended)  # type: ignore[index]
        try:
            yield ended
        finally:
            for index, owner in owners:
                index[owner].discard(ended)  # type: ignore[index]
                if not index[owner]:  # type: ignore[index]
                    del index[owner]  # type: ignore[arg-type]

    def end_key(self, key_id: KeyId) -> None:
        for ended in list(self._by_key.get(key_id, ())):
            ended.set()

    def end_tenant(self, tenant_id: TenantId) -> None:
        for ended in list(self._by_tenant.get(tenant_id, ())):
            ended.set()

"""Open streams by who reads them, so that a revoked key or a suspended tenant ends them at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.tenants.ids import KeyId, TenantId

End = Callable[[], None]


class OpenStreams:
    """The streams of this process."""

    def __init__(self) -> None:
        self._by_key: defaultdict[KeyId, set[End]] = defaultdict(set)
        self._by_tenant: defaultdict[TenantId, set[End]] = defaultdict(set)

    @contextmanager
    def open(self, principal: Principal, end: End) -> Iterator[None]:
        """While the block runs, `end` is called once the principal may read no more."""
        owners = (self._by_key, principal.key_id), (self._by_tenant, principal.tenant_id)
        for index, owner in owners:
            index[owner].add(end)  # type: ignore[index]
        try:
            yield
        finally:
            for index, owner in owners:
                index[owner].discard(end)  # type: ignore[index]
                if not index[owner]:  # type: ignore[index]
                    del index[owner]  # type: ignore[arg-type]

    def end_key(self, key_id: KeyId) -> None:
        for end in list(self._by_key.get(key_id, ())):
            end()

    def end_tenant(self, tenant_id: TenantId) -> None:
        for end in list(self._by_tenant.get(tenant_id, ())):
            end()

"""Open streams by who reads them, so that a revoked key or a suspended tenant ends them at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.tenants.ids import CredentialId, TenantId

End = Callable[[], None]
Owner = TypeVar("Owner", CredentialId, TenantId)


class OpenStreams:
    """The streams of this process."""

    def __init__(self) -> None:
        self._by_credential: defaultdict[CredentialId, set[End]] = defaultdict(set)
        self._by_tenant: defaultdict[TenantId, set[End]] = defaultdict(set)

    def add(self, principal: Principal, end: End) -> None:
        """From now on, `end` is called once the principal may read no more."""
        self._by_credential[principal.credential_id].add(end)
        self._by_tenant[principal.tenant_id].add(end)

    def remove(self, principal: Principal, end: End) -> None:
        """The stream is over. Nothing to do for one that was never added."""
        _remove(self._by_credential, principal.credential_id, end)
        _remove(self._by_tenant, principal.tenant_id, end)

    def credential_ids(self) -> list[CredentialId]:
        """The credentials that have a stream open."""
        return list(self._by_credential)

    def end_credential(self, credential_id: CredentialId) -> None:
        for end in list(self._by_credential.get(credential_id, ())):
            end()

    def end_tenant(self, tenant_id: TenantId) -> None:
        for end in list(self._by_tenant.get(tenant_id, ())):
            end()


def _remove(index: defaultdict[Owner, set[End]], owner: Owner, end: End) -> None:
    ends = index.get(owner)
    if ends is not None:
        ends.discard(end)
        if not ends:
            del index[owner]

"""Open streams by who reads them, so that a revoked key, a removed member or a suspended tenant ends them at once.

A socket is one stream, whatever it follows. A tenant has a bounded number of them: connections are the whole server's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.tenants.errors import Refused
from amplifier_api_server.tenants.ids import CredentialId, MemberId, TenantId

End = Callable[[], None]
Owner = TypeVar("Owner", CredentialId, MemberId, TenantId)
Index = defaultdict[Owner, dict[End, Principal]]


class OpenStreams:
    """The streams of this process."""

    def __init__(self, most_per_tenant: int | None = None) -> None:
        self._most_per_tenant = most_per_tenant
        self._by_credential: Index[CredentialId] = defaultdict(dict)
        self._by_member: Index[MemberId] = defaultdict(dict)
        self._by_tenant: Index[TenantId] = defaultdict(dict)

    def require_room(self, principal: Principal) -> None:
        """Raise Refused (`too_many_streams`) where the tenant has as many open as it may. Call before anything is sent."""
        most = self._most_per_tenant
        if most is not None and not principal.is_operator and len(self._by_tenant.get(principal.tenant_id, ())) >= most:
            raise Refused(
                f"your tenant has {most} streams and sockets open, which is as many as it may; end one",
                code="too_many_streams",
                limit="max_streams_per_tenant",
                retry_after_seconds=1,
            )

    def add(self, principal: Principal, end: End) -> None:
        """From now on, `end` is called once the principal may read no more."""
        self._by_credential[principal.credential_id][end] = principal
        self._by_member[principal.member_id][end] = principal
        self._by_tenant[principal.tenant_id][end] = principal

    def remove(self, principal: Principal, end: End) -> None:
        """The stream is over. Nothing to do for one that was never added."""
        _remove(self._by_credential, principal.credential_id, end)
        _remove(self._by_member, principal.member_id, end)
        _remove(self._by_tenant, principal.tenant_id, end)

    def all(self) -> list[tuple[Principal, End]]:
        """Every stream that is open, with who opened it."""
        return [(principal, end) for ends in self._by_credential.values() for end, principal in ends.items()]

    def end_credential(self, credential_id: CredentialId) -> None:
        _end(self._by_credential, credential_id)

    def end_member(self, member_id: MemberId) -> None:
        _end(self._by_member, member_id)

    def end_tenant(self, tenant_id: TenantId) -> None:
        _end(self._by_tenant, tenant_id)


def _end(index: Index[Owner], owner: Owner) -> None:
    for end in list(index.get(owner, ())):
        end()


def _remove(index: Index[Owner], owner: Owner, end: End) -> None:
    ends = index.get(owner)
    if ends is not None:
        ends.pop(end, None)
        if not ends:
            del index[owner]

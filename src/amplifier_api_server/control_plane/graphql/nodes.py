"""Relay's global object identification: one thing, or several, by their ids alone.

Owns which field finds what has an id like that. Invariant: that field is what is asked, so that its permission, its limits
and its tenant hold.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import strawberry
from strawberry import ID

from amplifier_api_server.control_plane.graphql.context import Info
from amplifier_api_server.control_plane.graphql.fields import root
from amplifier_api_server.control_plane.graphql.mirror import Node
from amplifier_api_server.control_plane.graphql.pages import many
from amplifier_api_server.control_plane.graphql.tenant_queries import TenantQueries
from amplifier_api_server.control_plane.graphql.work_queries import WorkQueries
from amplifier_api_server.tenants.errors import DomainError, Invalid

Finds = Callable[..., Awaitable[Any]]

_FIELDS: Final[Mapping[str, Any]] = {  # by how its ids begin
    "sess": WorkQueries.session,
    "inst": WorkQueries.installation,
    "key": TenantQueries.key,
    "mem": TenantQueries.member,
    "ten": TenantQueries.tenant,
}


@strawberry.type
class NodeQueries:
    @root("getMe", Node | None)
    async def node(self, info: Info, id: ID) -> Any:  # noqa: A002 - the argument's name
        """What has this id: a session, an installation, a key, a member or a tenant, as the field of its own finds it."""
        return await _found(info, id)

    @root("getMe", many(Node | None))
    async def nodes(self, info: Info, ids: list[ID]) -> list[Any]:
        """What has each of these ids, in their order; null for what is not there. At most as many as a page has."""
        most = info.context.settings.api.max_page_size
        if len(ids) > most:
            raise Invalid(f"ids has {len(ids)} of them; ask for at most {most} at once", limit_value=most)
        found: list[Any] = []
        for one in ids:
            try:
                found.append(await _found(info, one))
            except DomainError as error:  # of this one alone
                found.append(error)
        return found


async def _found(info: Info, given: ID) -> Any:
    field: Finds | None = _FIELDS.get(given.partition("_")[0])
    if field is not None:
        return await field(None, info=info, id=given)
    info.context.took([await info.context.services.admission.request(info.context.principal)])
    return None

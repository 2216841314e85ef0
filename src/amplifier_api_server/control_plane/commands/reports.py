"""`amplifier-api-server usage`."""

from __future__ import annotations

from amplifier_api_server.control_plane.commands.keys import tenant_of
from amplifier_api_server.control_plane.commands.output import show_json, show_rows
from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.control_plane.usage import service
from amplifier_api_server.control_plane.usage.schemas import members
from amplifier_api_server.tenants.repository.usage import GroupBy, Sum

_COLUMNS = (
    "key",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "turns",
    "cached_tokens",
    "reasoning_tokens",
    "cost_usd",
    "own_key_cost_usd",
    "unpriced_tokens",
)
_ROWS = 500


async def usage(
    at: Management, tenant: str | None, group_by: GroupBy, begins: str | None, ends: str | None, *, as_json: bool
) -> None:
    tenant_id, span = tenant_of(at, tenant), service.span_of(begins, ends)
    groups: list[Sum] = []
    after: str | None = None
    while True:
        found = await service.report(at, tenant_id, group_by, span, after=after, limit=_ROWS)
        groups += found.groups
        after = found.next_key
        if after is None:
            break
    rows = [{"key": one.key, **members(one)} for one in groups]
    totals = {"key": "total", **members(found.totals)}
    if as_json:
        show_json({"totals": totals, "usage": rows})
        return
    show_rows(_COLUMNS, [*rows, totals], as_json=False)

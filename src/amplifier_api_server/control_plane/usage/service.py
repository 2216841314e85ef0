"""What a tenant used, as the ledger says it."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.control_plane.schemas import instant_of
from amplifier_api_server.tenants.errors import Invalid
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.repository import usage
from amplifier_api_server.tenants.repository.usage import GroupBy, Report, Span

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_MESSAGE = "should be a date such as 2026-01-31, or a time with its zone such as 2026-01-31T10:30:00Z (RFC 3339)"


async def report(
    services: Management, tenant_id: TenantId, group_by: GroupBy, span: Span, *, after: str | None, limit: int
) -> Report:
    """Sums by group, in the order of their keys, and the totals of the whole span."""
    async with services.database.read() as db:
        return await usage.report(db, tenant_id, group_by, span, after=after, limit=limit)


def span_of(begins: str | None, ends: str | None) -> Span:
    """From inclusive, to exclusive, each a date or a time. Raises Invalid, naming `from` or `to`."""
    first, last = _bound("from", begins), _bound("to", ends)
    if first is not None and last is not None and _time(first) > _time(last):
        raise Invalid("from is later than to", errors=[{"field": "from", "message": "should not be later than to"}])
    return Span(first, last)


def _bound(field: str, text: str | None) -> date | datetime | None:
    if text is None:
        return None
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
        return instant_of(text)
    except ValueError as error:
        raise Invalid(f"{field} {_MESSAGE}", errors=[{"field": field, "message": _MESSAGE}]) from error


def _time(bound: date | datetime) -> datetime:
    return bound if isinstance(bound, datetime) else datetime(bound.year, bound.month, bound.day, tzinfo=UTC)

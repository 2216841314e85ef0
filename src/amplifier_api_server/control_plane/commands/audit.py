"""`amplifier-api-server audit`."""

from __future__ import annotations

import sys
from datetime import datetime

from amplifier_api_server.control_plane.audit.schemas import ExportFormat, head, lines
from amplifier_api_server.control_plane.audit.service import Audit
from amplifier_api_server.control_plane.commands.keys import tenant_of
from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.control_plane.schemas import instant_of
from amplifier_api_server.tenants.errors import Invalid, NotFound
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.repository.audit import Wanted


async def export(
    at: Management,
    tenant: str | None,
    begins: str | None,
    ends: str | None,
    wanted: ExportFormat,
    *,
    operators: bool,
) -> None:
    tenant_id = TenantId("") if operators else tenant_of(at, tenant)
    asked = Wanted(since=_time(begins, "--from"), until=_time(ends, "--to"))
    log = Audit(database=at.database, clock=at.clock)
    if not operators and not await log.has_log(tenant_id):  # or the export itself would begin a log of nobody's
        raise NotFound(f"there is no tenant {tenant_id}", code="tenant_not_found")
    pages = await log.export("cli", tenant_id, asked)
    sys.stdout.write(head(wanted).decode())
    async for rows in pages:
        sys.stdout.write(lines(rows, wanted).decode())
    sys.stdout.flush()


def _time(text: str | None, option: str) -> datetime | None:
    """A UTC date, or a time with its zone. Raises Invalid."""
    if text is None:
        return None
    try:
        return instant_of(f"{text}T00:00:00Z" if len(text) == len("2026-01-01") else text)
    except ValueError as error:
        raise Invalid(f"{option} should be a UTC date, or a time with its zone, and is {text!r}") from error

"""`amplifier-api-server members`."""

from __future__ import annotations

from datetime import datetime

from amplifier_api_server.control_plane.commands.keys import tenant_of
from amplifier_api_server.control_plane.commands.output import console, show_json, show_rows
from amplifier_api_server.control_plane.invitations import service as invitations
from amplifier_api_server.control_plane.invitations.schemas import CreatedInvitation
from amplifier_api_server.control_plane.members import service
from amplifier_api_server.control_plane.members.schemas import MemberView
from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.tenants.ids import MemberId
from amplifier_api_server.tenants.lifecycle import MemberStatus
from amplifier_api_server.tenants.models import Member
from amplifier_api_server.tenants.repository.pages import Page

_COLUMNS = ("id", "name", "kind", "role", "status", "email", "created_at")
_ROWS = 200


async def show(at: Management, tenant: str | None, *, as_json: bool) -> None:
    tenant_id = tenant_of(at, tenant)
    found: list[Member] = []
    before: tuple[datetime, str] | None = None
    while page := await service.page(at, tenant_id, Page(_ROWS, before)):
        found += page
        before = (page[-1].created_at, page[-1].id)
    show_rows(_COLUMNS, [MemberView.of(one).model_dump(mode="json") for one in found], as_json=as_json)


async def invite(at: Management, tenant: str | None, email: str, role: str, *, any_email: bool, as_json: bool) -> None:
    wish = invitations.Wish(email.strip(), role, any_email=any_email)
    made = await invitations.create(at, tenant_of(at, tenant), "cli", wish)
    answer = CreatedInvitation.of_new(made, at.settings, at.clock.now())
    if as_json:
        show_json(answer.model_dump(mode="json"))
        return
    until = f"{answer.expires_at:%Y-%m-%d %H:%M} UTC"
    console().print(f"invitation {answer.id} ({answer.role}) was made, good until {until}\nshown once: {answer.link}")


async def set_status(at: Management, tenant: str | None, member_id: str, status: MemberStatus) -> None:
    wish = service.Wish(status=status)
    changed = await service.change(at, tenant_of(at, tenant), "cli", MemberId(member_id), wish)
    console().print(f"{changed.id} ({changed.name}) is {changed.status}")

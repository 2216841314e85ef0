"""What the invitations' endpoints take and give."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, StringConstraints

from amplifier_api_server.control_plane.invitations.service import (
    DEFAULT_LIFE_SECONDS,
    MAX_LIFE_SECONDS,
    MIN_LIFE_SECONDS,
    NewInvitation,
    Wish,
)
from amplifier_api_server.control_plane.roles.schemas import RoleName
from amplifier_api_server.control_plane.schemas import Answer, Body
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.lifecycle import InvitationStatus
from amplifier_api_server.tenants.models import Invitation

_ADDRESS = r"^[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+$"
LINK = "/auth/invitation?token={token}"  # the page that asks its reader to log in, and to join


def _address(text: str) -> str:
    if not re.search(_ADDRESS, text):
        raise ValueError("should be an e-mail address, such as ada@example.com")
    return text


class CreateInvitation(Body):
    """`POST /v1/invitations`."""

    model_config = ConfigDict(json_schema_extra={"example": {"email": "ada@example.com", "role": "developer"}})

    email: Annotated[
        str,
        StringConstraints(strip_whitespace=True, max_length=254),
        AfterValidator(_address),
        Field(
            description="whoever takes it has to log in with this address, verified",
            json_schema_extra={"pattern": _ADDRESS},
        ),
    ]
    role: RoleName
    expires_in: Annotated[
        int, Field(ge=MIN_LIFE_SECONDS, le=MAX_LIFE_SECONDS, description="for how many seconds it can be taken")
    ] = DEFAULT_LIFE_SECONDS
    any_email: Annotated[bool, Field(description="whoever holds the token may take it, whatever their address is")] = (
        False
    )

    def wish(self) -> Wish:
        return Wish(self.email, self.role, self.expires_in, self.any_email)


class InvitationView(Answer):
    """An invitation, without its token."""

    id: str
    email: str
    any_email: bool
    role: str
    status: Literal["pending", "accepted", "revoked", "expired"]
    created_at: AwareDatetime
    created_by: Annotated[str, Field(description="the member who made it")]
    expires_at: AwareDatetime
    accepted_at: AwareDatetime | None
    member_id: Annotated[str | None, Field(description="who joined by it")]

    @classmethod
    def of(cls, row: Invitation, now: datetime) -> InvitationView:
        return cls.model_validate(_members(row, now))


class CreatedInvitation(InvitationView):
    """A new invitation: the only answer that holds `token` and `link`."""

    token: Annotated[str, Field(description="shown once; send it to whom it is for, and to nobody else")]
    link: Annotated[
        str,
        Field(
            description="of the page that takes it: an address, or where the server does not know its own "
            "(auth.login.public_url) the path below it"
        ),
    ]

    @classmethod
    def of_new(cls, made: NewInvitation, settings: Settings, now: datetime) -> CreatedInvitation:
        link = (settings.auth.login.public_url or "") + LINK.format(token=made.token)
        return cls.model_validate({**_members(made.row, now), "token": made.token, "link": link})


class InvitationPage(Answer):
    invitations: list[InvitationView]
    next_cursor: str | None = None


def _members(row: Invitation, now: datetime) -> dict[str, Any]:
    found = row.model_dump(include=set(InvitationView.model_fields))
    if row.status == InvitationStatus.PENDING and row.expires_at <= now:
        found["status"] = "expired"
    return found

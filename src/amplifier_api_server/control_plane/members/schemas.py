"""What the members' endpoints take and give."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, ConfigDict, Field

from amplifier_api_server.control_plane.members.service import Wish
from amplifier_api_server.control_plane.roles.schemas import RoleName
from amplifier_api_server.control_plane.schemas import Answer, Body, Broken, LimitsBody, Name, limits_view
from amplifier_api_server.tenants.lifecycle import MemberStatus
from amplifier_api_server.tenants.models import Member


class CreateMember(Body):
    """`POST /v1/members`: a service; people are invited."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "nightly build", "role": "developer"}})

    name: Name
    role: RoleName
    limits: LimitsBody | None = None


class UpdateMember(Body):
    """`PATCH /v1/members/{member_id}`: what is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"example": {"status": "disabled"}})

    name: Name | None = None
    role: RoleName | None = None
    status: Annotated[
        Literal["active", "disabled"] | None, Field(description="a disabled member's keys and logins are refused")
    ] = None
    limits: Annotated[LimitsBody | None, Field(description="replaces all overrides; {} removes them")] = None

    def wish(self) -> Wish:
        status = MemberStatus(self.status) if self.status is not None else None
        return Wish(name=self.name, role=self.role, limits=self.limits, status=status)


class MemberView(Answer):
    id: str
    name: str
    kind: Annotated[Literal["person", "service"], Field(description="a person logs in; a service has keys alone")]
    role: str
    status: Literal["active", "disabled", "removed"]
    email: str | None
    limits: Annotated[dict[str, int | None], Field(description="overrides of the tenant's; null is unlimited")]
    created_at: AwareDatetime
    broken: Broken

    @classmethod
    def of(cls, row: Member) -> MemberView:
        return cls.model_validate(row.model_dump(include=set(cls.model_fields)) | limits_view(row))


class MemberPage(Answer):
    members: list[MemberView]
    next_cursor: str | None = None

"""What the roles' endpoints take and give."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, ConfigDict, Field, StringConstraints

from amplifier_api_server.control_plane.roles.service import RoleInfo
from amplifier_api_server.control_plane.schemas import Answer, Body, Broken

_TEXT = r"^[^\x00-\x1f\x7f]*$"

# A role that somebody is given: which there are, the service knows.
RoleName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9][a-z0-9_-]*$"),
    Field(description="admin, developer, readonly, or a role of the tenant's own", examples=["developer"]),
]
Grant = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[a-z_]*(:([a-z_]+|\*))?$|^\*$")]
Grants = Annotated[
    list[Grant],
    Field(
        min_length=1, max_length=100, description='"resource:action", "resource:*" or "*"; none that you don\'t hold'
    ),
]
Description = Annotated[str, StringConstraints(max_length=500, pattern=_TEXT), Field(description="for people to read")]


class CreateRole(Body):
    """`POST /v1/roles`."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "reviewer", "permissions": ["sessions:read"]}})

    name: RoleName
    permissions: Grants
    description: Description = ""


class UpdateRole(Body):
    """`PATCH /v1/roles/{name}`: what is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"example": {"permissions": ["sessions:read", "usage:read"]}})

    permissions: Grants | None = None
    description: Description | None = None


class RoleView(Answer):
    name: str
    description: str
    permissions: list[str]
    is_built_in: bool
    created_at: AwareDatetime | None
    updated_at: AwareDatetime | None
    created_by: Annotated[str | None, Field(description="the member who made it")]
    broken: Broken

    @classmethod
    def of(cls, info: RoleInfo) -> RoleView:
        return cls(
            name=info.name,
            description=info.description,
            permissions=list(info.permissions),
            is_built_in=info.is_built_in,
            created_at=info.created_at,
            updated_at=info.updated_at,
            created_by=info.created_by,
            broken=list(info.broken),
        )


class RolePage(Answer):
    roles: list[RoleView]
    next_cursor: str | None = None

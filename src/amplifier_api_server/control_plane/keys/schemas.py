"""What the keys' endpoints take and give."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AwareDatetime, ConfigDict, Field, StringConstraints

from amplifier_api_server.control_plane.keys.service import (
    DEFAULT_OVERLAP_SECONDS,
    MAX_OVERLAP_SECONDS,
    NewKey,
    Wish,
)
from amplifier_api_server.control_plane.roles.schemas import RoleName
from amplifier_api_server.control_plane.schemas import Answer, Body, Broken, Instant, LimitsBody, Name, limits_view
from amplifier_api_server.tenants.models import ApiKey


class CreateKey(Body):
    """`POST /v1/keys`."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "deploy bot", "role": "developer"}})

    name: Name
    role: RoleName
    expires_at: Annotated[Instant | None, Field(description="when it stops to work; never, if left out")] = None
    member_id: Annotated[
        str | None,
        StringConstraints(max_length=64, pattern=r"^mem_[0-9A-Za-z]+$"),
        Field(
            description="whose key it is: requests and sessions are counted for the member. A new service, if left out"
        ),
    ] = None
    limits: LimitsBody | None = None

    def wish(self) -> Wish:
        return Wish(self.name, self.role, self.expires_at, self.member_id, self.limits)


class RotateKey(Body):
    """`POST /v1/keys/{key_id}/rotate`."""

    overlap: Annotated[
        int, Field(ge=0, le=MAX_OVERLAP_SECONDS, description="for how many seconds the old key works on")
    ] = DEFAULT_OVERLAP_SECONDS


class KeyView(Answer):
    """A key, without what only its owner may know."""

    id: str
    name: str
    role: str
    member_id: str | None
    hint: Annotated[str, Field(description="the key's last characters")]
    limits: dict[str, int | None]
    created_at: AwareDatetime
    created_by: str | None
    expires_at: AwareDatetime | None
    last_used_at: Annotated[AwareDatetime | None, Field(description="to about a minute")]
    rotated_from: str | None
    broken: Broken

    @classmethod
    def of(cls, row: ApiKey) -> KeyView:
        return cls.model_validate(_members(row))


class CreatedKey(KeyView):
    """A new key: the only answer that holds `key`."""

    key: Annotated[str, Field(description="shown once; keep it where secrets are kept")]

    @classmethod
    def of_new(cls, made: NewKey) -> CreatedKey:
        return cls.model_validate({**_members(made.row), "key": made.text})


class KeyPage(Answer):
    keys: list[KeyView]
    next_cursor: str | None = None


def _members(row: ApiKey) -> dict[str, Any]:
    return row.model_dump(include=set(KeyView.model_fields)) | limits_view(row)

"""What the tenants' endpoints take and give."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, ConfigDict, Field, StringConstraints

from amplifier_api_server.control_plane.accounts.service import NewTenant
from amplifier_api_server.control_plane.schemas import Answer, Body, Broken, LimitsBody, Name, limits_view
from amplifier_api_server.tenants.models import Tenant

Tier = Annotated[
    str,
    StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$"),
    Field(description="free, default, pro, enterprise, or one that the configuration adds"),
]


class CreateTenant(Body):
    """`POST /v1/tenants`."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "Example Ltd", "tier": "pro"}})

    name: Name
    tier: Tier = "default"
    limits: LimitsBody | None = None


class UpdateTenant(Body):
    """`PATCH /v1/tenants/{tenant_id}`: what is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"example": {"status": "suspended"}})

    name: Name | None = None
    tier: Tier | None = None
    status: Literal["active", "suspended"] | None = None
    limits: Annotated[LimitsBody | None, Field(description="replaces all overrides; {} removes them")] = None


class TenantView(Answer):
    id: str
    name: str
    tier: str
    status: Literal["active", "suspended"]
    limits: Annotated[dict[str, int | None], Field(description="overrides of the tier's; null is unlimited")]
    created_at: AwareDatetime
    updated_at: AwareDatetime
    broken: Broken

    @classmethod
    def of(cls, row: Tenant) -> TenantView:
        return cls.model_validate(_members(row))


class CreatedTenant(TenantView):
    """A new tenant: the only answer that holds `admin_key`."""

    admin_key: Annotated[str, Field(description="an admin key of the tenant; shown once")]

    @classmethod
    def of_new(cls, made: NewTenant) -> CreatedTenant:
        return cls.model_validate({**_members(made.row), "admin_key": made.admin_key})


class TenantPage(Answer):
    tenants: list[TenantView]
    next_cursor: str | None = None


def _members(row: Tenant) -> dict[str, Any]:
    return row.model_dump(include=set(TenantView.model_fields)) | limits_view(row)

"""What GET /v1/me gives."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from amplifier_api_server.control_plane.me.service import Me
from amplifier_api_server.control_plane.schemas import Answer


class MyTenant(Answer):
    id: str
    name: str


class MyMember(Answer):
    id: str
    name: str
    email: str | None
    kind: Annotated[str, Field(description="person or service")]
    role: Annotated[str, Field(description="as the members' list has it; a key or a token may hold less")]


class MeView(Answer):
    """Who you are here, and what you may do."""

    tenant: Annotated[MyTenant | None, Field(description="null for the operator of the service")]
    member: Annotated[MyMember | None, Field(description="null for the operator of the service")]
    role: Annotated[str, Field(description="what this credential acts with; several of a token are joined by +")]
    grants: Annotated[list[str], Field(description="what it holds, such as sessions:* or keys:read")]
    method: Annotated[Literal["api_key", "bearer", "login"], Field(description="how you said who you are")]
    credential_id: Annotated[str, Field(description="what you showed: key_..., jwt_... or login_...")]
    person_id: Annotated[str | None, Field(description="who logs in as the member, where somebody does")]
    tier: str
    expires_at: Annotated[AwareDatetime | None, Field(description="when the credential ends; null if it never does")]

    @classmethod
    def of(cls, me: Me) -> MeView:
        principal, tenant, member = me.principal, me.tenant, me.member
        ends_at = principal.expires_at
        return cls(
            tenant=MyTenant(id=tenant.id, name=tenant.name) if tenant is not None else None,
            member=None
            if member is None
            else MyMember(id=member.id, name=member.name, email=member.email, kind=member.kind, role=member.role),
            role=principal.role,
            grants=me.grants,
            method=principal.method,
            credential_id=principal.credential_id,
            person_id=principal.person_id,
            tier=principal.tier,
            expires_at=None if ends_at is None else datetime.fromtimestamp(ends_at, UTC),
        )

"""What the logins' endpoints take and give."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, ConfigDict, Field, StringConstraints
from pydantic.json_schema import SkipJsonSchema

from amplifier_api_server.control_plane.auth_settings import OAuth2Auth
from amplifier_api_server.control_plane.logins.service import LoginInfo
from amplifier_api_server.control_plane.schemas import Answer, Body, Name


class LoginMethod(Answer):
    name: str
    label: Annotated[str, Field(description="for people to read")]
    provider: Literal["github", "oidc"]
    login_url: Annotated[str, Field(description="a path: where a browser begins; `next` says where it ends")]

    @classmethod
    def of(cls, method: OAuth2Auth) -> LoginMethod:
        return cls(
            name=method.name,
            label=method.label or method.name,
            provider=method.provider,
            login_url=f"/auth/login/{method.name}",
        )


class LoginMethods(Answer):
    """`GET /auth/methods`."""

    logins: list[LoginMethod]
    api_keys: Annotated[bool, Field(description="whether API keys of tenants are taken")]
    device_login: Annotated[bool, Field(description="whether a device can get an API key")]


class PersonView(Answer):
    id: str
    name: str
    email: Annotated[str | None, Field(description="as a provider verified it")]


class IdentityView(Answer):
    provider: Annotated[str, Field(description="an issuer's address, or github")]
    name: str
    created_at: AwareDatetime


class MembershipView(Answer):
    tenant_id: str
    tenant_name: str
    tenant_status: str
    member_id: str
    role: str
    status: str


class LoginView(Answer):
    """`GET /auth/session`."""

    person: PersonView
    identities: list[IdentityView]
    memberships: Annotated[list[MembershipView], Field(description="none: an invitation is needed")]
    tenant_id: Annotated[str | None, Field(description="where requests with this cookie act")]
    member_id: str | None
    csrf_token: Annotated[str, Field(description="for X-CSRF-Token, with what changes something")]
    expires_at: Annotated[AwareDatetime, Field(description="unless it is used before")]

    @classmethod
    def of(cls, info: LoginInfo) -> LoginView:
        person, facts = info.current.person, info.current.facts
        return cls(
            person=PersonView(id=person.id, name=person.name, email=person.email),
            identities=[
                IdentityView(provider=one.provider, name=one.name, created_at=one.created_at) for one in info.identities
            ],
            memberships=[MembershipView(**one._asdict()) for one in info.memberships],
            tenant_id=facts.tenant_id,
            member_id=facts.member_id,
            csrf_token=info.current.csrf_token,
            expires_at=facts.expires_at,
        )


class SelectTenant(Body):
    """`POST /auth/tenant`."""

    tenant_id: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_]+$")]


class AcceptInvitation(Body):
    """`POST /auth/invitations/accept`."""

    token: Annotated[str, StringConstraints(min_length=1, max_length=200)]


class StartDevice(Body):
    """`POST /auth/device/code`: as JSON, or as the form of RFC 8628, 3.1."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"example": {"client_name": "my laptop"}})

    client_name: Annotated[Name, Field(description="what the person reads, and what the key is named")] = "a device"


class StartedDeviceView(Answer):
    """RFC 8628, 3.2."""

    device_code: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_in: int
    interval: int


class FinishDevice(Body):
    """`POST /auth/device/token`: as JSON, or as the form of RFC 8628, 3.4."""

    model_config = ConfigDict(extra="ignore")

    grant_type: Annotated[
        str, Field(max_length=100, json_schema_extra={"enum": ["urn:ietf:params:oauth:grant-type:device_code"]})
    ]
    device_code: Annotated[str, Field(max_length=200)]


class DeviceToken(Answer):
    """RFC 6749, 5.1: the token is an API key, in `Authorization: Bearer` or the key's own header."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema["required"].remove("expires_in"))

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - a type's name
    expires_in: Annotated[int | SkipJsonSchema[None], Field(description="seconds; left out where it does not expire")]
    key_id: str
    tenant_id: str
    is_new: Annotated[bool, Field(description="made for this device; otherwise the key that the person showed")]


class DeviceRefusal(Answer):
    """RFC 6749, 5.2, and the members of a problem."""

    error: str
    error_description: str
    type: str
    title: str
    status: int
    detail: str
    code: str


class DecideDevice(Body):
    """The form of `POST /auth/device/decide`."""

    decision: Literal["look", "approve", "deny"]
    user_code: Annotated[str, Field(max_length=64)] = ""
    csrf_token: Annotated[str, Field(max_length=200, description="of who is logged in")] = ""
    api_key: Annotated[str, Field(max_length=200, description="of who is not")] = ""
    ticket: Annotated[str, Field(max_length=2000, description="that `look` with an API key gave")] = ""

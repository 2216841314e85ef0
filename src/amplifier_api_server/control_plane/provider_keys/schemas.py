"""What the provider keys' endpoints take and give."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, ConfigDict, Field, SecretStr, StringConstraints, field_validator

from amplifier_api_server.control_plane.schemas import Answer, Body
from amplifier_api_server.tenants.models import ProviderKey

_MIN_CHARS, _MAX_CHARS = (
    16,
    1024,
)  # a shorter one could not be looked for in what a provider answers, and its hint be it
_FIRST, _LAST = "!", "~"  # of ASCII's visible characters: what a header's value can hold, without spaces

ProviderName = Annotated[
    str,
    StringConstraints(max_length=64, pattern=r"^[a-z0-9][a-z0-9_-]*$"),
    Field(description="a provider's name, as `GET /v1/models` says it"),
]


class SetProviderKey(Body):
    """`POST /v1/provider-keys`."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"provider": "anthropic", "api_key": "sk-ant-your-own-key"}},
        hide_input_in_errors=True,
    )

    provider: ProviderName
    api_key: Annotated[SecretStr, Field(description="kept encrypted, and never shown again")]

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if not _MIN_CHARS <= len(text) <= _MAX_CHARS or not all(_FIRST <= sign <= _LAST for sign in text):
            raise ValueError(f"should be {_MIN_CHARS} to {_MAX_CHARS} visible ASCII characters, without spaces")
        return value


class ProviderKeyView(Answer):
    """A key, without the key."""

    provider: str
    hint: Annotated[str, Field(description="the key's last characters")]
    is_readable: Annotated[
        bool,
        Field(
            description="false: this server has another encryption key, and refuses calls that need it; set it again"
        ),
    ]
    created_at: AwareDatetime
    created_by: str

    @classmethod
    def of(cls, row: ProviderKey, *, is_readable: bool = True) -> ProviderKeyView:
        return cls.model_validate(row.model_dump(include=set(cls.model_fields)) | {"is_readable": is_readable})


class TakingProvider(Answer):
    """A provider that tenants' own keys are taken for."""

    provider: str
    is_required: Annotated[bool, Field(description="it is asked with nobody else's")]


class ProviderKeyPage(Answer):
    provider_keys: list[ProviderKeyView]
    providers: Annotated[list[TakingProvider], Field(description="for which a key can be set")]
    next_cursor: str | None = None

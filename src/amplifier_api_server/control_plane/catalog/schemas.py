"""What the catalogue's endpoints take and give."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator

from amplifier_api_server.runtime.protocol import ToolOutcome, ToolSpec
from amplifier_api_server.tenants.models import Collection


class ProfileView(BaseModel):
    name: str
    source: Literal["bundled", "collection"]
    description: str
    version: str | None = None


class ProfileList(BaseModel):
    profiles: list[ProfileView]


class ToolList(BaseModel):
    tools: list[ToolSpec]


class ExecuteTool(BaseModel):
    """`POST /v1/tools/{name}/execute`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"input": {"command": "echo hello"}}})

    input: Annotated[dict[str, Any], Field(description="as the tool's input_schema says")]

    @field_validator("input")
    @classmethod
    def _is_plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            orjson.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError("should be plain JSON, not nested too deeply") from error
        return value


class ToolResult(ToolOutcome):
    """`failed` where the tool itself failed; `error` says how."""


class InstallCollection(BaseModel):
    """`POST /v1/collections` with JSON."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"source": "git+https://example.com/org/repo@main"}}
    )

    source: Annotated[str, Field(min_length=1, max_length=2048)]


class CollectionView(BaseModel):
    name: str
    version: str
    description: str
    source: str
    commit: str | None = None
    content_hash: str
    profiles: list[str]
    tools: list[str]
    modules: list[str]
    agents: list[str]
    installed_at: datetime
    installed_by: str

    @classmethod
    def of(cls, row: Collection) -> CollectionView:
        held = row.manifest
        same = {"name", "version", "description", "source", "commit", "content_hash", "installed_at", "installed_by"}
        return cls(
            **row.model_dump(include=same),
            profiles=[one["name"] for one in held.get("profiles", [])],
            tools=[one["name"] for one in held.get("tools", [])],
            modules=held.get("modules", []),
            agents=held.get("agents", []),
        )


class CollectionPage(BaseModel):
    collections: list[CollectionView]
    next_cursor: str | None = None

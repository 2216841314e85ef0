"""What the catalogue's endpoints take and give."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator

from amplifier_api_server.control_plane.schemas import Body, Broken
from amplifier_api_server.runtime.protocol import CompiledProfile, Image, ToolOutcome, ToolSpec
from amplifier_api_server.tenants.json_columns import is_spoiled, spoiled_in
from amplifier_api_server.tenants.lifecycle import InstallationStatus
from amplifier_api_server.tenants.models import Collection, Installation, Profile

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"  # of a collection


class ProfileView(BaseModel):
    name: str
    source: Literal["bundled", "collection", "own"]
    description: str
    version: str | None = None


class ProfilePage(BaseModel):
    profiles: list[ProfileView]
    next_cursor: str | None = None


class ProfilePlan(ProfileView):
    """A profile as a session of it would have it now."""

    model: str
    plan: Annotated[
        dict[str, Any], Field(description="the compiled mount plan: session, providers, tools, hooks, agents")
    ]
    warnings: list[str]
    content: Annotated[str | None, Field(description="as it was written, of a profile of your own")] = None

    @classmethod
    def of(cls, source: Literal["bundled", "collection"], compiled: CompiledProfile) -> ProfilePlan:
        spec = compiled.spec
        return cls(
            name=spec.name,
            source=source,
            description=spec.description,
            version=spec.version,
            model=compiled.model,
            plan=compiled.plan,
            warnings=compiled.warnings,
        )

    @classmethod
    def of_own(cls, row: Profile, compiled: CompiledProfile) -> ProfilePlan:
        return cls(
            name=row.name,
            source="own",
            description=row.description,
            version=str(row.version),
            model=compiled.model,
            plan=compiled.plan,
            warnings=compiled.warnings,
            content=row.content,
        )


class SetProfile(Body):
    """`POST /v1/profiles`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "reviewer",
                "content": "---\nbundle:\n  name: reviewer\nincludes:\n  - foundation:base\n---\nYou review changes.\n",
            }
        },
    )

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="a-z, 0-9, _ and -; without a colon")]
    content: Annotated[str, Field(min_length=1, description="a bundle or a profile, as Markdown or YAML")]


class StoredProfile(ProfileView):
    created_at: datetime
    created_by: str
    warnings: list[str] = []

    @classmethod
    def of_row(cls, row: Profile, warnings: Sequence[str]) -> StoredProfile:
        return cls(
            name=row.name,
            source="own",
            description=row.description,
            version=str(row.version),
            created_at=row.created_at,
            created_by=row.created_by,
            warnings=list(warnings),
        )


class ToolPage(BaseModel):
    tools: list[ToolSpec]
    next_cursor: str | None = None


class ExecuteTool(Body):
    """`POST /v1/tools/{name}/execute`."""

    model_config = ConfigDict(json_schema_extra={"example": {"input": {"command": "echo hello"}}})

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


class InstallCollection(Body):
    """`POST /v1/collections` with JSON."""

    model_config = ConfigDict(json_schema_extra={"example": {"source": "git+https://example.com/org/repo@main"}})

    source: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2048,
            description="git+https://host/org/repo@ref#subdirectory=path, or the https address of a zip",
        ),
    ]
    modules: Annotated[
        Literal["own", "source"] | None,
        Field(description="whose module is used where the server has one of that name too; None: as it is configured"),
    ] = None
    name: Annotated[
        str | None, Field(pattern=NAME_PATTERN, description="the collection's name, instead of the one it has")
    ] = None
    skip_missing: Annotated[
        bool, Field(description="leave out, with a warning, each source it names that is not there or not allowed")
    ] = False


class SourceView(BaseModel):
    """One repository or archive that a collection is made of."""

    uri: str
    commit: str | None = None
    tree: Annotated[str, Field(description="the hash of its files")]


class DistributionView(BaseModel):
    """One Python distribution that a collection's modules import."""

    name: str
    version: str
    sha256: Annotated[str, Field(description="of the wheel")]
    source: Annotated[str | None, Field(description="what it was built from; none: the operator's index")] = None


class CollectionView(BaseModel):
    name: str
    version: str
    description: str
    source: str
    commit: str | None = None
    content_hash: Annotated[str, Field(description="of all that it is made of")]
    profiles: list[str]
    tools: list[str]
    modules: list[str]
    agents: list[str]
    sources: list[SourceView]
    distributions: list[DistributionView]
    left_out: Annotated[list[str], Field(description="sources that could not be had, and are optional or were skipped")]
    installed_at: datetime
    installed_by: str
    installation_id: Annotated[str | None, Field(description="the job that installed it, in the answer to it alone")]
    warnings: Annotated[
        list[str], Field(description="of that job; what concerns a profile is in GET /v1/profiles/{name} too")
    ]
    broken: Broken

    @classmethod
    def of(cls, row: Collection, *, job: str | None = None, warnings: Sequence[str] = ()) -> CollectionView:
        held, broken = row.manifest, spoiled_in(row)
        image = None if is_spoiled(row.image) else Image.model_validate(row.image)
        same = {"name", "version", "description", "source", "commit", "content_hash", "installed_at", "installed_by"}
        return cls(
            **row.model_dump(include=same),
            profiles=[one["name"] for one in held.get("profiles", [])],
            tools=[one["name"] for one in held.get("tools", [])],
            modules=held.get("modules", []),
            agents=held.get("agents", []),
            sources=[SourceView(**one.model_dump()) for one in (image.root, *image.sources)] if image else [],
            distributions=[DistributionView(**one.model_dump()) for one in image.distributions] if image else [],
            left_out=image.lacks if image else [],
            installation_id=job,
            warnings=list(warnings),
            broken=broken,
        )


class CollectionPage(BaseModel):
    collections: list[CollectionView]
    next_cursor: str | None = None


class InstallationProblem(BaseModel):
    code: str
    detail: str


class InstallationView(BaseModel):
    """A job that installs a collection."""

    installation_id: str
    source: str
    status: Literal["running", "installed", "failed"]
    phase: Annotated[
        str, Field(description="waiting, fetching, inspecting, downloading, building, keeping; empty when it has ended")
    ]
    detail: str
    done: Annotated[int, Field(description="sources fetched, of those that are known so far")]
    total: int
    warnings: list[str]
    problem: Annotated[InstallationProblem | None, Field(description="why it failed")] = None
    collection: Annotated[str | None, Field(description="its name, once it is installed")] = None
    created_at: datetime
    finished_at: datetime | None = None
    broken: Broken

    @classmethod
    def of(cls, row: Installation) -> InstallationView:
        same = {"source", "status", "detail", "done", "total", "warnings", "collection", "created_at", "finished_at"}
        is_running = row.status == InstallationStatus.RUNNING
        return cls(
            **row.model_dump(include=same),
            installation_id=row.id,
            phase=row.phase if is_running else "",
            problem=InstallationProblem(**row.failure) if row.failure else None,
            broken=spoiled_in(row),
        )


class InstallationPage(BaseModel):
    installations: list[InstallationView]
    next_cursor: str | None = None

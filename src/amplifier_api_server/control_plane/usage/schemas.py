"""What GET /v1/usage gives."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field, computed_field

from amplifier_api_server.control_plane.money import dollars
from amplifier_api_server.control_plane.schemas import Answer
from amplifier_api_server.tenants.repository.usage import Report, Sum


def members(found: Sum) -> dict[str, Any]:
    """A sum as people read it: costs in dollars."""
    said = asdict(found)
    del said["key"]
    for name in ("cost", "own_key_cost"):
        said[f"{name}_usd"] = dollars(said.pop(f"{name}_microdollars"))
    return said


class UsageTotals(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    turns: int
    cached_tokens: Annotated[int, Field(description="of the prompts: read from the providers' caches")]
    cache_write_tokens: Annotated[int, Field(description="of the prompts: written to them")]
    reasoning_tokens: Annotated[int, Field(description="of the completions")]
    cost_usd: Annotated[str, Field(description="a decimal: calls with the operator's keys, by the prices it has set")]
    own_key_cost_usd: Annotated[str, Field(description="a decimal: calls with your tenant's own keys, by list prices")]
    unpriced_tokens: Annotated[int, Field(description="of calls whose price is not known: they are in neither cost")]

    @classmethod
    def of(cls, found: Sum) -> UsageTotals:
        return cls(**members(found))


class UsageGroup(UsageTotals):
    key: Annotated[str, Field(description="the session, day, model or member")]

    @classmethod
    def of(cls, found: Sum) -> UsageGroup:
        return cls(key=found.key, **members(found))


class UsageReport(Answer):
    """Totals are of the whole span; they are the sum of all groups, however grouped."""

    totals: UsageTotals
    usage: list[UsageGroup]
    next_cursor: str | None = None

    @computed_field(description="the same as `usage`", json_schema_extra={"deprecated": True})  # type: ignore[prop-decorator]
    @property
    def data(self) -> list[UsageGroup]:
        return self.usage

    @classmethod
    def of_report(cls, found: Report, next_cursor: str | None) -> UsageReport:
        groups = [UsageGroup.of(one) for one in found.groups]
        return cls(totals=UsageTotals.of(found.totals), usage=groups, next_cursor=next_cursor)

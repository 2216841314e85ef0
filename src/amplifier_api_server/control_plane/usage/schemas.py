"""What GET /v1/usage gives."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from amplifier_api_server.control_plane.schemas import Answer
from amplifier_api_server.tenants.repository.usage import Report, Sum


class UsageTotals(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    turns: int

    @classmethod
    def of(cls, found: Sum) -> UsageTotals:
        return cls(
            prompt_tokens=found.prompt_tokens,
            completion_tokens=found.completion_tokens,
            total_tokens=found.total_tokens,
            turns=found.turns,
        )


class UsageGroup(UsageTotals):
    key: Annotated[str, Field(description="the session, day, model or member")]

    @classmethod
    def of(cls, found: Sum) -> UsageGroup:
        return cls(key=found.key, **UsageTotals.of(found).model_dump())


class UsageReport(Answer):
    """Totals are of the whole span; they are the sum of all groups, however grouped."""

    totals: UsageTotals
    data: list[UsageGroup]
    next_cursor: str | None = None

    @classmethod
    def of_report(cls, found: Report, next_cursor: str | None) -> UsageReport:
        groups = [UsageGroup.of(one) for one in found.groups]
        return cls(totals=UsageTotals.of(found.totals), data=groups, next_cursor=next_cursor)

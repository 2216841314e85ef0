"""What GET /v1/limits gives: each policy, what is used and held of it, and when it frees."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AwareDatetime, Field

from amplifier_api_server.control_plane.schemas import Answer


class Policy(Answer):
    name: Annotated[str, Field(examples=["requests_per_minute"])]
    scope: Annotated[str, Field(description="whose uses are counted together: member or tenant")]
    limit: Annotated[int | None, Field(description="null is unlimited")]
    used: Annotated[
        int, Field(description="requests that still count, tokens spent today, places taken, bytes and files kept")
    ]
    reserved: Annotated[int, Field(description="tokens held by running turns; of the disk, what is on its way")]
    remaining: Annotated[int | None, Field(description="null is unlimited")]
    resets_at: Annotated[
        AwareDatetime | None, Field(description="when it is whole again by itself; null if it never is")
    ]
    frees: Annotated[str, Field(description="what gives some of it back")]
    holders: Annotated[list[str], Field(description="the sessions, turns or sandboxes that hold it")]


class LastRefusal(Answer):
    at: AwareDatetime
    limit: str
    code: str
    detail: str
    retry_after_seconds: Annotated[
        int | None, Field(description="counted from `at`; null where time alone does not help")
    ]


class LimitsExplained(Answer):
    """How your limits stand. Asking is not counted."""

    tier: str
    enforced: Annotated[bool, Field(description="false: limits are switched off here, uses are counted all the same")]
    limits: list[Policy]
    last_refusal: Annotated[LastRefusal | None, Field(description="of this member, since the server started")]


def whole_seconds(seconds: float | None) -> int | None:
    return None if seconds is None else math.ceil(seconds)

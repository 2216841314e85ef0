"""What the web policy's endpoints take and give."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from amplifier_api_server.control_plane.schemas import Answer, Body
from amplifier_api_server.control_plane.web.policy import EVERY_HOST, MAX_PATTERNS, WebPolicy

Patterns = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=255)]],
    Field(
        max_length=MAX_PATTERNS,
        description="hosts: example.org is that host alone, *.example.org all below it, * every one",
    ),
]


class SetWebPolicy(Body):
    """`PUT /v1/web-policy`: both lists are replaced."""

    model_config = ConfigDict(json_schema_extra={"example": {"allow": ["*.python.org"], "deny": ["wiki.python.org"]}})

    allow: Annotated[Patterns, Field(default_factory=lambda: list(EVERY_HOST))]
    deny: Annotated[Patterns, Field(default_factory=list)]


class WebPolicyView(Answer):
    is_enabled: Annotated[bool, Field(description="whether the operator lets this server fetch pages at all")]
    allow: list[str]
    deny: list[str]

    @classmethod
    def of(cls, policy: WebPolicy, *, is_enabled: bool) -> WebPolicyView:
        return cls(is_enabled=is_enabled, allow=list(policy.allow), deny=list(policy.deny))

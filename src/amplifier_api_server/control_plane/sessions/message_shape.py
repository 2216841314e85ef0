"""What amplifier-core takes for a message: the shape of its `Message`, which this process does not import. Pure.

Owns the fields that core reads; what else a message holds is its dialect's own and passes. Refuses to know roles and tool
calls: `transcripts` does. Invariant: what `wrong` finds nothing in can be made a `Message` of, which a test asks core itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


class _Block(BaseModel):
    model_config = ConfigDict(extra="allow")

    visibility: Literal["internal", "developer", "user"] | None = None


class _Text(_Block):
    type: Literal["text"]
    text: str


class _Thinking(_Block):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None
    content: list[Any] | None = None


class _RedactedThinking(_Block):
    type: Literal["redacted_thinking"]
    data: str


class _ToolCall(_Block):
    type: Literal["tool_call"]
    id: str
    name: str
    input: dict[str, Any]


class _ToolResult(_Block):
    type: Literal["tool_result"]
    tool_call_id: str
    output: Any


class _Image(_Block):
    type: Literal["image"]
    source: dict[str, Any]


class _Reasoning(_Block):
    type: Literal["reasoning"]
    content: list[Any]
    summary: list[Any]


_BLOCK: Final = TypeAdapter[Any](
    Annotated[
        _Text | _Thinking | _RedactedThinking | _ToolCall | _ToolResult | _Image | _Reasoning,
        Field(discriminator="type"),
    ]
)


def wrong(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Fields of a message that core does not take, each with what is wrong. Says nothing of what is in them."""
    content = body.get("content")
    if isinstance(content, list):
        for place, block in enumerate(content):
            for field, message in _wrong_block(block):
                yield f"content.{place}{field}", message
    elif not isinstance(content, str):
        yield "content", "should be a text or a list of blocks"
    for name in ("name", "tool_call_id"):
        if not isinstance(body.get(name), str | None):
            yield name, "should be a text"
    if not isinstance(body.get("metadata"), dict | None):
        yield "metadata", "should be an object"


def _wrong_block(block: Any) -> Iterator[tuple[str, str]]:
    try:
        _BLOCK.validate_python(block)
    except ValidationError as error:
        for one in error.errors(include_input=False, include_url=False, include_context=False)[:2]:
            if one["type"].startswith("union_tag"):
                yield ".type", "should be text, thinking, redacted_thinking, tool_call, tool_result, image or reasoning"
            elif one["loc"]:  # the block's type, then the field
                yield "".join(f".{part}" for part in one["loc"][1:]), one["msg"]
            else:
                yield "", one["msg"]

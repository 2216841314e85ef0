"""Why a model's answer ended, by one name whichever provider said it. A part of the wire contract (`protocol`)."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

# What providers call the ends of an answer, beside `stop`, `length`, `content_filter` and `tool_calls`.
_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "completed": "stop",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "refusal": "content_filter",
    "safety": "content_filter",
}
FINISH_REASON = (
    "why the model's last answer ended: stop, length (cut at its bound), content_filter (cut by the provider), or another "
    "word of the provider's; null where it is not known, as of an execution that has not completed"
)


def finish_reason_of(said: Any) -> str | None:
    """Why a model's answer ended, by the one name that it has whichever provider said it; None where nobody knows."""
    if not isinstance(said, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", said):
        return None
    return _FINISH_REASONS.get(said.lower(), said.lower())


FinishReason = Annotated[str | None, AfterValidator(finish_reason_of), Field(description=FINISH_REASON)]

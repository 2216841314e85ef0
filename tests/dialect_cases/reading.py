"""A row as the runtime reads it: whole, in chunks, or as the gateway passed it on."""

from __future__ import annotations

from typing import Any

import pytest
from amplifier_core import LLMError

from amplifier_api_server.runtime.dialects import chat_completions, messages, responses, sse
from amplifier_api_server.runtime.dialects.answer import Answer
from amplifier_api_server.runtime.dialects.errors import broken
from tests.dialect_cases.case import Case

DIALECTS = {"chat": chat_completions, "messages": messages, "responses": responses}


def read(case: Case, chunks: list[bytes]) -> tuple[Any, str]:
    """The response and what was shown of it. Raises LLMError."""
    shown: list[str] = []
    answer = Answer(shown.append, "p")
    reader, events = DIALECTS[case.dialect].Reader(answer), sse.Events("p")
    if case.is_stream:
        for found in [*(events.feed(chunk) for chunk in chunks), events.finish()]:
            for event in found:
                reader.done() if event == sse.DONE else reader.take(event)
    else:
        reader.take_whole(sse.whole(b"".join(chunks), "p"))
    if not reader.is_done:
        raise broken("it has no end", "p")
    return answer.response("m"), "".join(shown)


def is_as_expected(case: Case, chunks: list[bytes]) -> None:
    if case.fails is not None:
        with pytest.raises(LLMError) as failed:
            read(case, chunks)
        assert (failed.value.code or "") == case.fails
        return
    response, shown = read(case, chunks)
    assert shown == case.text
    assert "".join(one.text for one in response.content if one.type == "text") == case.text
    made = response.tool_calls or []
    assert [(one.name, one.arguments) for one in made] == list(case.calls)
    assert not [one for one in made if (one.model_extra or {}).get("invalid")]
    assert len({one.id for one in made}) == len(made)
    if case.ids is not None:
        assert [one.id for one in made] == list(case.ids)
    assert response.finish_reason == case.finish
    if case.usage:
        usage = response.usage.model_dump(exclude_none=True)
        assert {name: usage.get(name) for name in case.usage} == case.usage

"""What a session makes of what providers really send: each row of the table of cases, whole and in any division into chunks."""

from __future__ import annotations

from typing import Any

import pytest
from amplifier_core import LLMError
from hypothesis import given, settings
from hypothesis import strategies as st

from amplifier_api_server.runtime.dialects import chat_completions, messages, responses, sse
from amplifier_api_server.runtime.dialects.answer import Answer
from amplifier_api_server.runtime.dialects.errors import broken
from tests.dialect_cases import CASES, named
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


@pytest.mark.parametrize("case", CASES, ids=named)
def test_what_a_provider_sends_is_the_answer_that_it_means(case: Case):
    is_as_expected(case, [case.sent])


@pytest.mark.parametrize("case", CASES, ids=named)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_it_means_the_same_in_any_division_into_chunks(case: Case, data: st.DataObject):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(case.sent)), max_size=8)))
    is_as_expected(case, [case.sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(case.sent)], strict=True)])

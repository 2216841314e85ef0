"""What an import takes for a message is what core takes for one: asked of core's own model."""

from __future__ import annotations

from typing import Any

from amplifier_core import Message
from hypothesis import event, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from amplifier_api_server.control_plane.sessions import message_shape

VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=3),
    st.just([]),
    st.just({}),
    st.just([1]),
    st.just({"a": 1}),
)
TYPES = [
    "text",
    "thinking",
    "redacted_thinking",
    "tool_call",
    "tool_result",
    "image",
    "reasoning",
    "video",
    1,
    None,
    [],
]
FIELDS = ["text", "thinking", "data", "id", "name", "input", "tool_call_id", "output", "source", "content", "summary"]


@st.composite
def blocks(draw: st.DrawFn) -> Any:
    """Objects like a block, some of which are one."""
    if draw(st.integers(0, 9)) == 0:
        return draw(VALUES)
    texts, objects, lists = st.just("x"), st.just({"a": 1}), st.just([1])
    right = {"input": objects, "source": objects, "content": lists, "summary": lists}
    block = {name: draw(st.one_of(right.get(name, texts), VALUES)) for name in draw(st.sets(st.sampled_from(FIELDS)))}
    made = {name: draw(right.get(name, texts)) for name in FIELDS} | block if draw(st.booleans()) else block
    if draw(st.integers(0, 9)):
        made["type"] = draw(st.sampled_from(TYPES))
    if draw(st.booleans()):
        made["visibility"] = draw(st.sampled_from(["user", "internal", "developer", None, "all", 1]))
    return made


CONTENTS = st.one_of(st.text(max_size=3), st.lists(blocks(), max_size=3), VALUES)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"])},
    optional={"content": CONTENTS, "name": VALUES, "tool_call_id": VALUES, "metadata": VALUES, "more": VALUES},
)


@settings(max_examples=400, deadline=None)
@given(MESSAGES)
def test_a_message_is_taken_where_core_takes_it_and_only_there(message: dict[str, Any]):
    found = list(message_shape.wrong(message))
    try:
        Message(**message)
    except ValidationError:
        event("core refuses it")
        assert found
    else:
        event("core takes it")
        assert found == []

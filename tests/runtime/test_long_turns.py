"""One turn that is longer than the model's window, and what the context learns of sizes."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amplifier_api_server.runtime.modules.context_simple import SimpleContext
from amplifier_api_server.runtime.modules.context_simple.view import (
    IMAGE_TOKENS,
    asked_before,
    fitted,
    newest_steps_from,
    tokens_of,
)
from tests.runtime.fake_gateway import Write, calls, says
from tests.runtime.hosting import Hosted, hosted, plan


@pytest.fixture
async def session() -> AsyncIterator[Hosted]:
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        async with hosted(Path(folder)) as one:
            yield one


def small(max_tokens: int = 2000) -> dict[str, Any]:
    made = plan(tools=[{"module": "tool-todo", "config": {}}])
    made["session"]["context"]["config"] = {"max_tokens": max_tokens}
    return made


class Model:
    """Calls a tool so many times, each with some words around it, then answers whether it still knows the fact."""

    def __init__(self, steps: int, *, sums_up: bool = True) -> None:
        self.left = steps
        self.asked: list[dict[str, Any]] = []
        self.summaries = 0
        self._sums_up = sums_up

    async def __call__(self, body: dict[str, Any], write: Write) -> None:
        if "Below is the older part" in str(body["messages"][0]["content"]):
            self.summaries += 1
            known = "Rex" in str(body["messages"])
            await says("The dog is called Rex." if known and self._sums_up else " ")(body, write)
            return
        self.asked.append(body)
        self.left -= 1
        if self.left < 0:
            await says("Rex" if "Rex" in str(body["messages"]) else "I don't know")(body, write)
            return
        words = "The dog is called Rex." if len(self.asked) == 1 else "words " * 60
        await calls(("todo", {"action": "list"}), text=words)(body, write)


async def test_the_steps_of_a_turn_longer_than_the_window_are_summed_up_and_what_was_asked_stays(session: Hosted):
    model = Model(40)
    session.gateway.default = model
    await session.open(small())
    turn = await session.ask("look into it: question 7")
    assert turn.result.response == "Rex"
    assert model.summaries >= 2
    assert all("question 7" in str(one["messages"]) for one in model.asked)
    assert max(tokens_of(one["messages"]) for one in model.asked) <= 2400
    assert len(session.gateway.checkpoints[-1]["messages"]) == 82
    assert (await session.ask("and what is the dog called?")).result.response == "Rex"


async def test_a_provider_that_can_sum_nothing_up_is_not_asked_at_every_step(session: Hosted):
    model = Model(40, sums_up=False)
    session.gateway.default = model
    await session.open(small())
    turn = await session.ask("go")
    assert turn.result.status == "completed"
    assert 1 <= model.summaries <= 12


async def test_hooks_hear_of_a_compaction(session: Hosted):
    session.gateway.default = Model(12)
    await session.open(small())
    heard: list[tuple[str, dict[str, Any]]] = []

    async def hear(event: str, data: dict[str, Any]) -> None:
        heard.append((event, data))

    for event in ("context:pre_compact", "context:post_compact", "context:compaction"):
        session.host.listen(event, hear)
    await session.ask("go")
    assert [event for event, _ in heard[:3]] == ["context:pre_compact", "context:post_compact", "context:compaction"]
    assert heard[0][1]["tokens"] > heard[1][1]["tokens"]


async def test_a_failed_turn_takes_its_summary_back(session: Hosted):
    session.gateway.default = Model(12)
    await session.open(small())
    await session.ask("go")
    before = session.host.own_state()["context"]

    async def fails(body: dict[str, Any], write: Write) -> None:
        if "Below is the older part" in str(body["messages"][0]["content"]):
            await says("another summary")(body, write)
            return
        await write(b'data: {"error": {"message": "no"}}\n\n')

    session.gateway.default = fails
    assert (await session.ask("x" * 7000)).result.status == "failed"
    assert session.host.own_state()["context"] == before


def turns(count: int, chars: int) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for number in range(count):
        made.append({"role": "user", "content": f"{number} " + "q" * chars})
        made.append({"role": "assistant", "content": "a" * chars})
    return made


async def test_an_estimate_is_corrected_by_what_the_provider_counted():
    context = SimpleContext(max_tokens=1000)
    await context.set_messages(turns(2, 900))
    sent = await context.get_messages_for_request()
    estimated = tokens_of(sent)
    context.note_usage(2 * estimated, 0)  # twice as many as thought
    fewer = await context.get_messages_for_request()
    assert tokens_of(fewer) <= 1000 // 2 + 30
    assert len(fewer) < len(sent)


async def test_a_count_that_can_not_be_is_not_believed():
    context = SimpleContext(max_tokens=1000)
    await context.set_messages(turns(1, 1000))
    sent = await context.get_messages_for_request()
    context.note_usage(5, 0)
    assert await context.get_messages_for_request() == sent


async def test_tools_take_their_room():
    context = SimpleContext(max_tokens=1000)
    await context.set_messages(turns(3, 400))
    sent = await context.get_messages_for_request()
    context.note_usage(tokens_of(sent) + 600, 600 * 4)
    assert tokens_of(await context.get_messages_for_request()) <= 450


async def test_a_window_that_a_provider_told_is_kept():
    context = SimpleContext()
    await context.set_messages(turns(10, 1000))
    assert len(await context.get_messages_for_request()) == 20
    assert context.note_too_long(2000)
    assert tokens_of(await context.get_messages_for_request()) <= 2000
    assert context.note_too_long(None)
    assert tokens_of(await context.get_messages_for_request()) <= 1500


async def test_nothing_can_be_made_smaller_than_nothing():
    assert not SimpleContext().note_too_long(None)


def test_an_image_is_not_counted_by_its_bytes():
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x" * 1_000_000}}
    message = {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "a cat"}, image]}
    assert IMAGE_TOKENS <= tokens_of([message]) <= IMAGE_TOKENS + 50
    said = [{"role": "user", "content": "look"}, {"role": "assistant", "content": "", "tool_calls": [{"id": "a"}]}]
    short = fitted([*said, message], 300)
    assert short[-1]["content"] == "a cat\n(An image was left out.)"


step_sizes = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@given(step_sizes, st.integers(0, 600))
@settings(deadline=None)
def test_steps_are_kept_whole_and_with_what_was_asked(sizes: list[int], room: int):
    messages: list[dict[str, Any]] = [{"role": "user", "content": "q"}]
    for number, size in enumerate(sizes):
        made = [{"id": f"{number}.{one}", "tool": "t", "arguments": {}} for one in range(size)]
        messages.append({"role": "assistant", "content": "x" * 50, "tool_calls": made})
        messages += [{"role": "tool", "tool_call_id": call["id"], "content": "y" * 100} for call in made]
    start = newest_steps_from(messages, room)
    assert start == 0 or messages[start]["role"] == "assistant"
    assert start != 1
    kept = {call["id"] for one in messages[start:] for call in one.get("tool_calls") or ()}
    assert kept == {one["tool_call_id"] for one in messages[start:] if one["role"] == "tool"}
    assert asked_before(messages, start) == ([messages[0]] if start else [])

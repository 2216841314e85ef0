"""A conversation longer than the model's window goes on, and what was said in its first turn is still known in its last."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from amplifier_api_server.runtime.modules.context_simple import SimpleContext
from amplifier_api_server.runtime.modules.context_simple.view import fitted, newest_turns_from, tokens_of
from tests.runtime.conftest import Driver
from tests.runtime.fake_gateway import Write, chunk, says

PROFILE = """---
profile: {name: small, version: "1"}
session:
  orchestrator: {module: loop-streaming}
  context: {module: context-simple, config: {max_tokens: 2000}}
providers: [{module: provider-openai}]
tools: [{module: tool-todo}]
---
You are brief.
"""
FACT = "my dog is called Rex"
END = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}\n\ndata: [DONE]\n\n'


class Model:
    """A model with a window: it knows what it is sent, sums up what it is asked to, and answers from both."""

    def __init__(self, *, fails_to_sum_up: bool = False) -> None:
        self.summaries = 0
        self.longest = 0
        self._fails = fails_to_sum_up

    async def answer(self, body: dict[str, Any], write: Write) -> None:
        system, last = str(body["messages"][0]["content"]), str(body["messages"][-1]["content"])
        if system.startswith("Below is the older part"):
            self.summaries += 1
            if self._fails:
                await write(b'data: {"error": {"message": "no", "type": "server_error"}}\n\n')
                return
            text = f"The user said: {FACT}." if FACT in last else "Nothing."
        else:
            self.longest = max(self.longest, tokens_of(body["messages"]))
            known = FACT in str(body["messages"])
            text = "Rex" if known and "dog" in last else "I don't know" if "dog" in last else "Well. " * 20
        await write(chunk({"content": text}) + chunk(finish="stop") + END)


async def talk(runtime: Driver, model: Model, turns: int) -> list[dict[str, Any]]:
    results = []
    for number in range(turns):
        runtime.gateway.default = model.answer
        prompt = (
            FACT if number == 0 else "What is my dog called?" if number == turns - 1 else f"{number} " + "words " * 50
        )
        results.append(await runtime.ask(prompt))
    return results


async def open_small(runtime: Driver, **more: Any) -> dict[str, Any]:
    return await runtime.open(profile="small", documents={"small": PROFILE}, **more)


async def test_a_fact_of_the_first_turn_survives_forty_turns_with_compaction(runtime: Driver):
    model = Model()
    await open_small(runtime)
    results = await talk(runtime, model, 40)
    assert results[-1]["response"] == "Rex"
    assert model.summaries >= 2
    assert model.longest <= 2000
    assert all("Below is" not in one["response"] for one in results)


async def test_a_turn_does_not_fail_because_older_ones_could_not_be_summed_up(runtime: Driver):
    model = Model(fails_to_sum_up=True)
    await open_small(runtime)
    results = await talk(runtime, model, 15)
    assert {one["status"] for one in results} == {"completed"}
    assert model.summaries >= 1
    assert model.longest <= 2200


async def test_a_summary_goes_with_the_session_and_is_not_made_again(runtime: Driver):
    model = Model()
    opened = await open_small(runtime)
    await talk(runtime, model, 20)
    kept = runtime.gateway.checkpoints[-1]
    assert kept["state"]["context"]["upto"] > 0
    transcript = [message for one in runtime.gateway.checkpoints for message in one["messages"]]
    made = model.summaries
    await runtime.open("sess_2", plan=opened["plan"], transcript=transcript, state=kept["state"])
    runtime.gateway.default = model.answer
    assert (await runtime.ask("What is my dog called?", "sess_2"))["response"] == "Rex"
    assert model.summaries == made


async def test_the_transcript_itself_stays_whole(runtime: Driver):
    await open_small(runtime)
    await talk(runtime, Model(), 12)
    assert sum(len(one["messages"]) for one in runtime.gateway.checkpoints) == 24


async def test_without_auto_compact_nothing_is_asked_and_the_newest_turns_go(runtime: Driver):
    model = Model()
    document = PROFILE.replace("max_tokens: 2000", "max_tokens: 2000, auto_compact: false")
    await runtime.open(profile="small", documents={"small": document})
    await talk(runtime, model, 20)
    assert model.summaries == 0
    assert model.longest <= 2200


def step(number: int, size: int) -> list[dict[str, Any]]:
    call = {"id": f"c{number}", "tool": "bash", "arguments": {}}
    return [
        {"role": "assistant", "content": "x" * (size // 4), "tool_calls": [call]},
        {"role": "tool", "tool_call_id": f"c{number}", "name": "bash", "content": "y" * size},
    ]


@st.composite
def transcripts(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for turn in range(draw(st.integers(1, 6))):
        messages.append({"role": "user", "content": "q" * draw(st.integers(1, 400))})
        for number in range(draw(st.integers(0, 5))):
            messages += step(100 * turn + number, draw(st.integers(1, 6000)))
        messages.append({"role": "assistant", "content": "a" * draw(st.integers(1, 400))})
    return messages[: draw(st.sampled_from([len(messages), len(messages) - 1]))]


@given(transcripts(), st.integers(50, 5000))
@settings(max_examples=200, deadline=None)
def test_a_view_is_valid_and_fits_or_is_the_least_there_is(messages: list[dict[str, Any]], room: int):
    before = [dict(one) for one in messages]
    view = fitted(messages, room)
    assert messages == before
    assert view[0]["role"] == "user"
    opened: set[str] = set()
    for one in view:
        if one["role"] == "tool":
            assert one["tool_call_id"] in opened
            opened.discard(one["tool_call_id"])
            continue
        assert not opened
        opened = {call["id"] for call in one.get("tool_calls") or ()}
    last_user = max(index for index, one in enumerate(messages) if one["role"] == "user")
    assert messages[last_user] in view
    least = sum(one["role"] == "assistant" for one in view) <= 2 and sum(one["role"] == "user" for one in view) == 1
    assert tokens_of(view) <= room or least


@given(transcripts(), st.integers(0, 5000))
def test_turns_are_kept_whole(messages: list[dict[str, Any]], room: int):
    start = newest_turns_from(messages, room)
    assert start == 0 or messages[start]["role"] == "user"


async def test_a_state_that_does_not_fit_the_transcript_is_not_taken():
    context = SimpleContext()
    await context.set_messages([{"role": "user", "content": "a"}])
    for state in ({"summary": "x", "upto": 2}, {"summary": 3, "upto": 1}, {"upto": 1}, {}):
        context.set_state(state)
        assert context.get_state() == {}
    context.set_state({"summary": "x", "upto": 1})
    assert context.get_state() == {"summary": "x", "upto": 1}
    await context.set_messages([])
    assert context.get_state() == {}


async def test_an_ordinary_conversation_is_sent_as_it_is(runtime: Driver):
    await open_small(runtime)
    runtime.gateway.scripts.extend([says("hello"), says("again")])
    await runtime.ask("one")
    await runtime.ask("two")
    assert [one["content"] for one in runtime.gateway.requests[-1]["messages"][1:]] == ["one", "hello", "two"]

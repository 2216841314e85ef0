"""What a host offers to modules: the table of docs/modules.md, asked for by a module as it mounts and as a turn runs."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from amplifier_api_server.runtime.bundles.library import BUNDLED
from amplifier_api_server.runtime.turn_port import CallClock, Turn, TurnPort, call_clock_stopped
from tests.runtime.fake_gateway import says
from tests.runtime.hosting import Hosted, hosted, plan, text_of_message, tokens

# Asks as it mounts, and again whenever it is told to.
ASKER = """
ASKED = {}

async def mount(coordinator, config=None):
    async def ask(event, data):
        names = ("session.working_dir", "mention_resolver", "session.spawn", "session.resume", "self_delegation_depth")
        ASKED.update({name: coordinator.get_capability(name) for name in names})
        ASKED["session_dir"] = hasattr(coordinator, "session_dir")
        ASKED["agents"] = coordinator.config.get("agents")
        ASKED["depth"] = (config or {}).get("depth")
        coordinator.register_capability("asker.own", coordinator)
    await ask("", {})
    coordinator.hooks.register("prompt:submit", ask, name="asker")
"""

# Keeps a number beside its messages.
CONTEXT = """
async def mount(coordinator, config=None):
    await coordinator.mount("context", Context())

class Context:
    def __init__(self):
        self.messages, self.state = [], {}

    async def add_message(self, message):
        self.messages.append(message)
        self.state["seen"] = self.state.get("seen", 0) + 1

    async def get_messages(self):
        return list(self.messages)

    async def set_messages(self, messages):
        self.messages = list(messages)

    async def get_messages_for_request(self, token_budget=None, provider=None):
        return list(self.messages)

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = dict(state)
"""


@pytest.fixture
async def session() -> AsyncIterator[Hosted]:
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        async with hosted(Path(folder)) as one:
            one.module("hooks-asker", ASKER)
            one.module("context-counting", CONTEXT)
            yield one


async def test_everything_is_there_before_the_modules_mount(session: Hosted):
    host = await session.open(plan(hooks=[{"module": "hooks-asker", "config": {}}]))
    import amplifier_module_hooks_asker  # type: ignore[import-not-found]

    asked = amplifier_module_hooks_asker.ASKED
    assert asked["session.working_dir"] == str(session.folder / "sess_1")
    assert asked["mention_resolver"].resolve("@nothing.md") is None
    assert callable(asked["session.spawn"])
    assert callable(asked["session.resume"])
    assert asked["self_delegation_depth"] == 0
    assert set(asked["agents"]) == {"helper", "planner"}
    assert asked["session_dir"] is False
    assert host.capability("asker.own") is not None


async def test_a_module_that_rewrites_its_configuration_does_not_rewrite_the_plan(session: Hosted):
    made = plan()
    host = await session.open(made)
    host.agents["helper"]["instruction"] = "Something else."
    assert made == plan()


async def test_mentions_mean_files_of_the_folder_and_of_the_plans_namespaces(session: Hosted):
    host = await session.open(plan(namespaces={"foundation": {"tree": "", "path": "."}}))
    (session.folder / "sess_1" / "notes.md").write_text("x")
    resolver = host.capability("mention_resolver")
    assert resolver.resolve("@notes") == session.folder / "sess_1" / "notes.md"
    assert resolver.resolve("@foundation:profiles") in (None, BUNDLED / "profiles")
    assert resolver.bundles["foundation"].base_path == BUNDLED / "."
    assert resolver.resolve("@../outside") is None


async def test_what_the_prompt_mentions_of_the_folder_is_read_anew_at_each_request(session: Hosted):
    await session.open(plan(system_prompt="You are the lead. Mind @RULES.md", mentions=["@RULES.md"]))
    rules = session.folder / "sess_1" / "RULES.md"
    await session.ask("one")
    rules.write_text("Be brief.")
    await session.ask("two")
    rules.write_text("Be long.")
    await session.ask("three")
    prompts = [text_of_message(body["messages"][0]) for body in session.gateway.requests]
    block = '\n\n---\n\n<context_file paths="@RULES.md">\n{}\n</context_file>'
    assert prompts == [
        "You are the lead. Mind @RULES.md" + added
        for added in ("", block.format("Be brief."), block.format("Be long."))
    ]


async def test_a_contexts_own_state_is_kept_and_rolled_back_with_the_turn(session: Hosted):
    made = plan()
    made["session"]["context"] = {"module": "context-counting", "config": {}}
    await session.open(made)
    session.gateway.default = says("ok")
    turn = await session.ask()
    kept = session.gateway.checkpoints[-1]["state"]
    assert kept["context"] == {"seen": 2}
    session.gateway.checkpoint_answers.append(409)
    await session.ask("lost")
    assert session.host.state() == kept
    await session.open(made, transcript=turn.after, state=kept)
    assert session.host.state() == kept


async def test_a_state_that_is_too_large_is_left_out(session: Hosted):
    host = await session.open(plan())
    host._coordinator.todo_state = ["x" * 1_000_000]
    assert host.state() == {}
    assert tokens(await session.ask()) == "Hello world"


async def test_nothing_is_offered_any_more_when_a_session_has_closed(session: Hosted):
    host = await session.open(plan(hooks=[{"module": "hooks-asker", "config": {}}]))
    coordinator = host._coordinator
    names = coordinator.to_dict()["capabilities"]
    assert "asker.own" in names
    await session.close()
    assert [coordinator.get_capability(name) for name in names] == [None] * len(names)


async def test_quiet_work_shows_no_token():
    turn = Turn("req_1", lambda: None)
    turn.token("a")
    with TurnPort.quietly():
        turn.token("b")
    turn.token("c")
    assert turn.step_text == "ac"
    assert turn.log.last == 2


def test_a_clock_that_stands_is_never_over_and_goes_on_where_it_stood():
    clock = CallClock(0.0)
    assert clock.is_over
    with clock.running(), call_clock_stopped(), call_clock_stopped():
        assert not clock.is_over
        assert clock.wait_seconds == CallClock.STANDING_SECONDS
    assert clock.is_over
    with call_clock_stopped():
        assert clock.is_over

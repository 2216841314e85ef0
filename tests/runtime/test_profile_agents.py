from __future__ import annotations

from pathlib import Path

import pytest

from amplifier_api_server.runtime.failures import BadRequest
from tests.runtime.bundle_trees import SESSION, Trees, bundle

FISH = "git+https://git.example/birds/fish@v1"
RINGER = """---
meta: {name: ringer, description: Rings birds, model_role: [fast, general]}
provider_preferences: [{provider: openai, model: heron-*}]
agents: none
tools:
- module: tool-search
  config: {a: 1}
session: {orchestrator: {module: loop-basic, config: {b: 2}}, raw: true}
---
Ring them. @watch:rules.md
"""


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path / "c")


def with_agents(trees: Trees, agents: str, **files: str) -> Trees:
    trees.image({"bundle.md": bundle(rest=f"{SESSION}agents: {agents}\n")} | files)
    return trees


@pytest.mark.parametrize("name", ["watch:ringer", "ringer"])
def test_an_agent_is_a_file_whose_meta_and_modules_are_kept_and_whose_words_stay_raw(trees: Trees, name: str):
    plan = with_agents(trees, f"{{include: ['{name}']}}", **{"agents/ringer.md": RINGER, "rules.md": "x"}).plan()
    assert plan["agents"] == {
        name: {
            "name": name,
            "description": "Rings birds",
            "model_role": ["fast", "general"],
            "provider_preferences": [{"provider": "openai", "model": "heron-*"}],
            "agents": "none",
            "instruction": "Ring them. @watch:rules.md",
            "tools": [{"module": "tool-search", "config": {"a": 1}}],
            "session": {"orchestrator": {"module": "loop-basic", "config": {"b": 2}}},
        }
    }
    assert plan["modules"]["tool-search"] == "own"


def test_an_agent_defined_in_place_is_filled_from_a_file_of_its_name(trees: Trees):
    agents = "{ringer: {description: Mine, tools: [tool-web]}, lone: {instruction: Alone.}}"
    found = with_agents(trees, agents, **{"agents/ringer.md": RINGER}).plan()["agents"]
    assert (found["ringer"]["description"], found["ringer"]["model_role"]) == ("Mine", ["fast", "general"])
    assert found["ringer"]["tools"] == [{"module": "tool-web", "config": {}}]
    assert found["lone"] == {"name": "lone", "description": "", "instruction": "Alone."}


def test_agents_come_from_what_is_included_and_the_last_one_of_a_name_wins(trees: Trees):
    files = {
        "bundle.md": bundle(
            rest=f"includes: ['{FISH}']\n{SESSION}agents: {{include: ['fish:angler'], 'fish:net': {{description: Ours}}}}\n"
        )
    }
    fish = {
        "bundle.md": "---\nbundle: {name: fish}\nagents: {include: ['fish:net']}\n---\n",
        "agents/net.md": "---\nmeta: {description: Theirs}\n---\nNet.",
        "agents/angler.md": "---\ndescription: Flat\n---\nAngle.",
    }
    trees.image(files, {FISH: fish})
    agents = trees.plan()["agents"]
    assert {name: (one["description"], one["instruction"]) for name, one in agents.items()} == {
        "fish:net": ("Ours", "Net."),
        "fish:angler": ("Flat", "Angle."),
    }


@pytest.mark.parametrize(("access", "left"), [("all", ["a", "b"]), ("none", []), ("[b]", ["b"])])
def test_agents_as_text_or_list_say_which_of_them_may_be_used(trees: Trees, access: str, left: list[str]):
    files = {
        "bundle.md": bundle(rest=f"includes: [./roster.yaml]\n{SESSION}agents: {access}\n"),
        "roster.yaml": "bundle: {name: roster}\nagents: {a: {instruction: A.}, b: {instruction: B.}}\n",
    }
    trees.image(files)
    assert list(trees.plan()["agents"]) == left


def test_an_agent_sees_the_names_of_its_own_repository_where_they_mean_something_else(trees: Trees):
    other = "git+https://git.example/birds/fish@v2"
    roots = {
        uri: {"bundle.md": "---\nbundle: {name: fish}\nagents: {include: ['fish:net']}\n---\n"} for uri in (FISH, other)
    }
    for uri, files in roots.items():
        files["agents/net.md"] = f"---\nmeta: {{description: x}}\n---\n{uri}"
    trees.image({"bundle.md": bundle(rest=f"includes: ['{FISH}', '{other}']\n{SESSION}")}, roots)
    plan = trees.plan()
    assert plan["namespaces"]["fish"] == {"tree": "tree1", "path": ""}
    assert plan["agents"]["fish:net"]["instruction"] == other
    assert plan["agents"]["fish:net"]["namespaces"] == {"fish": {"tree": "tree2", "path": ""}}


@pytest.mark.parametrize(
    ("agents", "what"),
    [
        ("{include: [gone]}", "watch/bundle.md:4: there is no agent 'gone'"),
        ("{include: ['nobody:gone']}", "there is no agent 'nobody:gone'"),
        ("{include: ['watch:../bundle']}", "there is no agent"),
        ("{include: ['watch:../../tree1/x']}", "there is no agent"),
        ("{include: x}", "agents.include"),
        ("{include: [{}]}", "agents.include"),
        ("sometimes", "agents should be"),
        ("[1]", "agents should be"),
        ("{a: {tools: 3}}", "watch/bundle.md:4: tools should be a list"),
        ("{a: {tools: [tool-gone]}}", "watch/bundle.md:4: there is no module 'tool-gone'"),
        ("{a: {session: 3}}", "session should be a mapping"),
    ],
)
def test_what_is_wrong_with_agents_is_said_with_file_and_line(trees: Trees, agents: str, what: str):
    with pytest.raises(BadRequest) as caught:
        with_agents(trees, agents).compiled()
    assert what in caught.value.failure.detail


def test_an_agents_wrong_tool_is_said_with_its_own_file_and_line(trees: Trees):
    with pytest.raises(BadRequest, match=r"watch/agents/a\.md:4: .*'tool-gone'"):
        with_agents(trees, "{include: [a]}", **{"agents/a.md": "---\nmeta: {}\ntools:\n- tool-gone\n---\n"}).compiled()

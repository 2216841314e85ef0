from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from amplifier_api_server.runtime.bundles.compiling import compile_profile, default_specs
from amplifier_api_server.runtime.bundles.library import Library
from amplifier_api_server.runtime.bundles.plans import check_plan
from amplifier_api_server.runtime.failures import BadRequest, Missing
from tests.runtime.bundle_trees import SESSION, Trees, bundle
from tests.runtime.conftest import Driver

EXTENDS = "  extends: foundation:base\n"


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path / "c")


def profile(head: str = "", body: str = "", **sections: object) -> str:
    more = "".join(f"{name}: {json.dumps(value)}\n" for name, value in sections.items())
    return f"---\nprofile:\n  name: x\n{head}{more}---\n{body}"


def old(trees: Trees, **profiles: str) -> Trees:
    """A collection in the older format."""
    trees.image({f"profiles/{stem}.md": text for stem, text in profiles.items()}, name="birds")
    return trees


def modules_of(items: list[dict[str, Any]]) -> list[str]:
    return [item["module"] for item in items]


@pytest.mark.parametrize("name", [spec.name for spec in default_specs(Library())])
def test_a_bundled_profile_compiles_to_a_plan_that_is_json_and_comes_back_unchanged(name: str):
    compiled = compile_profile(Library(), name)
    plan = compiled.plan
    assert json.loads(json.dumps(plan)) == plan
    assert check_plan(plan) == plan
    assert compiled.warnings == []
    assert (plan["version"], plan["profile"], plan["isolated"]) == (2, name, False)
    assert set(plan["modules"].values()) == {"own"}
    assert len(plan["system_prompt"]) > 300


def test_what_people_want_is_bundled():
    specs = {spec.name.removeprefix("foundation:"): spec for spec in default_specs(Library())}
    assert set(specs) == {"base", "coder", "researcher", "reviewer"}
    assert all(spec.description and spec.version for spec in specs.values())
    assert "tool-web" in modules_of(compile_profile(Library(), "researcher").plan["tools"])
    reviewer = compile_profile(Library(), "reviewer").plan
    assert "tool-bash" not in modules_of(reviewer["tools"])
    assert reviewer["tools"][0] == {"module": "tool-filesystem", "config": {"allowed_write_paths": []}}
    assert set(compile_profile(Library(), "coder").plan["agents"]) == {"explorer", "critic"}


def test_a_bundle_without_a_provider_gets_the_hosts(trees: Trees):
    trees.image({"bundle.md": bundle()})
    plan = trees.plan()
    assert plan["providers"] == [{"module": "provider-openai", "config": {}}]
    assert plan["model"] == "some-model"


def test_the_first_providers_model_is_the_sessions(trees: Trees):
    provider = "providers: [{module: provider-openai, config: {default_model: heron-2}}]\n"
    trees.image({"bundle.md": bundle(rest=SESSION + provider)})
    assert trees.plan()["model"] == "heron-2"


@pytest.mark.parametrize("name", ["bundle.md", "bundle.yaml", "bundle.yml"])
def test_a_repositorys_root_bundle_is_a_profile_by_its_own_name(trees: Trees, name: str):
    text = bundle("heron", body="Watch.") if name.endswith(".md") else f"\ufeffbundle: {{name: heron}}\n{SESSION}"
    trees.image({name: text})
    assert trees.plan("watch:heron")["system_prompt"] == ("Watch." if name.endswith(".md") else "")


def test_profiles_are_found_by_convention_and_what_is_no_bundle_is_passed_over(trees: Trees):
    files = {
        "bundle.md": bundle("root"),
        "bundles/one.yaml": f"bundle: {{name: other-name}}\n{SESSION}",
        "bundles/two/bundle.md": bundle("two"),
        "bundles/README.md": "# Bundles",
        "bundles/notes.md": "Only prose.",
        "bundles/data.yaml": "steps: [1]\n",
        "profiles/three.md": profile(EXTENDS),
    }
    trees.image(files)
    assert set(trees.library().collections[1].profiles()) == {"root", "one", "two", "three"}


def test_a_collection_may_begin_at_one_bundle_of_a_repository(trees: Trees):
    files = {
        "bundle.md": bundle("root", body="Root."),
        "bundles/small.yaml": "bundle: {name: small}\nincludes: [root]\n",
    }
    trees.image(files, subdirectory="bundles/small.yaml")
    assert list(trees.library().collections[1].profiles()) == ["small"]
    assert trees.plan("watch:small")["system_prompt"] == "Root."


def test_a_tenants_own_profile_has_a_plain_name_and_draws_on_collections(trees: Trees):
    trees.image({"bundle.md": bundle(body="Watch.")})
    trees.documents = {
        "mine": "bundle: {name: mine}\nincludes: ['watch:watch']\ntools: [tool-todo]\n",
        "more": "---\nbundle: {name: more}\nincludes: [mine]\n---\nMine alone.",
        "older": profile("  extends: mine\n"),
    }
    mine = trees.plan("mine")
    assert (mine["profile"], mine["system_prompt"], modules_of(mine["tools"])) == ("mine", "Watch.", ["tool-todo"])
    assert trees.plan("more")["system_prompt"] == "Mine alone."
    assert trees.plan("older")["system_prompt"] == "Watch."


def test_a_tenants_own_profile_comes_before_a_bundled_one_of_its_name(trees: Trees):
    trees.documents = {"base": f"---\nbundle: {{name: base}}\n{SESSION}---\nMine."}
    assert trees.plan("base")["system_prompt"] == "Mine."
    assert trees.plan("foundation:base")["system_prompt"].startswith("You are a capable")


def test_a_profile_that_nobody_has_is_not_found(trees: Trees):
    for name in ("nobody", "birds:nobody", "foundation:nobody", "a:b:c", ""):
        with pytest.raises(Missing) as caught:
            trees.compiled(name)
        assert caught.value.failure.code == "profile_not_found"


def test_context_is_a_part_of_the_prompt(trees: Trees):
    trees.image({"bundle.md": bundle(body="Watch.")})
    prompt = trees.compiled(bird="heron").plan["system_prompt"]
    assert prompt.startswith("Watch.\n\n")
    assert '<session_context>\n{"bird":"heron"}\n</session_context>' in prompt
    with pytest.raises(BadRequest, match="context_too_large"):
        trees.compiled(bird="x" * 100_001)


def test_sections_that_mean_nothing_are_told_and_ignored(trees: Trees):
    trees.image({"bundle.md": bundle(rest=SESSION + "flavour: sweet\n")})
    assert trees.compiled().warnings == ["watch/bundle.md:4: section 'flavour' means nothing here and is ignored"]


def test_a_bundle_without_orchestrator_and_context_is_no_profile(trees: Trees):
    trees.image({"bundle.md": bundle(rest="tools: [tool-todo]\n")})
    with pytest.raises(BadRequest, match=r"session\.orchestrator should name a module"):
        trees.compiled()


def test_what_a_module_does_to_its_configuration_is_not_the_next_sessions(trees: Trees):
    agents = "agents: {a: {provider_preferences: [{model: x}]}}\n"
    tools = "tools: [{module: tool-bash, config: {list: [1]}}]\n"
    trees.image({"bundle.md": bundle(rest=SESSION + tools + agents)})
    first = trees.plan()
    untouched = json.loads(json.dumps(first))
    first["tools"][0]["config"]["list"].append(2)
    first["agents"]["a"]["provider_preferences"][0]["model"] = "y"
    first["session"]["context"]["config"]["z"] = 1
    assert trees.plan() == untouched


def test_spawn_is_kept_with_its_modules_checked(trees: Trees):
    spawn = "spawn: {exclude_tools: [tool-bash], tools: [tool-todo, {module: tool-search, config: {a: 1}}]}\n"
    trees.image({"bundle.md": bundle(rest=SESSION + spawn)})
    plan = trees.plan()
    assert plan["spawn"] == {
        "exclude_tools": ["tool-bash"],
        "tools": ["tool-todo", {"module": "tool-search", "config": {"a": 1}}],
    }
    assert plan["modules"]["tool-search"] == "own"


# The older format.


def test_a_profile_takes_over_what_it_extends_and_adds_its_own(trees: Trees):
    tools = [{"module": "tool-bash", "config": {"timeout": 5}}]
    exclude = {"tools": ["tool-todo", "tool-search"]}
    plan = old(trees, watch=profile(EXTENDS, "You watch birds.", tools=tools, exclude=exclude)).plan("birds:watch")
    assert plan["tools"] == [
        {"module": "tool-bash", "config": {"timeout": 5}},
        {"module": "tool-filesystem", "config": {}},
    ]
    assert (plan["system_prompt"], plan["profile"]) == ("You watch birds.", "birds:watch")


def test_a_profile_without_a_body_keeps_the_prompt_that_it_inherits(trees: Trees):
    assert old(trees, watch=profile(EXTENDS)).plan("birds:watch")["system_prompt"].startswith("You are a capable")


def test_extends_without_a_namespace_is_in_the_same_collection_and_chains(trees: Trees):
    old(
        trees,
        base=profile(EXTENDS, "first"),
        middle=profile("  extends: base\n"),
        other=profile("", "", tools=["tool-web"]),
        watch=profile("  extends: [middle, other]\n"),
    )
    plan = trees.plan("birds:watch")
    assert plan["system_prompt"] == "first"
    assert modules_of(plan["tools"])[-1] == "tool-web"


@pytest.mark.parametrize(
    ("head", "sections", "provider"),
    [
        (EXTENDS + "  model: openai/heron-2\n", {}, "provider-openai"),
        (EXTENDS + "  model: anthropic/heron-2\n", {}, "provider-anthropic"),
        (EXTENDS + "  model: heron-2\n", {}, "provider-openai"),
        (
            EXTENDS + "  model: two/heron-2\n",
            {"providers": [{"module": "provider-vllm", "id": "two"}]},
            "provider-vllm",
        ),
    ],
)
def test_the_profiles_model_becomes_its_providers(trees: Trees, head: str, sections: dict[str, Any], provider: str):
    plan = old(trees, watch=profile(head, **sections)).plan("birds:watch")
    assert plan["model"] == "heron-2"
    assert (plan["providers"][0]["module"], plan["providers"][0]["config"]) == (provider, {"default_model": "heron-2"})


def test_all_agents_of_the_older_format_are_those_of_its_collection(trees: Trees):
    agent = "---\nmeta: {name: ringer, description: Rings birds}\n---\nRing them."
    trees.image({"profiles/watch.md": profile(EXTENDS, agents="all"), "agents/ringer.md": agent}, name="birds")
    assert trees.plan("birds:watch")["agents"] == {
        "ringer": {"name": "ringer", "description": "Rings birds", "instruction": "Ring them."}
    }


def test_mentions_of_the_older_format_begin_at_the_collection(trees: Trees):
    body = "See @context/rules.md and @birds:context/more, not `@context/code.md`."
    files = {"rules.md": "Rule one.", "more.md": "More: @context/deep.md", "deep.md": "Deep.", "code.md": "Never."}
    trees.image(
        {"profiles/watch.md": profile(EXTENDS, body)} | {f"context/{name}": text for name, text in files.items()},
        name="birds",
    )
    prompt = trees.plan("birds:watch")["system_prompt"]
    assert '<context_file paths="@context/rules.md">\nRule one.\n</context_file>' in prompt
    assert "Never." not in prompt


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("no frontmatter", "profiles/watch.md", "mapping `bundle`"),
        ("---\nprofile: x\n---\n", "watch.md", "mapping"),
        ("---\nprofile:\n  name: x\n", "watch.md:1", "no end"),
        ("---\nprofile: [\n---\n", "watch.md:", ""),
        ("---\n- a\n---\n", "watch.md:2", "mapping"),
        (profile(), "watch.md", "session.orchestrator"),
        (profile(EXTENDS, tools=7), "watch.md:5", "tools should be a list"),
        (profile(EXTENDS, tools=[{"modul": "x"}]), "watch.md:5", "item 1"),
        (profile(EXTENDS, tools=[{"module": "tool-gone"}]), "watch.md:5", "'tool-gone'"),
        (profile(EXTENDS, tools=[{"module": "../x"}]), "watch.md:5", "item 1"),
        (profile(EXTENDS, tools=[{"module": "tool-bash", "config": 3}]), "watch.md:5", "config"),
        (profile(EXTENDS, tools=[{"id": "nobody"}]), "watch.md:5", "'nobody'"),
        (profile(EXTENDS, agents=["nobody"]), "watch.md:5", "'nobody'"),
        (profile(EXTENDS, agents=7), "watch.md:5", "agents"),
        (profile(EXTENDS, exclude={"tools": 3}), "watch.md:5", "exclude"),
        (profile("  extends: 3\n"), "watch.md:4", "extends"),
        (profile("  extends: gone\n"), "watch.md:4", "'birds:gone'"),
        (profile(EXTENDS + "  model: nobody/x\n", providers=["provider-openai"]), "watch.md:5", "'nobody'"),
        (profile(EXTENDS + "  model: [x]\n"), "watch.md:5", "provider/model"),
        (profile(EXTENDS, session=[1]), "watch.md:5", "session"),
        (profile(EXTENDS, session={"orchestrator": {"module": "loop-gone"}}), "watch.md:5", "loop-gone"),
        (profile(EXTENDS, session={"orchestrator": 7}), "watch.md:5", "session.orchestrator"),
        (profile(EXTENDS, context={"include": "x"}), "watch.md:5", "context.include"),
        (profile(EXTENDS, includes="x"), "watch.md:5", "includes"),
        (profile(EXTENDS, includes=[{"bundl": "x"}]), "watch.md:5", "include"),
        (profile(EXTENDS, spawn=7), "watch.md:5", "spawn"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(trees: Trees, text: str, where: str, what: str):
    with pytest.raises(BadRequest) as caught:
        old(trees, watch=text).compiled("birds:watch")
    assert caught.value.failure.code == "profile_invalid"
    assert where in caught.value.failure.detail
    assert what in caught.value.failure.detail


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("bundle: {name: x}\nsession:\n  orchestrator: 7\n", "bundle.yaml:3"),
        ("bundle: {name: x}\ntools:\n- tool-bash\n- {}\n", "bundle.yaml:4"),
        ("bundle:\n  - x\n", "bundle.yaml:1"),
        ("bundle: {name: x}\n\tx: 1\n", "bundle.yaml:2"),
        ("bundle: {name: x}\nincludes: [x: {}, *y]\n", "bundle.yaml:2"),
    ],
)
def test_yaml_alone_has_lines_too(trees: Trees, text: str, where: str):
    trees.image({"bundle.yaml": text}, name="x")
    with pytest.raises(BadRequest, match=f"watch/{where}:"):
        trees.compiled("x:x")


def test_a_circle_of_extends_is_told_as_one(trees: Trees):
    old(trees, watch=profile("  extends: other\n"), other=profile("  extends: watch\n"))
    with pytest.raises(BadRequest, match="birds:watch -> birds:other -> birds:watch"):
        trees.compiled("birds:watch")


def test_extending_a_collection_that_is_not_there_says_what(trees: Trees):
    with pytest.raises(Missing, match="'fish:base'"):
        old(trees, watch=profile("  extends: fish:base\n")).compiled("birds:watch")


# Plans that come back.

V1 = {
    "version": 1,
    "profile": "foundation:base",
    "model": "m",
    "system_prompt": "Hi.",
    "session": {"orchestrator": {"module": "loop-streaming"}, "context": {"module": "context-simple"}},
    "providers": [{"module": "provider-openai", "config": {}}],
    "tools": [{"module": "tool-bash", "config": {}}],
    "hooks": [],
    "agents": {},
}


def test_a_plan_of_the_version_before_is_still_one():
    plan = check_plan(V1)
    assert plan["modules"]["tool-bash"] == "own"
    assert (plan["isolated"], plan["mentions"], plan["system_prompt"]) == (False, [], "Hi.")


def test_a_plan_of_the_version_before_finds_the_modules_of_its_collection(trees: Trees):
    image = trees.image({"bundle.md": bundle(), "modules/x/amplifier_module_tool_rings/__init__.py": ""})
    plan = check_plan(V1 | {"tools": [{"module": "tool-rings"}]}, [image], trees.folder)
    assert plan["isolated"]
    assert plan["modules"]["tool-rings"]["subdirectory"] == "modules/x"


@pytest.mark.parametrize(
    "change",
    [
        {"version": 3},
        {"session": {}},
        {"tools": None},
        {"tools": [{}]},
        {"model": 3},
        {"agents": []},
        {"modules": 3},
        {"mentions": "x"},
    ],
)
def test_what_is_no_plan_is_refused(change: dict[str, Any]):
    with pytest.raises(BadRequest, match="plan_invalid"):
        check_plan(V1 | change)


@pytest.mark.parametrize(
    ("profile", "tools"),
    [
        ("base", {"bash", "read_file", "write_file", "edit_file", "glob", "grep", "todo"}),
        ("coder", {"bash", "read_file", "write_file", "edit_file", "glob", "grep", "todo", "delegate"}),
        ("researcher", {"bash", "read_file", "write_file", "edit_file", "glob", "grep", "todo", "web_fetch"}),
        ("reviewer", {"read_file", "glob", "grep", "todo"}),
    ],
)
async def test_a_session_of_a_bundled_profile_has_its_tools_and_answers(runtime: Driver, profile: str, tools: set[str]):
    await runtime.open(profile=f"foundation:{profile}")
    assert (await runtime.ask())["status"] == "completed"
    assert {tool["function"]["name"] for tool in runtime.gateway.requests[0]["tools"]} == tools

"""Whose implementation a module id means, and where it is imported from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from amplifier_api_server.runtime.bundles.plans import sources_of
from amplifier_api_server.runtime.failures import BadRequest
from tests.runtime.bundle_trees import HOME, SESSION, Trees, bundle, module_files

RINGS = "git+https://git.example/birds/tool-rings@main"


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path / "c")


def tool(module_id: str, source: str | None = None, **more: Any) -> str:
    named = f", source: '{source}'" if source else ""
    others = "".join(f", {key}: {value}" for key, value in more.items())
    return f"{SESSION}tools:\n- {{module: {module_id}{named}{others}}}\n"


@pytest.mark.parametrize("use", ["own", "source"])
def test_which_implementation_runs_is_as_it_was_installed(trees: Trees, use: str):
    image = trees.image(
        {"bundle.md": bundle(rest=tool("tool-bash", RINGS))}, {RINGS: module_files("tool-bash")}, modules=use
    )
    plan = trees.plan()
    theirs = {"uri": RINGS, "subdirectory": "", "tree": image.sources[0].tree}
    assert plan["modules"]["tool-bash"] == ("own" if use == "own" else theirs)
    assert plan["isolated"] == (use == "source")
    assert plan["modules"]["loop-basic"] == "own"
    assert plan["tools"] == [{"module": "tool-bash", "config": {}}]


def test_a_module_that_the_runtime_lacks_comes_from_its_source(trees: Trees):
    trees.image(
        {"bundle.md": bundle(rest=tool("tool-rings", f"{RINGS}#subdirectory=m"))},
        {RINGS: module_files("tool-rings", "m/")},
    )
    plan = trees.plan()
    assert plan["modules"]["tool-rings"] == {"uri": RINGS, "subdirectory": "m", "tree": "tree1"}
    assert plan["isolated"]


@pytest.mark.parametrize("source", ["./modules/rings", f"{HOME}#subdirectory=modules/rings", None])
def test_a_module_of_the_same_repository_is_found(trees: Trees, source: str | None):
    trees.image({"bundle.md": bundle(rest=tool("tool-rings", source))} | module_files("tool-rings", "modules/rings/"))
    assert trees.plan()["modules"]["tool-rings"] == {"uri": HOME, "subdirectory": "modules/rings", "tree": "tree0"}


def test_a_relative_source_begins_at_the_file_that_says_it(trees: Trees):
    files = {"bundle.md": bundle(rest=f"includes: ['{RINGS}']\n{SESSION}")}
    theirs = {"bundle.yaml": "bundle: {name: r}\nincludes: [./behaviors/b.yaml]\n"}
    theirs["behaviors/b.yaml"] = "bundle: {name: b}\ntools: [{module: tool-rings, source: ../modules/rings}]\n"
    trees.image(files, {RINGS: theirs | module_files("tool-rings", "modules/rings/")})
    assert trees.plan()["modules"]["tool-rings"] == {"uri": RINGS, "subdirectory": "modules/rings", "tree": "tree1"}


@pytest.mark.parametrize("base", ["", "src/"])
def test_a_package_that_does_not_say_how_it_is_built_is_imported_from_where_it_lies(trees: Trees, base: str):
    files = {f"m/{base}amplifier_module_tool_rings/__init__.py": "", "m/pyproject.toml": "[project]\nname='x'\n"}
    trees.image({"bundle.md": bundle(rest=tool("tool-rings", f"{RINGS}#subdirectory=m"))}, {RINGS: files})
    assert trees.plan()["modules"]["tool-rings"] == {
        "uri": RINGS,
        "subdirectory": f"m/{base}".rstrip("/"),
        "tree": "tree1",
        "path": True,
    }


def test_a_module_that_was_installed_with_another_needs_no_source(trees: Trees):
    packages = trees.tree({"amplifier_module_tool_rings/__init__.py": ""})
    trees.image({"bundle.md": bundle(rest=tool("tool-rings"))}, packages=packages)
    assert trees.plan()["modules"]["tool-rings"]["tree"] == packages


def test_agents_modules_are_in_the_table_and_isolate_the_session(trees: Trees):
    agents = f"{SESSION}agents: {{a: {{tools: [{{module: tool-rings, source: '{RINGS}'}}]}}}}\n"
    trees.image({"bundle.md": bundle(rest=agents)}, {RINGS: module_files("tool-rings")})
    plan = trees.plan()
    assert plan["isolated"]
    assert plan["modules"]["tool-rings"]["uri"] == RINGS
    assert plan["agents"]["a"]["tools"] == [{"module": "tool-rings", "config": {}}]


def test_one_id_means_one_implementation_in_all_of_a_session(trees: Trees):
    other = "git+https://git.example/birds/tool-rings@v2"
    agents = f"agents: {{a: {{tools: [{{module: tool-rings, source: '{other}'}}]}}}}\n"
    sources = {RINGS: module_files("tool-rings"), other: module_files("tool-rings")}
    trees.image({"bundle.md": bundle(rest=tool("tool-rings", RINGS) + agents)}, sources)
    compiled = trees.compiled()
    assert compiled.plan["modules"]["tool-rings"]["uri"] == RINGS
    assert "is another one at watch/bundle.md:5" in compiled.warnings[0]


def test_a_tenants_own_profile_uses_modules_of_its_collections(trees: Trees):
    trees.image({"bundle.md": bundle(rest=tool("tool-rings", RINGS))}, {RINGS: module_files("tool-rings")})
    trees.documents = {"mine": f"bundle: {{name: mine}}\n{tool('tool-rings', RINGS)}"}
    assert trees.plan("mine")["modules"]["tool-rings"]["uri"] == RINGS


def test_what_an_own_profile_includes_keeps_the_choice_of_its_collection(trees: Trees):
    trees.image(
        {"bundle.md": bundle(rest=tool("tool-bash", RINGS))}, {RINGS: module_files("tool-bash")}, modules="source"
    )
    trees.documents = {
        "mine": "bundle: {name: mine}\nincludes: ['watch:watch']\ntools: [{module: tool-bash, config: {a: 1}}]\n"
    }
    assert trees.plan("mine")["modules"]["tool-bash"]["uri"] == RINGS


@pytest.mark.parametrize(
    ("source", "what"),
    [
        (RINGS.replace("main", "gone"), f"watch/bundle.md:5: {RINGS.replace('main', 'gone')} is not installed"),
        (f"{RINGS}#subdirectory=gone", "there is no folder 'gone'"),
        ("../../x", "leads out"),
        ("/abs/olute", "module 'tool-rings': "),
        (None, "there is no module 'tool-rings'"),
    ],
)
def test_a_module_that_is_not_there_is_said_with_the_line_that_names_it(trees: Trees, source: str | None, what: str):
    trees.image({"bundle.md": bundle(rest=tool("tool-rings", source))}, {RINGS: module_files("tool-rings")})
    with pytest.raises(BadRequest) as caught:
        trees.compiled()
    assert what in caught.value.failure.detail
    assert caught.value.failure.detail.startswith("watch/bundle.md:5: ")


def test_an_optional_module_that_is_not_there_is_left_out(trees: Trees):
    trees.image({"bundle.md": bundle(rest=tool("tool-rings", RINGS, optional="true"))})
    compiled = trees.compiled()
    assert (compiled.plan["tools"], compiled.plan["isolated"]) == ([], False)
    assert "optional" in compiled.warnings[0]


def test_a_source_that_could_not_be_had_leaves_the_runtimes_own(trees: Trees):
    trees.image({"bundle.md": bundle(rest=tool("tool-bash", RINGS))}, modules="source", lacks=[RINGS])
    assert trees.plan()["modules"]["tool-bash"] == "own"


@pytest.mark.parametrize("source", [RINGS, None])
def test_a_module_that_could_not_be_imported_is_left_out_wherever_it_comes_from(trees: Trees, source: str | None):
    files = {"bundle.md": bundle(rest=tool("tool-rings", source))}
    packages = trees.tree({"amplifier_module_tool_rings/__init__.py": ""})
    lacks = [f"{RINGS}#module=tool-rings", f"{HOME}#module=tool-rings"]
    trees.image(files, {RINGS: module_files("tool-rings")}, packages=packages, lacks=lacks)
    compiled = trees.compiled()
    assert (compiled.plan["tools"], compiled.plan["isolated"]) == ([], False)
    assert any("bundle.md:5: left out" in one for one in compiled.warnings)


def test_where_a_source_could_not_be_imported_the_runtimes_own_is_used(trees: Trees):
    files = {"bundle.md": bundle(rest=tool("tool-bash", RINGS))}
    trees.image(files, {RINGS: module_files("tool-bash")}, modules="source", lacks=[f"{RINGS}#module=tool-bash"])
    assert trees.plan()["modules"]["tool-bash"] == "own"


def test_what_a_session_cannot_be_without_is_not_left_out(trees: Trees):
    rest = f"session: {{orchestrator: {{module: loop-odd, source: '{RINGS}'}}, context: {{module: context-simple}}}}\n"
    trees.image({"bundle.md": bundle(rest=rest)}, {RINGS: module_files("loop-odd")}, lacks=[f"{RINGS}#module=loop-odd"])
    with pytest.raises(BadRequest, match=r"session\.orchestrator can't be left out"):
        trees.plan()


SKILLS = "git+https://git.example/birds/skills@main"


def test_what_configurations_name_by_address_is_in_the_plan_as_it_was_pinned(trees: Trees):
    """Whichever bundle of an image says it, and in agents."""
    config = f"{{skills: ['{SKILLS}#subdirectory=a', other], deep: {{one: '{SKILLS}'}}}}"
    agents = f"agents: {{a: {{tools: [{{module: tool-rings, config: {{own: '{HOME}'}}}}]}}}}\n"
    behavior = f"bundle: {{name: b}}\ntools: [{{module: tool-rings, source: '{RINGS}', config: {config}}}]\n"
    files = {"bundle.md": bundle(rest=f"includes: [./b.yaml]\n{SESSION}{agents}"), "b.yaml": behavior}
    image = trees.image(files, {RINGS: module_files("tool-rings"), SKILLS: {"a/SKILL.md": "x"}})
    plan = trees.plan()
    tree = image.sources[1].tree
    assert plan["sources"] == {
        f"{SKILLS}#subdirectory=a": {"tree": tree, "path": "a"},
        SKILLS: {"tree": tree, "path": ""},
        HOME: {"tree": image.root.tree, "path": ""},
    }
    assert plan["tools"][0]["config"] == {"skills": [f"{SKILLS}#subdirectory=a", "other"], "deep": {"one": SKILLS}}
    assert sources_of(plan, trees.folder)[f"{SKILLS}#subdirectory=a"] == trees.folder / tree / "a"

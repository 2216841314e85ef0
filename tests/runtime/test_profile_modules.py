"""Whose implementation a module id means, and where it is imported from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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

"""What a bundle includes: how it is named, found, composed; and what happens when it isn't there."""

from __future__ import annotations

from pathlib import Path

import pytest

from amplifier_api_server.runtime.failures import BadRequest
from tests.runtime.bundle_trees import HOME, SESSION, Trees, bundle

FISH = "git+https://git.example/birds/fish@v1"
INCLUDES = "includes:\n- bundle: {}\n" + SESSION


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path / "c")


def including(*texts: str) -> str:
    return "".join(["includes:\n", *(f"- bundle: {text}\n" for text in texts), SESSION])


def part(name: str, tool: str, body: str = "") -> str:
    return f"---\nbundle: {{name: {name}}}\ntools: [{tool}]\n---\n{body}"


def tools_of(trees: Trees, profile: str = "watch:watch") -> list[str]:
    return [item["module"] for item in trees.plan(profile)["tools"]]


OWN_FILES = {
    "behaviors/todo.yaml": "bundle: {name: todo-behavior}\ntools: [tool-todo]\n",
    "behaviors/short.yml": "bundle: {name: short}\ntools: [tool-todo]\n",
    "behaviors/text.md": part("text", "tool-todo"),
    "more/bundle.md": part("more", "tool-todo"),
    "yaml/bundle.yaml": "bundle: {name: in-yaml}\ntools: [tool-todo]\n",
    "versions/v1.2.yaml": "bundle: {name: versioned}\ntools: [tool-todo]\n",
}


@pytest.mark.parametrize(
    "address",
    [
        "watch:behaviors/todo.yaml",
        "watch:behaviors/todo",
        "watch:behaviors/short",
        "watch:behaviors/text",
        "watch:more",
        "watch:yaml",
        "watch:versions/v1.2",
        "./behaviors/todo.yaml",
        "./behaviors/todo",
        "behaviors/todo.yaml",
        "./more",
        f"{HOME}#subdirectory=behaviors/todo.yaml",
        f"{HOME}#subdirectory=more",
        "git+https://GIT.example/birds/watch.git@main#subdirectory=behaviors/todo",
    ],
)
def test_a_bundle_of_the_same_repository_is_found_by_every_form_of_its_name(trees: Trees, address: str):
    trees.image({"bundle.md": bundle(rest=including(address))} | OWN_FILES)
    assert tools_of(trees) == ["tool-todo"]


@pytest.mark.parametrize(
    "address", [FISH, f"{FISH}#subdirectory=behaviors/todo.yaml", "fish:behaviors/todo", "fish", "todo-behavior:todo"]
)
def test_a_bundle_of_another_repository_is_found_by_its_address_and_its_names(trees: Trees, address: str):
    files = {"bundle.md": part("fish", "tool-todo"), "behaviors/todo.yaml": OWN_FILES["behaviors/todo.yaml"]}
    trees.image(
        {"bundle.md": bundle(rest=including(f"{FISH}#subdirectory=behaviors/todo.yaml", address))}, {FISH: files}
    )
    assert tools_of(trees) == ["tool-todo"]


def test_includes_are_composed_in_their_order_and_the_bundle_itself_comes_last(trees: Trees):
    files = {
        "bundle.md": bundle(rest=including("./a.md", "./b.md") + "tools: [{module: tool-bash, config: {who: self}}]\n"),
        "a.md": "---\nbundle: {name: a}\ntools: [{module: tool-bash, config: {who: a, l: [1]}}, tool-todo]\n---\nA.",
        "b.md": "---\nbundle: {name: b}\ntools: [tool-web, {module: tool-bash, config: {who: b, l: [1, 2]}}]\n---\nB.",
    }
    trees.image(files)
    plan = trees.plan()
    assert plan["tools"] == [
        {"module": "tool-bash", "config": {"who": "self", "l": [1, 2]}},
        {"module": "tool-todo", "config": {}},
        {"module": "tool-web", "config": {}},
    ]
    assert plan["system_prompt"] == "B."


def test_a_nested_bundle_may_include_its_root_which_it_does_not_lose(trees: Trees):
    files = {
        "bundle.md": bundle(rest=including("watch:behaviors/todo")),
        "behaviors/todo.yaml": OWN_FILES["behaviors/todo.yaml"],
        "bundles/big.yaml": "bundle: {name: big}\nincludes: [watch, 'watch:behaviors/todo']\n",
    }
    trees.image(files)
    assert tools_of(trees, "watch:big") == ["tool-todo"]


def test_what_is_included_does_not_depend_on_what_was_loaded_before(trees: Trees):
    """Within a circle, a bundle lacks what leads back; included again outside of it, it is whole."""
    files = {
        "bundle.md": bundle(rest=including("./a.yaml", "./b.yaml")),
        "a.yaml": "bundle: {name: a}\nincludes: [./b.yaml]\ntools: [tool-web]\n",
        "b.yaml": "bundle: {name: b}\nincludes: [./a.yaml]\ntools: [{module: tool-web, config: {from: b}}]\n",
    }
    trees.image(files)
    compiled = trees.compiled()
    assert compiled.plan["tools"] == [{"module": "tool-web", "config": {"from": "b"}}]
    assert any("in a circle: watch/a.yaml -> watch/b.yaml -> watch/a.yaml" in text for text in compiled.warnings)
    assert any("in a circle: watch/b.yaml -> watch/a.yaml -> watch/b.yaml" in text for text in compiled.warnings)


def test_names_mean_first_what_they_mean_in_the_files_own_repository(trees: Trees):
    """Two versions of one repository, both called fish: each finds its own parts."""
    other = "git+https://git.example/birds/fish@v2"
    root = "---\nbundle: {name: fish}\nincludes: ['fish:part']\n---\n"
    sources = {
        FISH: {"bundle.md": root, "part.yaml": "bundle: {name: p}\ntools: [tool-todo]\n"},
        other: {"bundle.md": root, "part.yaml": "bundle: {name: p}\ntools: [tool-web]\n"},
    }
    trees.image({"bundle.md": bundle(rest=including(FISH, other))}, sources)
    assert tools_of(trees) == ["tool-todo", "tool-web"]


def test_names_mean_then_what_the_tenants_other_collections_are_called(trees: Trees):
    trees.image({"bundle.md": bundle(rest=including("nets:part", "fish:part"))})
    trees.image(
        {"bundle.md": part("fish", "tool-bash"), "part.yaml": "bundle: {name: p}\ntools: [tool-todo]\n"},
        name="nets",
        uri=FISH,
    )
    assert tools_of(trees) == ["tool-todo"]


def test_foundation_is_the_bundled_collection_only_where_nothing_else_has_that_name(trees: Trees):
    trees.image({"bundle.md": bundle(rest=including("foundation"))})
    assert "tool-bash" in tools_of(trees)
    own = Trees(trees.folder.parent / "own")
    own.image(
        {"bundle.md": bundle(rest=including("foundation"))}, {FISH: {"bundle.md": part("foundation", "tool-web")}}
    )
    assert tools_of(own) == ["tool-web"]


def test_a_namespace_root_says_where_a_nested_bundles_parts_are(trees: Trees):
    nested = "bundle: {name: deep, namespace_root: ..}\ncontext: {include: ['deep:context/x.md']}\n"
    files = {"bundle.md": bundle(rest=including("./deep/behaviors/b.yaml")), "deep/behaviors/b.yaml": nested}
    trees.image(files | {"deep/context/x.md": "Deep down."})
    assert "Deep down." in trees.plan()["system_prompt"]


@pytest.mark.parametrize(
    ("address", "what"),
    [
        (
            "git+https://git.example/birds/gone@main",
            "watch/bundle.md:4: git+https://git.example/birds/gone@main is not installed",
        ),
        (f"{FISH}#subdirectory=gone", "there is no gone in"),
        ("watch:gone", "there is no bundle 'watch:gone'"),
        ("nobody:x", "nothing here has the name 'nobody'"),
        ("./gone.yaml", "there is no bundle './gone.yaml'"),
        ("nobody", "there is no bundle 'nobody'"),
        ("../../etc/passwd", "there is no bundle"),
        ("./link.yaml", "there is no bundle"),
        ("watch:../tree1/bundle.md", "there is no bundle"),
        (f"{FISH}#subdirectory=../x", "leads out"),
        ("file:///etc/passwd", "include: "),
        ("https://git.example/x.yaml", "include: "),
        ("./prose.md", "this is no bundle"),
        ("./broken.yaml", "watch/broken.yaml:2"),
        ('"a\\0b/c"', "there is no bundle"),
    ],
)
def test_what_can_not_be_included_is_said_with_the_line_that_names_it(trees: Trees, address: str, what: str):
    files = {"bundle.md": bundle(rest=including(address)), "prose.md": "Prose.", "broken.yaml": "bundle: ["}
    trees.image(files, {FISH: {"bundle.md": part("fish", "tool-todo")}})
    (trees.folder / "tree0" / "link.yaml").symlink_to(trees.folder / "tree1" / "bundle.md")
    with pytest.raises(BadRequest) as caught:
        trees.compiled()
    assert what in caught.value.failure.detail
    assert "watch/" in caught.value.failure.detail


@pytest.mark.parametrize(
    "address", ["git+https://git.example/gone@main", "watch:gone", "file:///x", f"{FISH}#subdirectory=gone"]
)
def test_what_is_optional_is_left_out_with_a_warning(trees: Trees, address: str):
    rest = f"includes: [{{bundle: '{address}', optional: true}}]\n{SESSION}"
    trees.image({"bundle.md": bundle(rest=rest)}, {FISH: {"bundle.md": part("fish", "tool-todo")}})
    compiled = trees.compiled()
    assert compiled.plan["tools"] == []
    assert "watch/bundle.md:3" in compiled.warnings[0]


@pytest.mark.parametrize("lacks", ["git+https://git.example/gone@main", f"{FISH}#subdirectory=gone"])
def test_what_a_collection_was_installed_without_is_left_out_with_a_warning(trees: Trees, lacks: str):
    trees.image(
        {"bundle.md": bundle(rest=including(lacks))}, {FISH: {"bundle.md": part("fish", "tool-todo")}}, lacks=[lacks]
    )
    assert "installed without" in trees.compiled().warnings[0]


def test_depth_is_bounded(trees: Trees):
    chain = {f"p{n}.yaml": f"bundle: {{name: p{n}}}\nincludes: [./p{n + 1}.yaml]\n" for n in range(40)}
    trees.image({"bundle.md": bundle(rest=including("./p0.yaml"))} | chain)
    with pytest.raises(BadRequest, match="deeper than 32"):
        trees.compiled()


def test_a_web_of_includes_is_composed_once_a_bundle(trees: Trees):
    """Each of 25 includes the next twice: 33 million ways, if each were followed."""
    files = {f"p{n}.yaml": f"bundle: {{name: p{n}}}\nincludes: [./p{n + 1}.yaml, ./p{n + 1}.yaml]\n" for n in range(25)}
    trees.image(
        {"bundle.md": bundle(rest=including("./p0.yaml")), "p25.yaml": "bundle: {name: z}\ntools: [tool-todo]\n"}
        | files
    )
    assert tools_of(trees) == ["tool-todo"]


def test_a_web_of_circles_is_bounded(trees: Trees):
    names = [f"p{n}" for n in range(20)]
    web = {
        f"{name}.yaml": f"bundle: {{name: {name}}}\nincludes: [{', '.join(f'./{n}.yaml' for n in names)}]\n"
        for name in names
    }
    trees.image({"bundle.md": bundle(rest=including("./p0.yaml"))} | web)
    with pytest.raises(BadRequest, match="more than 1000 times"):
        trees.compiled()

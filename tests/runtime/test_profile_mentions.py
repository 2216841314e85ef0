from __future__ import annotations

import codecs
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.runtime.bundles.mentions import MentionResolver, expand, mentions_in
from amplifier_api_server.runtime.bundles.plans import resolver_of
from tests.runtime.bundle_trees import SESSION, Trees, bundle

FISH = "git+https://git.example/birds/fish@v1"


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path / "c")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("@watch:context/rules.md", ["@watch:context/rules.md"]),
        ("See @watch:a.md, @watch:b and (@c/d.md).", ["@watch:a.md", "@watch:b", "@c/d.md"]),
        ("**@watch:a** @watch:a", ["@watch:a"]),
        ("me@example.com, x/@y, a:@b", []),
        ("`@code` and ``@more ` code`` and @seen", ["@seen"]),
        ("three ``` in a line @seen", ["@seen"]),
        ("```\n@code\n```\n@seen", ["@seen"]),
        ("~~~ text\n@code\n```\n@code\n~~~\n@seen", ["@seen"]),
        ("````\n```\n@code\n````\n@seen", ["@seen"]),
        ("```\n@code that never ends", []),
        ("one ` tick\n\n@seen and another ` tick", ["@seen"]),
        ("@~/notes.md @./x @.hidden/y", ["@~/notes.md", "@./x", "@.hidden/y"]),
        ("@ alone @", []),
    ],
)
def test_mentions_are_what_stands_in_the_text_and_not_in_code(text: str, found: list[str]):
    assert mentions_in(text) == found


@given(st.text(alphabet="`~@a:/. \n", max_size=200))
def test_any_text_has_mentions_or_none(text: str):
    assert all(one.startswith("@") for one in mentions_in(text))


@pytest.mark.parametrize(
    "text", ["`" * 100_000, "` `` " * 40_000, "```\n" * 50_000, "@" * 200_000, "~~~\n@a\n" * 30_000]
)
def test_text_that_is_made_to_be_slow_is_not(text: str):
    began = time.thread_time()  # of the processor, so that a busy machine makes it no slower
    mentions_in(text)
    assert time.thread_time() - began < 5


def test_a_prompt_is_the_instruction_a_rule_and_blocks_context_first(trees: Trees):
    rest = SESSION + "context: {include: ['watch:context/first.md']}\n"
    files = {
        "bundle.md": bundle(rest=rest, body="Read @watch:context/second.md and @fish:third."),
        "context/first.md": "First @watch:context/second.md",
        "context/second.md": "Second.",
    }
    trees.image(files, {FISH: {"bundle.md": bundle("fish"), "third": "Third."}})
    assert trees.plan()["system_prompt"] == (
        "Read @watch:context/second.md and @fish:third.\n\n---\n\n"
        '<context_file paths="@watch:context/first.md">\nFirst @watch:context/second.md\n</context_file>\n\n'
        '<context_file paths="@watch:context/second.md">\nSecond.\n</context_file>\n\n'
        '<context_file paths="@fish:third">\nThird.\n</context_file>'
    )


def test_context_accumulates_from_all_that_is_included(trees: Trees):
    files = {
        "bundle.md": bundle(rest=f"includes: [./part.yaml]\ncontext: {{rules: rules.md}}\n{SESSION}"),
        "part.yaml": "bundle: {name: part}\ncontext: {include: [near.md, 'watch:far.md', gone.md]}\n",
        **{f"{name}.md": f"{name}!" for name in ("near", "far", "rules")},
    }
    trees.image(files)
    compiled = trees.compiled()
    for name, path in (("near.md", "near"), ("@watch:far.md", "far"), ("rules", "rules")):
        assert f'<context_file paths="{name}">\n{path}!\n</context_file>' in compiled.plan["system_prompt"]
    assert compiled.warnings == ["watch/part.yaml:2: there is no context file 'gone.md'"]


def test_mentions_are_followed_three_deep_and_one_text_is_there_once(trees: Trees):
    chain = {f"c{n}.md": f"Level {n}. @watch:c{n + 1}.md" for n in range(8)}
    trees.image({"bundle.md": bundle(body="@watch:c0.md @watch:same.md"), "same.md": chain["c0.md"]} | chain)
    prompt = trees.plan()["system_prompt"]
    assert [n for n in range(8) if f"Level {n}." in prompt] == [0, 1, 2, 3]
    assert '<context_file paths="@watch:c0.md, @watch:same.md">' in prompt


def test_a_mentioned_folder_is_listed(trees: Trees):
    trees.image({"bundle.md": bundle(body="@watch:examples/"), "examples/a.md": "A", "examples/b/c.md": "C"})
    assert ">\n  DIR  b\n  FILE a.md\n</" in trees.plan()["system_prompt"]


def test_what_is_not_there_vanishes_with_a_warning(trees: Trees):
    trees.image({"bundle.md": bundle(body="@watch:gone.md and @nobody:x")})
    compiled = trees.compiled()
    assert compiled.plan["system_prompt"] == "@watch:gone.md and @nobody:x"
    assert [text.partition(": ")[2] for text in compiled.warnings] == [
        "@watch:gone.md is left out: it is not there",
        "@nobody:x is left out: it is not there",
    ]


def test_a_file_that_is_not_utf_8_is_named_as_such(trees: Trees):
    latin = "Die Übersicht".encode("latin-1")
    rest = f"context: {{include: [latin.md, dos.md]}}\n{SESSION}"
    trees.image({"bundle.md": bundle(rest=rest, body="@watch:other.md"), "latin.md": "", "other.md": "", "dos.md": "x"})
    root = next(trees.folder.rglob("latin.md")).parent
    (root / "latin.md").write_bytes(latin)
    (root / "other.md").write_bytes("Übersicht".encode("utf-16"))
    (root / "dos.md").write_bytes(codecs.BOM_UTF8 + b"of Windows")
    compiled = trees.compiled()
    assert [text.partition(": ")[2] for text in compiled.warnings] == [
        "the context file 'latin.md' is left out: latin.md is not UTF-8 at byte 4",
        "@watch:other.md is left out: other.md is not UTF-8 at byte 0",
    ]
    assert ">\nof Windows\n<" in compiled.plan["system_prompt"], "the mark is no part of it"


def test_mentions_without_a_namespace_are_left_to_the_session(trees: Trees, tmp_path: Path):
    trees.image({"bundle.md": bundle(body="@AGENTS.md @watch:more"), "more": "@notes/today", "AGENTS.md": "Not this."})
    plan = trees.plan()
    assert plan["mentions"] == ["@AGENTS.md", "@notes/today"]
    assert "Not this." not in plan["system_prompt"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "today.md").write_text("Herons.")
    _, blocks = expand(" ".join(plan["mentions"]), resolver_of(plan, trees.folder, tmp_path))
    assert blocks == '<context_file paths="@notes/today">\nHerons.\n</context_file>'


def test_a_plans_names_lead_to_its_pinned_trees(trees: Trees, tmp_path: Path):
    files = {"bundle.md": bundle(rest=f"includes: ['{FISH}#subdirectory=behaviors/b.yaml']\n{SESSION}")}
    fish = {"bundle.md": bundle("fish"), "behaviors/b.yaml": "bundle: {name: b}\n", "modes/m.md": "M"}
    trees.image(files, {FISH: fish})
    resolver = resolver_of(trees.plan(), trees.folder, tmp_path)
    assert resolver.resolve("@fish:modes/m.md") == trees.folder / "tree1" / "modes" / "m.md"
    assert resolver.resolve("@fish:modes") == trees.folder / "tree1" / "modes"
    assert resolver.bundles["fish"].base_path == trees.folder / "tree1"
    assert resolver.bundles["b"].base_path == trees.folder / "tree1" / "behaviors"
    assert resolver.resolve("@foundation:agents/critic.md") is not None
    assert resolver.resolve("fish:modes") is None


@pytest.mark.parametrize(
    "mention",
    [
        "@../secret.md",
        "@link.md",
        "@/etc/passwd",
        "@watch:../secret.md",
        "@watch:link.md",
        "@watch:to/secret.md",
        "@missing",
        "@~/secret.md",
        "@watch:/../secret.md",
        "@watch:a\0b",
        "@watch:" + "a" * 5000,
        "@watch:x/./../../secret.md",
    ],
)
def test_no_mention_leads_out_of_its_folder(tmp_path: Path, mention: str):
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "secret.md").write_text("SECRET")
    (home / "link.md").symlink_to(tmp_path / "secret.md")
    (home / "to").symlink_to(tmp_path)
    resolver = MentionResolver({"watch": home}, home)
    assert resolver.resolve(mention) is None
    assert expand(f"Look: {mention} .", resolver)[1] == ""


def test_a_plan_that_was_tampered_with_names_no_folder_outside(tmp_path: Path):
    places = [
        {"tree": "..", "path": ""},
        {"tree": "a/b", "path": ""},
        {"tree": "t", "path": "../x"},
        {"tree": "t", "path": "/etc"},
    ]
    plan = {"namespaces": {f"n{index}": place for index, place in enumerate(places)}}
    assert resolver_of(plan, tmp_path, tmp_path).bundles == {}

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amplifier_api_server.runtime.failures import BadRequest, Missing, Refused
from amplifier_api_server.runtime.frontmatter import parse
from amplifier_api_server.runtime.library import Library, open_collection
from amplifier_api_server.runtime.mentions import with_mentions
from amplifier_api_server.runtime.profiles import check_plan, compile_plan


def collection(folder: Path, name: str = "birds", **profiles: str) -> Path:
    (folder / "profiles").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "1.2"\n[tool.amplifier.collection]\n'
    )
    for stem, text in profiles.items():
        (folder / "profiles" / f"{stem}.md").write_text(text)
    return folder


def profile(head: str = "", body: str = "", **sections: object) -> str:
    more = "".join(f"{name}: {json.dumps(value)}\n" for name, value in sections.items())
    return f"---\nprofile:\n  name: x\n{head}{more}---\n{body}"


def compiled(folder: Path, name: str = "birds:watch") -> dict:
    return compile_plan(Library([open_collection(folder)]), name, {}, "some-model")


EXTENDS = "  extends: foundation:base\n"


def test_the_bundled_profile_compiles_to_a_plan_that_is_json_and_comes_back_unchanged():
    plan = compile_plan(Library(), "foundation:base", {}, "m")
    assert json.loads(json.dumps(plan)) == plan
    assert check_plan(plan) == plan
    assert [item["module"] for item in plan["tools"]] == ["tool-bash", "tool-filesystem", "tool-todo"]
    assert (plan["model"], plan["session"]["orchestrator"]["module"]) == ("m", "loop-streaming")


def test_a_profile_takes_over_what_it_extends_and_adds_its_own(tmp_path: Path):
    tools = [{"module": "tool-bash", "config": {"timeout": 5}}]
    folder = collection(
        tmp_path / "c", watch=profile(EXTENDS, "You watch birds.", tools=tools, exclude={"tools": ["tool-todo"]})
    )
    plan = compiled(folder)
    assert plan["tools"] == [
        {"module": "tool-bash", "config": {"timeout": 5}},
        {"module": "tool-filesystem", "config": {}},
    ]
    assert plan["system_prompt"] == "You watch birds."
    assert plan["profile"] == "birds:watch"


def test_a_profile_without_a_body_keeps_the_prompt_that_it_inherits(tmp_path: Path):
    assert compiled(collection(tmp_path / "c", watch=profile(EXTENDS)))["system_prompt"].startswith("You are a capable")


def test_extends_without_a_namespace_is_in_the_same_collection_and_chains(tmp_path: Path):
    folder = collection(
        tmp_path / "c",
        base=profile(EXTENDS, "first"),
        middle=profile("  extends: base\n"),
        watch=profile("  extends: middle\n"),
    )
    assert compiled(folder)["system_prompt"] == "first"


def test_the_profiles_model_becomes_its_providers(tmp_path: Path):
    folder = collection(tmp_path / "c", watch=profile(EXTENDS + "  model: openai/heron-2\n"))
    plan = compiled(folder)
    assert plan["model"] == "heron-2"
    assert plan["providers"][0]["config"] == {"default_model": "heron-2"}


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("no frontmatter", "watch.md", "mapping `profile`"),
        ("---\nprofile: x\n---\n", "watch.md:2", "mapping `profile`"),
        ("---\nprofile:\n  name: x\n", "watch.md:1", "no end"),
        ("---\nprofile: [\n---\n", "watch.md:", ""),
        ("---\n- a\n---\n", "watch.md:2", "mapping"),
        (profile(), "watch.md", "session.orchestrator"),
        (profile(EXTENDS, tools=7), "watch.md:5", "tools should be a list"),
        (profile(EXTENDS, tools=[{"modul": "x"}]), "watch.md:5", "item 1"),
        (profile(EXTENDS, tools=[{"module": "tool-gone"}]), "watch.md", "'tool-gone'"),
        (profile(EXTENDS, tools=[{"module": "../x"}]), "watch.md:5", "item 1"),
        (profile(EXTENDS, tools=[{"module": "tool-bash", "config": 3}]), "watch.md:5", "config"),
        (profile(EXTENDS, agents=["nobody"]), "watch.md:5", "'nobody'"),
        (profile(EXTENDS, exclude={"tools": 3}), "watch.md:5", "exclude"),
        (profile(EXTENDS, exclude={"providers": "all"}), "watch.md", "no provider"),
        (profile("  extends: 3\n"), "watch.md:4", "extends"),
        (profile(EXTENDS + "  model: nobody/x\n"), "watch.md:5", "'nobody'"),
        (profile(EXTENDS, session=[1]), "watch.md:5", "session"),
        (profile(EXTENDS, session={"orchestrator": {"module": "loop-gone"}}), "watch.md:5", "loop-gone"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path: Path, text: str, where: str, what: str):
    with pytest.raises(BadRequest) as caught:
        compiled(collection(tmp_path / "c", watch=text))
    assert caught.value.failure.code == "profile_invalid"
    assert where in caught.value.failure.detail
    assert what in caught.value.failure.detail


def test_a_circle_of_extends_is_told_as_one(tmp_path: Path):
    folder = collection(tmp_path / "c", watch=profile("  extends: other\n"), other=profile("  extends: watch\n"))
    with pytest.raises(BadRequest, match="birds:watch -> birds:other -> birds:watch"):
        compiled(folder)


def test_extending_what_is_not_there_says_what(tmp_path: Path):
    with pytest.raises(Missing, match="'fish:base'"):
        compiled(collection(tmp_path / "c", watch=profile("  extends: fish:base\n")))


def test_agents_are_told_to_modules_by_name(tmp_path: Path):
    folder = collection(tmp_path / "c", watch=profile(EXTENDS, agents="all"))
    (folder / "agents").mkdir()
    (folder / "agents" / "ringer.md").write_text(
        "---\nmeta:\n  name: ringer\n  description: Rings birds\n---\nRing them."
    )
    assert compiled(folder)["agents"] == {"ringer": {"description": "Rings birds", "instruction": "Ring them."}}


def test_mentions_bring_files_of_the_collection_and_of_others(tmp_path: Path):
    folder = collection(
        tmp_path / "c", watch=profile(EXTENDS, "See @context/rules.md and @birds:context/more, not `@context/code.md`.")
    )
    (folder / "context").mkdir()
    for name, text in {
        "rules.md": "Rule one.",
        "more.md": "More: @context/deep.md",
        "deep.md": "Deep.",
        "code.md": "Never.",
    }.items():
        (folder / "context" / name).write_text(text)
    prompt = compiled(folder)["system_prompt"]
    assert '<context_file paths="@context/rules.md">\nRule one.\n</context_file>' in prompt
    assert "Deep." in prompt
    assert "Never." not in prompt


@pytest.mark.parametrize(
    "mention", ["@../secret.md", "@context/link.md", "@/etc/passwd", "@birds:../secret.md", "@missing", "a@secret.md"]
)
def test_no_mention_leads_out_of_its_folder(tmp_path: Path, mention: str):
    (tmp_path / "secret.md").write_text("SECRET root:")
    home = tmp_path / "home"
    (home / "context").mkdir(parents=True)
    (home / "secret.md").write_text("SECRET root:") if mention.startswith("a@") else None
    (home / "context" / "link.md").symlink_to(tmp_path / "secret.md")
    text = with_mentions(f"Look: {mention} .", home, {"birds": home})
    assert "root:" not in text


BOMB = "---\na: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\nprofile: {}\n---\n"


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "---\n" + "a: " + "[" * 60_000 + "\n---\n",
        "---\n" + "{a: " * 30_000 + "\n---\n",
        "---\na: !!python/object/apply:os.system [id]\n---\n",
        "---\na: !!binary aGk=\n---\n",
        "---\na: .nan\n---\n",
        "---\na: " + "9" * 5000 + "\n---\n",
        "---\n" + "- x\n" * 30_000 + "---\n",
        "---\n\x00\n---\n",
        "---\na: 1\na: {b: *x}\n---\n",
    ],
)
def test_evil_yaml_is_refused_at_once(text: str):
    with pytest.raises(BadRequest):
        parse(text, "x.md", "profile_invalid")


def test_dates_become_text():
    assert parse("---\na: 2026-01-02\n---\n", "x", "c").data == {"a": "2026-01-02"}


@settings(max_examples=200)
@given(st.text(max_size=200))
def test_any_text_parses_or_is_refused(text: str):
    try:
        document = parse(f"---\n{text}\n---\nbody", "x.md", "c")
    except Refused:
        return
    json.dumps(document.data)

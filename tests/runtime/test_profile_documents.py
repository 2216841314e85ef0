"""Documents from strangers: whatever they hold, it is read within bounds or refused."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amplifier_api_server.runtime.bundles.compiling import compile_profile
from amplifier_api_server.runtime.bundles.library import Library
from amplifier_api_server.runtime.bundles.plans import check_plan
from amplifier_api_server.runtime.failures import BadRequest, Refused
from amplifier_api_server.runtime.frontmatter import parse, parse_yaml

KEYS = [
    "bundle",
    "profile",
    "name",
    "session",
    "orchestrator",
    "context",
    "module",
    "tools",
    "providers",
    "config",
    "include",
    "includes",
    "agents",
    "spawn",
    "extends",
    "exclude",
    "model",
    "id",
    "source",
    "hooks",
    "version",
    "description",
]
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
        "---\na: " + "9" * 4000 + "\n---\n",
        "---\na: [{b: -0x" + "f" * 9000 + "}]\n---\n",
        "---\na: 9223372036854775808\n---\n",
        "---\na: 0b1" + "0" * 64 + "\n---\n",
        "---\n? 0x" + "f" * 9000 + "\n: x\n---\n",
        "---\n? .inf\n: x\n---\n",
        '---\na: "\\ud800"\n---\n',
        '---\n"\\udfff": x\n---\n',
        "---\n" + "- x\n" * 30_000 + "---\n",
        "---\n\x00\n---\n",
        "---\na: 1\na: {b: *x}\n---\n",
    ],
)
def test_evil_yaml_is_refused_at_once(text: str):
    with pytest.raises(BadRequest):
        parse(text, "x.md", "profile_invalid")
    with pytest.raises(BadRequest):
        parse_yaml(text.removeprefix("---\n").removesuffix("---\n"), "x.yaml", "profile_invalid")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: the key 'a' is there twice, first in line 1"),
        ("tools:\n- {module: x, module: y}\n", "x.yaml:2: the key 'module' is there twice, first in line 2"),
        ("a: {b: {c: 1,\n  d: 2,\n  c: 3}}\n", "x.yaml:3: the key 'c' is there twice, first in line 1"),
        ("1: a\n'1': b\n", "x.yaml:2: the key '1' is there twice, first in line 1"),
    ],
)
def test_a_key_that_is_there_twice_is_refused_with_both_lines(text: str, where: str):
    with pytest.raises(BadRequest) as refusal:
        parse_yaml(text, "x.yaml", "profile_invalid")
    assert refusal.value.failure.detail == where


def test_the_same_key_in_two_mappings_and_one_that_is_merged_are_no_doubles():
    assert parse_yaml("a: {x: 1}\nb: {x: 2}\n", "x", "c").data == {"a": {"x": 1}, "b": {"x": 2}}
    assert parse_yaml("a: {<<: {x: 1}, x: 2}\n", "x", "c").data == {"a": {"x": 2}}


def test_dates_become_text():
    assert parse("---\na: 2026-01-02\n---\n", "x", "c").data == {"a": "2026-01-02"}


@settings(max_examples=200)
@given(st.text(max_size=200))
def test_any_text_is_a_document_or_refused(text: str):
    for read in (parse, parse_yaml):
        with contextlib.suppress(BadRequest):
            json.dumps(read("---\n" + text if read is parse else text, "x.md", "profile_invalid").data)


@settings(max_examples=200)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
        max_leaves=12,
    )
)
def test_any_document_is_a_profile_or_refused(data: Any):
    library = Library(documents={"mine": json.dumps(data)})
    with contextlib.suppress(Refused):
        check_plan(compile_profile(library, "mine").plan)

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.runtime.merging import deep, identity, merged, merged_modules, without

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
keys = st.sampled_from("abcd")
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)
configs = st.dictionaries(keys, values, max_size=3)
items = st.fixed_dictionaries({"module": st.sampled_from(["tool-a", "tool-b", "tool-c"])}, optional={"config": configs})
modules = st.lists(items, max_size=4, unique_by=lambda item: item["module"])
settings = st.fixed_dictionaries(
    {},
    optional={"tools": modules, "hooks": modules, "providers": modules, "session": configs, "agents": st.just("all")},
)


@given(settings, settings)
def test_merging_changes_neither_side(below: dict[str, Any], above: dict[str, Any]):
    before = copy.deepcopy((below, above))
    merged(below, above)
    assert (below, above) == before


@given(settings)
def test_nothing_is_neutral_on_both_sides(one: dict[str, Any]):
    assert merged({}, one) == one
    assert merged(one, {}) == one


@given(settings)
def test_merging_with_itself_changes_nothing(one: dict[str, Any]):
    assert merged(one, one) == one


@given(settings, settings, settings)
def test_a_chain_can_be_merged_from_either_end(a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]):
    tools = [{"tools": one.get("tools", [])} for one in (a, b, c)]
    assert merged(merged(tools[0], tools[1]), tools[2]) == merged(tools[0], merged(tools[1], tools[2]))


@given(modules, modules)
def test_every_module_is_there_once_the_inherited_first(below: list[Any], above: list[Any]):
    result = [identity(item) for item in merged_modules(below, above)]
    assert len(set(result)) == len(result)
    assert set(result) == {identity(item) for item in below + above}
    assert result[: len(below)] == [identity(item) for item in below]


@given(modules, modules)
def test_above_wins_where_both_say_something_that_is_no_mapping(below: list[Any], above: list[Any]):
    result = {identity(item): item for item in merged_modules(below, above)}
    for item in above:
        for key, value in item.get("config", {}).items():
            if not isinstance(value, dict):
                assert result[identity(item)]["config"][key] == value


@given(values, values)
def test_deep_keeps_every_key(below: Any, above: Any):
    result = deep(below, above)
    if isinstance(below, dict) and isinstance(above, dict):
        assert set(result) == set(below) | set(above)
    else:
        assert result == above


@given(modules, st.lists(st.sampled_from(["tool-a", "tool-b"]), max_size=2))
def test_what_is_excluded_is_gone_and_the_rest_is_not(tools: list[Any], names: list[str]):
    for exclude in (names, {"tools": names}):
        left = {item["module"] for item in without({"tools": tools}, exclude)["tools"]}
        assert left == {item["module"] for item in tools} - set(names)
    assert "tools" not in without({"tools": tools, "hooks": []}, {"tools": "all"})


def test_another_orchestrator_does_not_inherit_the_configuration_of_the_one_it_replaces():
    below = {"session": {"orchestrator": {"module": "loop-basic", "config": {"max_iterations": 3}}}}
    same = merged(below, {"session": {"orchestrator": {"config": {"x": 1}}}})
    assert same["session"]["orchestrator"] == {"module": "loop-basic", "config": {"max_iterations": 3, "x": 1}}
    other = merged(below, {"session": {"orchestrator": {"module": "loop-streaming"}}})
    assert other["session"]["orchestrator"] == {"module": "loop-streaming"}

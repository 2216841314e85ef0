from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.runtime.bundles.composition import (
    Composed,
    compose,
    deep,
    identity,
    merged_modules,
    without,
    without_duplicates,
)

scalars = st.none() | st.booleans() | st.integers(0, 3) | st.text(max_size=3)
# By its name, a key is always a mapping, a list or a scalar: only then does it not matter from which end three are merged.
lists = st.lists(scalars | st.fixed_dictionaries({"x": scalars}), max_size=3)
configs = st.deferred(
    lambda: st.fixed_dictionaries(
        {}, optional={"scalar": scalars, "other": scalars, "list": lists, "map": configs | st.just({})}
    )
)
items = st.fixed_dictionaries({"module": st.sampled_from(["tool-a", "tool-b", "tool-c"])}, optional={"config": configs})
modules = st.lists(items, max_size=4, unique_by=lambda item: item["module"])
parts = st.builds(
    Composed,
    name=st.sampled_from(["", "a", "b"]),
    version=st.none() | st.sampled_from(["1", "2"]),
    description=st.sampled_from(["", "x", "y"]),
    session=configs,
    spawn=configs,
    providers=modules,
    tools=modules,
    hooks=modules,
)


def settled(one: Composed) -> Composed:
    """As composing leaves it: lists without duplicates."""
    return compose(compose(Composed(), one), one)


@given(parts, parts)
def test_composing_changes_neither_side(below: Composed, above: Composed):
    before = copy.deepcopy((below, above))
    compose(below, above)
    assert (below, above) == before


@given(parts)
def test_nothing_is_neutral_on_both_sides(one: Composed):
    one = settled(one)
    assert compose(Composed(), one) == one
    assert compose(one, Composed()) == one


@given(parts)
def test_composing_with_itself_changes_nothing(one: Composed):
    one = settled(one)
    assert compose(one, one) == one


@given(parts, parts, parts)
def test_three_can_be_composed_from_either_end(a: Composed, b: Composed, c: Composed):
    a, b, c = settled(a), settled(b), settled(c)
    assert compose(compose(a, b), c) == compose(a, compose(b, c))


@given(modules, modules)
def test_every_module_is_there_once_the_inherited_first(below: list[Any], above: list[Any]):
    result = [identity(item) for item in merged_modules(below, above)]
    assert len(set(result)) == len(result)
    assert set(result) == {identity(item) for item in below + above}
    assert result[: len(below)] == [identity(item) for item in below]


@given(configs, configs)
def test_above_wins_where_both_say_something_that_is_neither_mapping_nor_list(below: Any, above: Any):
    result = deep(below, above)
    for key in above.keys() & {"scalar", "other"}:
        assert result[key] == above[key]
    assert result.keys() == below.keys() | above.keys()


@given(lists, lists)
def test_lists_are_joined_and_nothing_is_lost_or_there_twice(below: list[Any], above: list[Any]):
    result = [json.dumps(one, sort_keys=True) for one in deep(below, above)]
    assert len(set(result)) == len(result)
    assert set(result) == {json.dumps(one, sort_keys=True) for one in below + above}


def test_true_is_not_one_and_the_order_of_keys_does_not_matter():
    assert without_duplicates([1, True, "1", {"a": 1, "b": 2}, {"b": 2, "a": 1}]) == [1, True, "1", {"a": 1, "b": 2}]


def test_two_instances_of_one_module_stay_two():
    result = merged_modules([{"module": "provider-x", "id": "one"}], [{"module": "provider-x", "id": "two"}])
    assert [item["id"] for item in result] == ["one", "two"]


def test_another_module_without_a_source_does_not_take_over_the_one_it_replaces():
    below = Composed(session={"orchestrator": {"module": "loop-basic", "_source": {"uri": "u"}, "config": {"a": 1}}})
    above = Composed(session={"orchestrator": {"module": "loop-streaming", "config": {"b": 2}}})
    merged = compose(below, above).session["orchestrator"]
    assert merged == {"module": "loop-streaming", "config": {"a": 1, "b": 2}}


@given(modules, st.lists(st.sampled_from(["tool-a", "tool-b"]), max_size=2))
def test_what_is_excluded_is_gone_and_the_rest_is_not(tools: list[Any], names: list[str]):
    for exclude in (names, {"tools": names}):
        left = {item["module"] for item in without(Composed(tools=tools), exclude).tools}
        assert left == {item["module"] for item in tools} - set(names)
    assert list(without(Composed(tools=tools), {"tools": "all"}).tools) == []

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.tenants.permissions import (
    EVERYBODY,
    OPERATOR_RESOURCES,
    RESOURCES,
    allows,
    beyond,
    both,
    is_grant,
)

PERMISSIONS = sorted(f"{resource}:{action}" for resource, actions in RESOURCES.items() for action in actions)
OF_TENANTS = [one for one in PERMISSIONS if one.partition(":")[0] not in OPERATOR_RESOURCES]
GIVEN = st.frozensets(
    st.sampled_from([*OF_TENANTS, *(f"{name}:*" for name in RESOURCES if name not in OPERATOR_RESOURCES), "*"]),
    max_size=12,
)


def holding(grants: frozenset[str]) -> set[str]:
    return {one for one in PERMISSIONS if allows(grants, one)}


@given(GIVEN, GIVEN)
def test_what_is_within_both_is_exactly_what_each_holds(one: frozenset[str], other: frozenset[str]):
    assert holding(both(one, other)) == holding(one) & holding(other)


@given(GIVEN, GIVEN)
def test_what_is_not_beyond_somebody_gives_nothing_that_they_do_not_hold(wished: frozenset[str], held: frozenset[str]):
    if not beyond(wished, held):
        assert holding(wished) <= holding(held)


@given(GIVEN)
def test_everybody_may_give_what_they_hold(held: frozenset[str]):
    assert beyond(held, held) == []
    assert beyond(held, {"*"}) == []


def test_all_actions_that_there_are_is_less_than_all_of_a_resource():
    each = {f"keys:{action}" for action in RESOURCES["keys"]}
    assert beyond({"keys:*"}, each) == ["keys:*"]
    assert beyond({"*"}, OF_TENANTS) == ["*"]


def test_what_belongs_to_the_operator_is_in_no_tenants_everything():
    assert beyond({"tenants:read"}, {"*"}) == ["tenants:read"]
    assert both(frozenset({"tenants:*"}), frozenset({"*"})) == frozenset()
    assert beyond(EVERYBODY, ()) == []


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("*", True),
        ("sessions:*", True),
        ("sessions:read", True),
        ("sessions", False),
        ("sessions:fly", False),
        ("sessions:", False),
        (":read", False),
        ("", False),
        ("*:read", False),
        ("*:*", False),
        ("tenants:read", False),
        ("tenants:*", False),
        ("sessions:read:read", False),
    ],
)
def test_a_role_of_a_tenant_holds_what_exists_and_is_the_tenants(text: str, is_one: bool):
    assert is_grant(text) is is_one

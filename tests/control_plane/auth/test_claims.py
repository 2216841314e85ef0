"""What claims say here, for any claims at all: the mapping holds whatever an issuer, or somebody who asked it nicely, writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane.auth.claims import claimed_by, role_and_grants, widest
from amplifier_api_server.control_plane.auth_settings import BearerAuth
from amplifier_api_server.tenants.errors import Forbidden
from amplifier_api_server.tenants.permissions import GRANTS, OPERATOR_RESOURCES, RESOURCES, Role, allows

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(["admin", "developer", "readonly", "operator", "auditor", "gone", "", "a b", "x" * 70])


def method(**claims: Any) -> BearerAuth:
    return BearerAuth.model_validate(
        {"issuer": "https://issuer.example.com", "audience": "api", "claims": claims, "type": "bearer"}
    )


@given(st.dictionaries(st.sampled_from(["tenant_id", "roles", "name", "email", "client_id"]), VALUES), VALUES)
def test_any_claims_make_a_subject_or_are_refused(claims: dict[str, Any], verified: Any):
    given_claims = {**claims, "sub": "s", "email_verified": verified}
    try:
        found = claimed_by(given_claims, method())
    except Forbidden:
        return
    subject = found.subject
    assert subject.tenant_id
    assert subject.tenant_id.isprintable()
    assert subject.roles is not None
    assert "operator" not in subject.roles
    assert all(one and len(one) <= 63 and one.isprintable() for one in subject.roles)
    assert 0 < len(found.name) <= 200
    assert found.email is None or verified is True
    hash(subject)  # verdicts are remembered by it


@given(st.lists(NAMES, max_size=6), st.none() | NAMES, st.booleans())
def test_a_role_holds_no_more_than_the_roles_that_a_token_names(
    names: list[str], default_role: str | None, has_auditor: bool
):
    own = {"auditor": ["audit:read", "tenants:*", "no:such"]} if has_auditor else {}
    chosen = role_and_grants(names, default_role, own)
    known = {"admin", "developer", "readonly", *own}
    named = [one for one in names if one in known] or [one for one in [default_role] if one in known]
    if not named:
        assert chosen is None
        return
    assert chosen is not None
    role, grants = chosen
    assert set(role.split("+")) == set(named)
    for resource, actions in RESOURCES.items():
        for action in actions:
            permission = f"{resource}:{action}"
            held = any(allows(GRANTS[Role(one)], permission) for one in named if one != "auditor")
            held = (
                held or ("auditor" in named and permission == "audit:read") or permission in ("me:read", "limits:read")
            )
            assert allows(grants, permission) == held
            assert not (held and resource in OPERATOR_RESOURCES)
    if "admin" in named:
        assert widest(role) == "admin"


@given(st.dictionaries(st.text(min_size=1, max_size=8), NAMES, max_size=4), st.lists(st.text(max_size=8), max_size=6))
def test_a_map_of_roles_lets_nothing_else_through(role_map: dict[str, str], given_roles: list[str]):
    role_map = {there: here for there, here in role_map.items() if here != "operator"}
    claims = {"sub": "s", "tenant_id": "t", "roles": given_roles}
    found = claimed_by(claims, method(role_map=role_map)).subject.roles
    allowed = {role_map[one] for one in given_roles if one in role_map} if role_map else set(given_roles)
    assert found is not None
    assert set(found) <= allowed


@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=3), max_size=6))
def test_the_order_of_roles_changes_nothing(roles: list[str]):
    claims = {"sub": "s", "tenant_id": "t"}
    forward = claimed_by(claims | {"roles": roles}, method())
    backward = claimed_by(claims | {"roles": " ".join(reversed(roles))}, method())
    assert forward.subject == backward.subject


def test_a_path_leads_into_objects_and_a_name_with_dots_is_a_name():
    wanted = method(tenant="https://example.com/tenant", roles="realm_access.roles")
    claims = {"sub": "s", "https://example.com/tenant": "t", "realm_access": {"roles": ["developer"]}}
    subject = claimed_by(claims, wanted).subject
    assert (subject.tenant_id, subject.roles) == ("t", ("developer",))


def test_a_map_of_tenants_lets_no_other_through():
    wanted = method(tenant="org", tenant_map={"acme": "ten_1", "7": "ten_2"})
    assert claimed_by({"sub": "s", "org": "acme"}, wanted).subject.tenant_id == "ten_1"
    assert claimed_by({"sub": "s", "org": 7}, wanted).subject.tenant_id == "ten_2"
    assert claimed_by({"sub": "s", "org": ["acme"]}, wanted).subject.tenant_id == "ten_1"
    for value in ("ten_1", "ten_2", "", True, ["acme", "acme"], None):
        with pytest.raises(Forbidden):
            claimed_by({"sub": "s", "org": value}, wanted)


def test_who_names_no_tenant_is_of_the_default_one():
    wanted = method(default_tenant="ten_1", tenant_map={"acme": "ten_2"})
    assert claimed_by({"sub": "s"}, wanted).subject.tenant_id == "ten_1"
    with pytest.raises(Forbidden):
        claimed_by({"sub": "s", "tenant_id": "elsewhere"}, wanted)


@pytest.mark.parametrize(
    "value",
    ["ten_2", "TEN_1", "ten_1 ", "ten_1\u200b", ["ten_1", "ten_2"], ["ten_2"], 1, 0, True, False, [], {}, {"ten_1": 1}],
)
def test_an_issuer_that_is_pinned_to_a_tenant_speaks_for_no_other(value: Any):
    wanted = method(default_tenant="ten_1")
    with pytest.raises(Forbidden) as refused:
        claimed_by({"sub": "s", "tenant_id": value, "roles": ["admin"]}, wanted)
    assert refused.value.stable_code == "not_a_member"


@pytest.mark.parametrize(
    "claims", [{}, {"tenant_id": None}, {"tenant_id": ""}, {"tenant_id": "ten_1"}, {"tenant_id": ["ten_1"]}]
)
def test_an_issuer_that_is_pinned_to_a_tenant_speaks_for_that_one(claims: dict[str, Any]):
    assert claimed_by({"sub": "s", **claims}, method(default_tenant="ten_1")).subject.tenant_id == "ten_1"


@given(st.dictionaries(st.sampled_from(["tenant_id", "org"]), VALUES | st.sampled_from(["ten_1", "ten_2", "acme"])))
def test_whatever_a_bound_issuer_writes_leads_to_its_own_tenants(claims: dict[str, Any]):
    for bound in ({"default_tenant": "ten_1"}, {"tenant_map": {"acme": "ten_1"}}):
        try:
            found = claimed_by({"sub": "s", **claims}, method(**bound))
        except Forbidden:
            continue
        assert found.subject.tenant_id == "ten_1"


def test_an_issuer_that_is_trusted_with_every_tenant_may_have_a_default_one_too():
    wanted = method(default_tenant="ten_1", any_tenant=True)
    assert claimed_by({"sub": "s"}, wanted).subject.tenant_id == "ten_1"
    assert claimed_by({"sub": "s", "tenant_id": "ten_2"}, wanted).subject.tenant_id == "ten_2"


def test_a_name_is_cut_and_has_no_control_characters():
    found = claimed_by({"sub": "s", "tenant_id": "t", "name": "A\nda\x00" + "x" * 500}, method())
    assert found.name.startswith("Adax")
    assert len(found.name) <= 200
    assert json.dumps(found.name)


def test_the_operator_s_role_is_none_that_a_token_can_name():
    for wanted in (method(), method(role_map={"a": "developer", "operator": "readonly"})):
        found = claimed_by({"sub": "s", "tenant_id": "t", "roles": ["operator", "a"]}, wanted).subject.roles
        assert found is not None
        assert "operator" not in found


def test_an_address_counts_where_the_issuer_has_verified_it():
    claims = {"sub": "s", "tenant_id": "t", "email": "ada@example.com"}
    assert claimed_by(claims | {"email_verified": True}, method()).email == "ada@example.com"
    for verified in (False, "true", 1, None):
        assert claimed_by(claims | {"email_verified": verified}, method()).email is None

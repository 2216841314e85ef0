"""Relay's `node` and `nodes`: what has an id of its own, found by that alone, as the field of its own finds it."""

import pytest
from graphql import get_named_type, is_composite_type, parse

from amplifier_api_server.control_plane.graphql.measure import Bounds, measure
from amplifier_api_server.control_plane.graphql.schema import CORE
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import Invalid

NODE = "query($id: ID!) { node(id: $id) { __typename id } }"
# As relay-compiler writes it for a @refetchable fragment on Session with a @connection.
REFETCH = """query Refetch($count: Int = 10, $cursor: String, $id: ID!) {
  node(id: $id) { __typename ...messages_1G22uz id }
}
fragment messages_1G22uz on Session {
  messagesConnection(first: $count, after: $cursor) {
    edges { node { role text __typename } cursor } pageInfo { endCursor hasNextPage }
  }
  id
}"""


def cost(query, **variables):
    settings = Settings()
    bounds = Bounds.of(settings.graphql, settings.api.page_size, settings.api.max_page_size)
    return measure(CORE, parse(query), variables, bounds)


async def test_each_kind_is_found_by_its_id_and_what_is_not_there_is_null(door):
    session = await door.session()
    made = await door.ask('mutation { createKey(name: "k", role: "developer") { id memberId } }')
    ids = {"Session": session, "Key": made["createKey"]["id"], "Member": made["createKey"]["memberId"]}
    for kind, one in ids.items():
        assert await door.ask(NODE, id=one) == {"node": {"__typename": kind, "id": one}}
    for none in ("sess_none", "x", "", "mem_ /", "req_1", "sess"):
        assert await door.ask(NODE, id=none) == {"node": None}, none
    many = "query($ids: [ID!]!) { nodes(ids: $ids) { id ... on Session { status } ... on Key { name } } }"
    found = await door.ask(many, ids=[ids["Key"], "sess_none", session])
    assert found["nodes"] == [{"id": ids["Key"], "name": "k"}, None, {"id": session, "status": "ACTIVE"}]


async def test_a_refetched_fragment_goes_through_the_pages(door):
    session = await door.session()
    await door.ask('mutation($s: ID!) { execute(sessionId: $s, prompt: "hi") { requestId } }', s=session)
    found = (await door.ask(REFETCH, id=session, count=1))["node"]
    assert (found["__typename"], found["id"]) == ("Session", session)
    assert found["messagesConnection"]["pageInfo"]["hasNextPage"] is False


async def test_another_tenants_are_not_there_and_the_fields_own_permission_is_asked_for(door):
    session, other = await door.session(), await door.another_tenant()
    many = "query($ids: [ID!]!) { nodes(ids: $ids) { id } }"
    assert await other.ask(many, ids=[session]) == {"nodes": [None]}
    await door.ask('mutation { createRole(name: "maker", permissions: ["keys:read"]) { name } }')
    maker = await door.key_of("maker")
    assert await maker.codes(NODE, id=session) == ["forbidden"]
    made = (await door.ask('mutation { createKey(name: "k", role: "developer") { id } }'))["createKey"]["id"]
    answer = (await maker.post(many, {"ids": [session, made]})).json()
    assert answer["data"] == {"nodes": [None, {"id": made}]}
    (error,) = answer["errors"]
    assert (error["path"], error["extensions"]["permission"]) == (["nodes", 0], "sessions:read")
    assert await door.codes(NODE, id="ten_" + "x" * 22) == ["forbidden"], "it is the operator's"


async def test_each_counts_as_a_request(door):
    made = await door.ask(
        """mutation { createKey(name: "k", role: "developer", limits: {requests_per_minute: 3}) { key } }"""
    )
    few = type(door)(door.plane, made["createKey"]["key"])
    answer = (await few.post('{ nodes(ids: ["sess_a", "key_b", "x", "sess_d", "sess_e"]) { id } }')).json()
    assert [one["extensions"]["code"] for one in answer["errors"]] == ["forbidden", "rate_limited"]


INNER = "messagesConnection(first: $n) { nodes { role } } executions(first: 5) { nodes { usage { totalTokens } } }"


def costs(query, n=7, **variables):
    return cost("query($n: Int, $ids: [ID!]) { " + query.replace("INNER", INNER), n=n, **variables)


def test_it_costs_what_the_field_of_its_own_costs():
    own = costs("session(id: 1) { INNER } }")
    assert costs("node(id: 1) { ... on Session { INNER } } }") == own
    assert costs("node(id: 1) { ...f } } fragment f on Session { INNER }") == own
    assert costs("node(id: 1) { ...f } } fragment f on Node { ... on Session { INNER } }") == own
    four = costs("nodes(ids: $ids) { ... on Session { INNER } } }", ids=["a"] * 4)
    assert four > 3 * own
    assert costs('nodes(ids: ["a", "b", "c", "d"]) { ... on Session { INNER } } }') == four
    with pytest.raises(Invalid, match="costs more"):
        costs("nodes(ids: $ids) { ... on Session { INNER } } }", n=100, ids=["a"] * 200)


def test_what_several_kinds_of_nodes_have_is_the_same_kind_of_thing():
    """So that what a document costs does not depend on which of them is found."""
    kinds: dict[str, set[str]] = {}
    for one in CORE.get_possible_types(CORE.type_map["Node"]):
        for name, field in one.fields.items():
            if is_composite_type(get_named_type(field.type)):
                kinds.setdefault(name, set()).add(str(field.type))
    assert [name for name, found in kinds.items() if len(found) > 1] == []


async def test_no_more_are_asked_for_than_a_page_has(door):
    most = Settings().api.max_page_size
    assert await door.codes("query($ids: [ID!]!) { nodes(ids: $ids) { id } }", ids=["x"] * (most + 1)) == [
        "invalid_request"
    ]

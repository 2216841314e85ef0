"""Every list has one shape, can be read from both of its ends, and refuses parameters that it does not have."""

import pytest
import pytest_asyncio

from tests.control_plane.sessions.test_large_transcripts import filled
from tests.hostile_runtime import attacked

LISTS = {
    "/v1/sessions": "sessions",
    "/v1/executions": "executions",
    "/v1/approvals": "approvals",
    "/v1/profiles": "profiles",
    "/v1/tools": "tools",
    "/v1/collections": "collections",
    "/v1/collections/installations": "installations",
    "/v1/models": "models",
    "/v1/keys": "keys",
    "/v1/provider-keys": "provider_keys",
    "/v1/members": "members",
    "/v1/invitations": "invitations",
    "/v1/roles": "roles",
    "/v1/audit": "audit_entries",
    "/v1/tenants": "tenants",
}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory):
    async with attacked(tmp_path_factory.mktemp("lists")) as one:
        async with one.client() as client:
            for number in range(3):
                await one.session()
                for path, body in {
                    "/v1/keys": {"name": f"k{number}", "role": "readonly"},
                    "/v1/members": {"name": f"m{number}", "role": "readonly"},
                    "/v1/roles": {"name": f"own-{number}", "permissions": ["sessions:read"]},
                }.items():
                    answer = await client.post(path, json=body)
                    assert answer.status_code == 201, answer.text
        yield one


def client_for(plane, path):
    return plane.client(plane.operator_key if path == "/v1/tenants" else plane.key)


async def read(client, path, name, **query):
    """All of a list, by pages of one."""
    found, cursor = [], ""
    while cursor is not None:
        answer = await client.get(path, params={"limit": 1, "cursor": cursor, **query})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()[name]) <= 1
        found += answer.json()[name]
        cursor = answer.json()["next_cursor"]
    return found


@pytest.mark.parametrize(("path", "name"), LISTS.items())
async def test_a_list_is_read_by_pages_from_either_end(plane, path, name):
    async with client_for(plane, path) as client:
        whole = (await client.get(path)).json()
        assert whole["next_cursor"] is None
        assert await read(client, path, name) == whole[name]
        ascending = await read(client, path, name, order="asc")
        assert ascending == list(reversed(await read(client, path, name, order="desc")))
        assert whole[name] in (ascending, ascending[::-1])
        unknown = await client.get(path, params={"order": "up"})
        assert (unknown.status_code, unknown.json()["errors"][0]["field"]) == (422, "query.order")


async def test_every_list_is_tried(plane):
    routes = plane.app.routes.routes
    listing = {one.template for one in routes if one.operation.name.startswith("list") and "{" not in one.template}
    assert listing - {"/auth/methods"} == LISTS.keys()


async def test_no_route_takes_a_parameter_that_it_does_not_have(plane):
    async with plane.client() as client, plane.client(plane.operator_key) as operator:
        for route in plane.app.routes.routes:
            if not route.template.startswith("/v1/"):
                continue
            path = route.template.replace("{", "").replace("}", "")
            asked = {"no_such": "1", "": "", "filter[a]": "2"}
            answer = await client.request(route.method, path, params=asked)
            if answer.status_code == 403:
                answer = await operator.request(route.method, path, params=asked)
            assert answer.status_code == 422, (route, answer.text)
            assert [one["field"] for one in answer.json()["errors"]] == ["no_such", "", "filter[a]"], route


async def test_a_parameter_that_is_not_known_is_told_with_those_that_are(plane):
    async with plane.client() as client:
        answer = await client.get("/v1/sessions?profil=birds:watch")
        assert answer.json()["detail"] == (
            "profil is no parameter of this request; there are cursor, limit, member_id, order, profile, status"
        )
        assert (await client.get("/health?cache=1")).status_code == 200  # what anybody may open takes anything


async def test_sessions_are_found_by_profile_status_and_member(plane):
    async with plane.client() as client:
        sessions = (await client.get("/v1/sessions")).json()["sessions"]
        mine, made = sessions[0]["member_id"], sessions[0]["profile"]
        for query, count in (
            ({"profile": made, "member_id": mine, "status": ["active", "suspended"]}, len(sessions)),
            ({"profile": "no:such"}, 0),
            ({"member_id": "mem_none"}, 0),
            ({"status": "closed"}, 0),
        ):
            assert len((await client.get("/v1/sessions", params=query)).json()["sessions"]) == count, query
        query = f'{{ sessionsConnection(profile: "{made}", memberId: "{mine}", order: ASC, after: "") {{ nodes {{ id }} }} }}'
        nodes = (await client.post("/graphql", json={"query": query})).json()["data"]["sessionsConnection"]["nodes"]
        assert [one["id"] for one in nodes] == [one["session_id"] for one in reversed(sessions)]


async def test_messages_are_read_from_either_end_on_both_doors(plane):
    session_id, _ = await filled(plane, [{"role": "assistant", "content": str(number)} for number in range(4)])
    async with plane.client() as client:
        path = f"/v1/sessions/{session_id}/messages"
        for order, expected in (("asc", "0123"), ("desc", "3210")):
            assert "".join(one["content"] for one in await read(client, path, "messages", order=order)) == expected
            query = f'{{ messages(sessionId: "{session_id}", order: {order.upper()}, first: 3, after: "") {{ nodes {{ text }} }} }}'
            nodes = (await client.post("/graphql", json={"query": query})).json()["data"]["messages"]["nodes"]
            assert "".join(one["text"] for one in nodes) == expected[:3]

"""Every route, root field and message takes a permission, and the same one wherever the same thing is asked for."""

from collections import defaultdict

import httpx2
import pytest
import pytest_asyncio

from amplifier_api_server.control_plane.operations import ONLY_REST, OPERATIONS
from amplifier_api_server.tenants.permissions import EVERYBODY, OPERATOR_RESOURCES, RESOURCES
from tests.doors.clients import Callers
from tests.doors.honest import behave
from tests.doors.served import listening
from tests.doors.ways import all_ways, ways_of

DOORS = {"rest", "graphql", "websocket"}
EVERY = {f"{resource}:{action}" for resource, actions in RESOURCES.items() for action in actions}
OF_OPERATORS = {one for one in EVERY if one.partition(":")[0] in OPERATOR_RESOURCES}
OF_TENANTS = EVERY - OF_OPERATORS
REFUSABLE = OF_TENANTS - EVERYBODY
IN_ONE_LOOP = pytest.mark.asyncio(loop_scope="module")


def test_everything_that_can_be_asked_for_can_be_on_every_door():
    found = defaultdict(set)
    for way in all_ways():
        found[way.operation.name].add(way.door)
    missing = {name: DOORS - found[name] for name in OPERATIONS if name not in ONLY_REST and found[name] != DOORS}
    assert not missing
    assert {name for name, doors in found.items() if name in ONLY_REST and doors != {"rest"}} == set()


def test_every_permission_there_is_opens_something():
    assert {way.operation.permission for way in all_ways()} == EVERY


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory):
    async with listening(tmp_path_factory.mktemp("matrix")) as one:
        behave(one.plane.fleet)
        yield one


async def key_with(served, name, permissions):
    """A key whose role holds these and no others."""
    async with served.plane.client() as admin:
        made = await admin.post("/v1/roles", json={"name": name, "permissions": sorted(permissions)})
        assert made.status_code == 201, made.text
        made = await admin.post("/v1/keys", json={"name": name, "role": name})
        assert made.status_code == 201, made.text
    return made.json()["key"]


async def called(served, name, permissions):
    return await Callers.known(served.port, await key_with(served, name, permissions))


@pytest.mark.parametrize("permission", sorted(REFUSABLE))
@IN_ONE_LOOP
async def test_without_exactly_it_each_door_refuses_with_the_same_problem(served, permission):
    role = "all-but-" + permission.replace(":", "-")
    async with await called(served, role, OF_TENANTS - {permission}) as callers:
        for way in ways_of(permission):
            outcome = await way.ask(callers)
            assert outcome.problem == {
                "type": "/errors/forbidden",
                "title": "Not allowed",
                "status": 403,
                "detail": f"this caller's role ({role}) does not have {permission}",
                "code": "forbidden",
                "permission": permission,
            }, str(way)


@pytest.mark.parametrize("permission", sorted(OF_TENANTS))
@IN_ONE_LOOP
async def test_with_exactly_it_each_door_lets_in(served, permission):
    # A stream of events is silent for who may read nothing that they tell of: what was made for this test is heard.
    held = {permission, "keys:read"} if permission == "events:read" else {permission}
    async with await called(served, "only-" + permission.replace(":", "-"), held) as callers:
        for way in ways_of(permission):
            if way.operation.permission in OF_OPERATORS:
                continue
            problem = (await way.ask(callers)).problem
            lacks = set(way.operation.permissions) - held
            if lacks:
                assert {problem["permission"]} == lacks, (str(way), problem)
            else:
                assert problem is None or was_let_in(problem), (str(way), problem)


def was_let_in(problem):
    """Whether a refusal is the service's own: it does not exist, it is wrong, it is more than the caller may give."""
    if problem["code"] == "source_unreachable":  # there is no network
        return True
    is_of_the_gate = problem["code"] == "forbidden" and "permission" in problem
    return not is_of_the_gate and problem["status"] not in (400, 401, 429) and problem["status"] < 500


@IN_ONE_LOOP
async def test_whoever_is_known_may_ask_who_they_are_and_what_holds_for_them(served):
    async with await called(served, "next-to-nothing", {"usage:read"}) as callers:
        for permission in EVERYBODY:
            for way in ways_of(permission):
                assert (await way.ask(callers)).problem is None, str(way)


@IN_ONE_LOOP
async def test_what_is_the_operators_no_admin_of_a_tenant_may(served):
    async with await Callers.known(served.port, served.plane.key) as admin:
        for permission in sorted(OF_OPERATORS):
            for way in ways_of(permission):
                problem = (await way.ask(admin)).problem
                assert problem is not None, str(way)
                assert (problem["code"], problem["permission"]) == ("forbidden", permission), str(way)


@IN_ONE_LOOP
async def test_what_is_a_tenants_the_operator_may_not_and_what_is_the_operators_it_may(served):
    own = OF_OPERATORS | {"audit:read"} | EVERYBODY
    async with await Callers.known(served.port, served.plane.operator_key) as operator:
        for way in all_ways():
            permission = way.operation.permission
            problem = (await way.ask(operator)).problem
            if permission in own:
                assert problem is None or was_let_in(problem), (str(way), problem)
            else:
                assert problem is not None, str(way)
                assert (problem["code"], problem["permission"]) == ("forbidden", permission), (str(way), problem)


@pytest.mark.parametrize("key", [None, "amp_live_nobodysKey0000000000000000000000000000000", "x"])
@IN_ONE_LOOP
async def test_nobody_is_let_in_by_any_door(served, key):
    headers = {"X-API-Key": key} if key else {}
    async with httpx2.AsyncClient(base_url=served.url, headers=headers, trust_env=False) as client:
        for way in (one for one in all_ways() if one.door == "rest"):
            method, path = way.name.split(" ")
            answer = await client.request(method, path.replace("{", "").replace("}", ""))
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), str(way)
        answer = await client.post("/graphql", json={"query": "{ __typename }"})
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    if key is not None:
        with pytest.raises(AssertionError, match="unauthenticated"):
            await Callers.known(served.port, key)

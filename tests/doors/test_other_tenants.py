"""What another tenant owns does not exist: on no door, for no read and no write, nor for who is an admin elsewhere.

Each way is asked for the other tenant's object and for one that nobody has, and must answer both alike.
"""

import io
import json
import zipfile
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
from graphql import GraphQLObjectType, get_named_type, is_leaf_type, is_required_argument

from amplifier_api_server.control_plane.graphql.schema import CORE
from amplifier_api_server.tenants.permissions import OPERATOR_RESOURCES
from tests.doors import honest
from tests.doors.clients import Callers
from tests.doors.served import listening
from tests.doors.ways import all_ways
from tests.tenants.embedded import GITHUB

APPROVAL_ID = "apr_" + "0" * 24
EXPIRES_AT = "2099-01-01T00:00:00+00:00"
APPROVAL = {
    "approval_id": APPROVAL_ID,
    "status": "requested",
    "prompt": "bash: rm x",
    "options": ["Allow once", "Deny"],
    "timeout_seconds": 300.0,
    "expires_at": EXPIRES_AT,
}
PROVIDER = {"name": "anthropic", "base_url": "http://127.0.0.1:9", "tenant_keys": "required"}
IN_ONE_LOOP = pytest.mark.asyncio(loop_scope="module")
# Names that every tenant has for itself, or that are the service's: there is nobody else's of it.
EVERYBODYS = {"executeTool"}


def is_of_tenants(way):
    return way.operation.permission.partition(":")[0] not in OPERATOR_RESOURCES


OWNED = [one for one in all_ways() if one.takes and is_of_tenants(one) and one.operation.name not in EVERYBODYS]
# Of a body or a query, that name something that somebody owns: operation -> what it is given.
NAMED_BESIDES = {
    "createKey": {"member_id": "member_id"},
    "createSession": {"profile": "profile"},
    "listAuditEntries": {"tenant_id": "tenant_id"},
}


@dataclass
class Owned:
    """A tenant and what it has."""

    callers: Callers
    tenant_id: str
    ids: dict[str, str] = field(default_factory=dict)  # by the parameters' names
    names: dict[str, str] = field(default_factory=dict)  # of what `name` is, by its operation

    def given(self, way):
        found = {one: self.names[way.operation.name] if one == "name" else self.ids[one] for one in way.takes}
        if way.operation.name == "streamExecution":  # of one that has ended: the other says nothing
            found["request_id"] = self.ids["ended_id"]
        return found


async def turn(request):
    """One that waits for a consent, or an honest one."""
    if request.body["prompt"] == "wait":
        await request.hang()
    else:
        await honest.turn(request)


async def asks(request):
    await request.reply(200, {"approvals": [APPROVAL]})


async def takes(request):
    await request.reply(200, {**APPROVAL, "status": "answered", "choice": "Deny", "approved": False})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory):
    auth = {"methods": [{"type": "api_key"}, GITHUB]}
    async with listening(tmp_path_factory.mktemp("apart"), models={"providers": [PROVIDER]}, auth=auth) as one:
        honest.behave(one.plane.fleet)
        one.plane.fleet.answers |= {
            ("POST", "turn"): turn,
            ("GET", "approvals"): asks,
            ("POST", "approval"): takes,
        }
        yield one


async def tenant(served, name):
    """(its admin's key, its id)"""
    async with served.plane.client(served.plane.operator_key) as operator:
        made = await operator.post("/v1/tenants", json={"name": name, "tier": "enterprise"})
    return made.json()["admin_key"], made.json()["id"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owner(served):
    """Somebody who has one of everything."""
    key, tenant_id = await tenant(served, "owner")
    async with await Callers.known(served.port, key) as callers:
        client = callers.rest.client

        async def made(path, **more):
            answer = await client.post(path, **more)
            assert answer.status_code in (200, 201, 202), answer.text
            return answer.json()

        session = (await made("/v1/sessions", json={"profile": "foundation:base"}))["session_id"]
        ended = await made(f"/v1/sessions/{session}/execute", json={"prompt": "hi"})
        running = await made(f"/v1/sessions/{session}/execute", json={"prompt": "wait", "background": True})
        await made("/v1/profiles", json={"name": "mine", "content": "text"})
        await made("/v1/roles", json={"name": "reviewer", "permissions": ["sessions:read"]})
        await made("/v1/provider-keys", json={"provider": "anthropic", "api_key": "sk-own-0123456789-wxyz"})
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as files:
            files.writestr("README.md", "x")
        await made("/v1/collections", content=archive.getvalue(), headers={"content-type": "application/zip"})
        another = await made("/v1/keys", json={"name": "k", "role": "reviewer"})
        invited = await made("/v1/invitations", json={"email": "ada@example.com", "role": "reviewer"})
        (installation,) = (await client.get("/v1/collections/installations")).json()["installations"]
        ids = {
            "session_id": session,
            "request_id": running["request_id"],
            "ended_id": ended["request_id"],
            "approval_id": APPROVAL_ID,
            "key_id": another["id"],
            "member_id": another["member_id"],
            "invitation_id": invited["id"],
            "installation_id": installation["installation_id"],
            "provider": "anthropic",
            "profile": "mine",
            "tenant_id": tenant_id,
        }
        names = dict.fromkeys(("getProfile", "deleteProfile"), "mine")
        names |= dict.fromkeys(("getCollection", "deleteCollection"), "kit")
        names |= dict.fromkeys(("getRole", "updateRole", "deleteRole"), "reviewer")
        yield Owned(callers, tenant_id, ids, names)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stranger(served):
    """The admin of another tenant, which has nothing."""
    key, tenant_id = await tenant(served, "stranger")
    async with await Callers.known(served.port, key) as callers:
        yield Owned(callers, tenant_id)


def nobodys(given):
    """Of the same form, and not there."""
    return {name: _changed(value) for name, value in given.items()}


def _changed(value):
    head, mark, tail = value.rpartition("_")
    return head + mark + "".join("z" if char != "z" else "y" for char in tail)


def forgetting(outcome, *givens):
    """What was answered, without the ids that were asked for: what is left must not tell them apart."""
    text = json.dumps([outcome.problem, outcome.data], sort_keys=True)
    for given in givens:
        for name, value in given.items():
            text = text.replace(json.dumps(value)[1:-1], f"<{name}>")
    return text


def test_every_way_that_names_an_object_is_here():
    assert {one.door for one in OWNED} == {"rest", "graphql", "websocket"}
    assert len({one.operation.name for one in OWNED}) > 25


@IN_ONE_LOOP
async def test_its_owner_can_read_each_of_them_on_every_door(owner):
    """So that what follows shows something."""
    for way in OWNED:
        if not way.operation.permission.endswith(":read"):
            continue
        outcome = await way.ask(owner.callers, **owner.given(way))
        assert outcome.problem is None, (str(way), outcome.problem)
        if way.door == "graphql":
            assert None not in outcome.data.values(), str(way)


@pytest.mark.parametrize("way", OWNED, ids=str)
@IN_ONE_LOOP
async def test_to_an_admin_of_another_tenant_it_is_as_if_there_were_none(owner, stranger, way):
    theirs = owner.given(way)
    none = nobodys(theirs)
    of_theirs = await way.ask(stranger.callers, **theirs)
    of_none = await way.ask(stranger.callers, **none)
    assert forgetting(of_theirs, theirs) == forgetting(of_none, none)
    if of_theirs.problem is None:
        assert way.door == "graphql", of_theirs
        assert list(of_theirs.data.values()) == [None]
    else:
        assert of_theirs.problem["status"] == 404, of_theirs.problem
        assert of_theirs.code.endswith("not_found"), of_theirs.problem


@pytest.mark.parametrize("name", NAMED_BESIDES)
@IN_ONE_LOOP
async def test_nor_can_it_be_named_in_a_body_or_a_query(owner, stranger, name):
    for way in (one for one in all_ways() if one.operation.name == name):
        theirs = {member: owner.ids[what] for member, what in NAMED_BESIDES[name].items()}
        none = nobodys(theirs)
        of_theirs, of_none = await way.ask(stranger.callers, **theirs), await way.ask(stranger.callers, **none)
        assert of_theirs.problem is not None, str(way)
        assert of_theirs.problem["status"] in (404, 422), (str(way), of_theirs.problem)
        assert forgetting(of_theirs, theirs) == forgetting(of_none, none), str(way)


@IN_ONE_LOOP
async def test_a_session_of_ones_own_is_not_forked_at_anothers_execution(owner, stranger):
    made = await stranger.callers.rest.ask("POST", "/v1/sessions", {"profile": "foundation:base"})
    for way in (one for one in all_ways() if one.operation.name == "forkSession"):
        outcome = await way.ask(
            stranger.callers, session_id=made.data["session_id"], request_id=owner.ids["request_id"]
        )
        assert outcome.problem is not None, str(way)
        assert outcome.problem["status"] == 404, (str(way), outcome.problem)


def whole_of(kind):
    """As much as a document may cost: of a list that has no pages each row's own fields, of a page its rows'."""
    return whole(kind, 1 if get_named_type(kind).name.endswith(("Connection", "Report", "Policy", "Keys")) else 0)


def whole(kind, depth):
    """Every field of a type that can be asked for without an argument."""
    named = get_named_type(kind)
    if is_leaf_type(named):
        return ""
    found = []
    for name, one in getattr(named, "fields", {}).items():
        inner = get_named_type(one.type)
        if any(is_required_argument(argument) for argument in one.args.values()):
            continue
        if is_leaf_type(inner):
            found.append(name)
        elif depth and isinstance(inner, GraphQLObjectType) and (below := whole(one.type, depth - 1)):
            found.append(f"{name} {below}")
    return "{ " + " ".join(found) + " }" if found else ""


async def lists(callers):
    """All that can be listed, on every door."""
    found = []
    for way in all_ways():
        if way.takes or not way.operation.permission.endswith(":read") or not is_of_tenants(way):
            continue
        if way.door == "graphql":
            kind, name = way.name.split(".")
            field = CORE.type_map[kind].fields[name]
            if kind == "Query" and not any(map(is_required_argument, field.args.values())):
                document = f"{{ {name} {whole_of(field.type)} }}"
                found.append((way, await callers.graphql.ask(document)))
        elif way.operation.name not in ("streamEvents", "streamExecution"):
            found.append((way, await way.ask(callers)))
    return found


def seen_in(text, owner):
    wanted = [one for name, one in owner.ids.items() if name not in ("provider", "profile", "approval_id")]
    return [one for one in wanted if one in text]


@IN_ONE_LOOP
async def test_no_list_of_any_door_shows_any_of_it(owner, stranger):
    shown = set()
    for way, outcome in await lists(owner.callers):
        assert outcome.problem is None, (str(way), outcome.problem)
        shown |= set(seen_in(json.dumps(outcome.data), owner))
    assert shown >= {owner.ids[name] for name in ("session_id", "key_id", "member_id", "invitation_id")}
    for way, outcome in await lists(stranger.callers):
        assert outcome.problem is None, (str(way), outcome.problem)
        assert not seen_in(json.dumps(outcome.data), owner), str(way)


@IN_ONE_LOOP
async def test_what_happens_to_a_tenant_is_told_to_its_own_followers_alone(owner, stranger):
    """The stranger makes something last, and hears it without having heard of anybody else."""
    mark = (await stranger.callers.rest.ask("POST", "/v1/sessions", {"profile": "foundation:base"})).data["session_id"]

    async def until_mark(events):
        heard = []
        async for event in events:
            heard.append(json.dumps(event))
            if mark in heard[-1]:
                return "\n".join(heard)
        raise AssertionError("it ended")

    by_rest = await until_mark(stranger.callers.rest.events("/v1/events?from=start"))
    document = "subscription { events(fromStart: true) " + whole(CORE.subscription_type.fields["events"].type, 1) + " }"
    by_graphql = await until_mark(stranger.callers.graphql.events(document))

    async def of_socket():
        while True:
            yield await stranger.callers.socket.hear()

    await stranger.callers.socket.ask("events.subscribe", start=True)
    by_socket = await until_mark(of_socket())
    for heard in (by_rest, by_graphql, by_socket):
        assert not seen_in(heard, owner)
        assert owner.tenant_id not in heard


@IN_ONE_LOOP
async def test_the_operator_reads_and_changes_nothing_of_a_tenants_sessions(served, owner):
    async with await Callers.known(served.port, served.plane.operator_key) as operator:
        for way in OWNED:
            outcome = await way.ask(operator, **owner.given(way))
            assert outcome.code == "forbidden", (str(way), outcome)


@IN_ONE_LOOP
async def test_after_all_of_it_everything_is_as_it_was(owner):
    for way in OWNED:
        if way.door == "rest" and way.operation.permission.endswith(":read"):
            outcome = await way.ask(owner.callers, **owner.given(way))
            assert outcome.problem is None, (str(way), outcome.problem)
    session = await owner.callers.rest.ask("GET", f"/v1/sessions/{owner.ids['session_id']}")
    assert (session.data["status"], session.data["turn_count"], session.data["title"]) == ("active", 1, None)
    running = await owner.callers.rest.ask(
        "GET", f"/v1/sessions/{owner.ids['session_id']}/executions/{owner.ids['request_id']}"
    )
    assert running.data["status"] == "running"

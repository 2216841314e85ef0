"""Every message asks for one operation, needs its permission, and there is a message for each operation of other doors."""

import pytest
import pytest_asyncio

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.operations import ONLY_REST, OPERATIONS
from amplifier_api_server.control_plane.routing import route_table
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.websocket.connection import Connection
from amplifier_api_server.control_plane.websocket.messages import CLIENT_MESSAGES, read
from amplifier_api_server.control_plane.websocket.table import (
    ANY,
    CALLABLE,
    FOLLOWED,
    IN_BACKGROUND,
    OPERATION_OF,
    TRANSLATED,
    UNBOUND,
)
from amplifier_api_server.tenants.errors import DomainError, Forbidden
from amplifier_api_server.tenants.ids import CredentialId, MemberId, TenantId
from amplifier_api_server.tenants.permissions import EVERYBODY, RESOURCES
from amplifier_api_server.tenants.tiers import Limits
from tests.hostile_runtime import attacked

UNLIMITED = Limits(**dict.fromkeys(Limits.__dataclass_fields__))
ALL = frozenset(f"{resource}:{action}" for resource, actions in RESOURCES.items() for action in actions)
HOT = {"execute", "getExecution", "streamExecution", "cancelExecution"}


def test_every_message_is_bound_or_about_the_connection_alone():
    assert set(CLIENT_MESSAGES) == {*OPERATION_OF, ANY}
    assert not set(TRANSLATED) & set(FOLLOWED)
    assert {name for name, operation in OPERATION_OF.items() if operation is None} == UNBOUND


def test_there_is_a_message_for_every_operation_of_the_other_doors():
    bound = {name for name in OPERATION_OF.values() if name is not None}
    assert bound | CALLABLE == OPERATIONS.keys() - ONLY_REST.keys()
    assert all(OPERATIONS[name].permission for name in bound | CALLABLE)


def test_every_operation_that_can_be_called_has_one_route():
    rows = [route.operation.name for route in route_table(Settings(), None).routes]
    assert [
        name for name in (*CALLABLE, *(one.operation for one in TRANSLATED.values())) if rows.count(name) != 1
    ] == []
    assert {one.operation for one in IN_BACKGROUND.values()} <= set(rows)


def test_what_a_message_says_of_its_path_is_what_its_route_has():
    routes = {route.operation.name: route.template for route in route_table(Settings(), None).routes}
    for one in (*TRANSLATED.values(), *IN_BACKGROUND.values()):
        wanted = [part[1:-1] for part in routes[one.operation].split("/") if part.startswith("{")]
        assert sorted(one.path) == sorted(wanted), one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(tmp_path_factory):
    async with attacked(tmp_path_factory.mktemp("matrix")) as plane:
        yield plane.app


MESSAGES = {
    "session.create": {"profile": "nobody:has-it"},
    "session.get": {"session_id": "sess_x"},
    "session.list": {},
    "session.update": {"session_id": "sess_x", "title": "t"},
    "session.fork": {"session_id": "sess_x"},
    "session.close": {"session_id": "sess_x"},
    "execute": {"session_id": "sess_x", "prompt": "hello"},
    "execute.once": {"profile": "nobody:has-it", "prompt": "hello"},
    "cancel": {"session_id": "sess_x", "request_id": "req_x"},
    "attach": {"session_id": "sess_x", "request_id": "req_x"},
    "approval.respond": {
        "session_id": "sess_x",
        "request_id": "req_x",
        "approval_id": "apr_x",
        "approved": True,
    },
    "approvals.list": {"session_id": "sess_x", "request_id": "req_x"},
    "events.subscribe": {},
}


async def answer_of(app, grants, name, members):
    """What somebody of a tenant that has nothing is answered, by their grants; None where it works."""
    import orjson

    async def send(message):
        pass

    async def receive():
        raise AssertionError("nothing is read")

    who = Principal(
        CredentialId("key_x"), TenantId("ten_x"), MemberId("mem_x"), "made up", grants, "enterprise", UNLIMITED
    )
    connection = Connection(app.websocket._uses, receive, send, None)
    message, given = read(orjson.dumps({"type": name, **members}).decode())
    try:
        await app.websocket._uses.work(connection, who, message, given)
    except DomainError as error:
        return error
    finally:
        await connection.following.end()
    return None


def params_of(operation):
    route = next(one for one in route_table(Settings(), None).routes if one.operation.name == operation)
    return {part[1:-1]: "x" for part in route.template.split("/") if part.startswith("{")}


CASES = [(name, OPERATION_OF[name], members) for name, members in MESSAGES.items()]
CASES += [("execute", "execute", MESSAGES["execute"] | {"background": True})]
CASES += [(ANY, name, {"operation": name, "params": params_of(name)}) for name in sorted(CALLABLE)]


def test_every_message_is_in_the_matrix():
    assert {name for name, _, _ in CASES} == set(CLIENT_MESSAGES) - UNBOUND


@pytest.mark.parametrize(("name", "operation", "members"), CASES, ids=lambda one: one if isinstance(one, str) else "")
@pytest.mark.asyncio(loop_scope="module")
async def test_a_message_is_refused_to_whoever_lacks_its_permission_alone(app, name, operation, members):
    permissions = OPERATIONS[operation].permissions
    for permission in set(permissions) - EVERYBODY:
        refused = await answer_of(app, ALL - {permission}, name, members)
        assert isinstance(refused, Forbidden)
        assert refused.extra["permission"] == permission
    allowed = await answer_of(app, frozenset(permissions), name, members)
    assert not isinstance(allowed, Forbidden)

"""Every root field asks for one operation, needs its permission, and there is a field for each operation of other doors."""

import re
from pathlib import Path

import pytest
import pytest_asyncio

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.fair_queue import FairQueue
from amplifier_api_server.control_plane.graphql.context import Context
from amplifier_api_server.control_plane.graphql.engine import Asked, Engine
from amplifier_api_server.control_plane.graphql.schema import BOUND
from amplifier_api_server.control_plane.operations import ONLY_REST, OPERATIONS
from amplifier_api_server.tenants.ids import CredentialId, MemberId, TenantId
from amplifier_api_server.tenants.permissions import EVERYBODY, RESOURCES
from amplifier_api_server.tenants.tiers import Limits
from tests.control_plane.graphql.documents import document_of
from tests.hostile_runtime import attacked

UNLIMITED = Limits(**dict.fromkeys(Limits.__dataclass_fields__))
ALL = frozenset(f"{resource}:{action}" for resource, actions in RESOURCES.items() for action in actions)


def test_there_is_a_field_for_every_operation_of_the_other_doors():
    assert {one.name for one in BOUND.values()} == OPERATIONS.keys() - ONLY_REST.keys()


def test_every_operation_of_a_field_takes_a_permission():
    assert not [field for field, operation in BOUND.items() if operation.permission is None]


def test_what_changes_something_is_a_mutation():
    changing = re.compile(
        r"create|update|close|fork|import|execute|cancel|answer|write|remove|install|revoke|rotate|set|change|delete"
    )
    wrong = [
        (kind, name) for (kind, name), one in BOUND.items() if (kind == "Mutation") != bool(changing.match(one.name))
    ]
    assert wrong == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services(tmp_path_factory):
    async with attacked(tmp_path_factory.mktemp("matrix")) as plane:
        yield plane.app.services


async def codes(services, grants, document) -> list[str]:
    """Of somebody of a tenant that has nothing, by their grants."""
    who = Principal(
        CredentialId("key_x"), TenantId("ten_x"), MemberId("mem_x"), "made up", grants, "enterprise", UNLIMITED
    )
    engine, asked = Engine(services.settings, FairQueue()), Asked(document)
    found: list[str] = []
    async for payload in engine.stream(engine.prepared(asked), asked, Context(services, who)):
        found += [one["extensions"]["code"] for one in payload.get("errors", [])]
        break
    return found


@pytest.mark.parametrize(("kind", "name"), sorted(BOUND), ids=str)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_field_is_refused_to_whoever_lacks_its_permission_alone(services, kind, name):
    permissions = BOUND[kind, name].permissions
    document = document_of(kind, name)
    for permission in set(permissions) - EVERYBODY:
        assert await codes(services, ALL - {permission}, document) == ["forbidden"]
    if name != "events":  # it waits
        assert not {"forbidden", "internal", "rate_limited"} & set(
            await codes(services, frozenset(permissions), document)
        )


async def test_what_shows_another_resource_asks_for_its_permission_too(door):
    await door.ask('mutation { createRole(name: "maker", permissions: ["sessions:create"]) { name } }')
    maker = await door.key_of("maker")
    document = 'mutation { createSession(profile: "foundation:base") { id %s } }'
    assert await maker.codes(document % "") == []
    for inner in ("messages { role }", "messagesConnection { nodes { role } }", "executions { nodes { requestId } }"):
        assert await maker.codes(document % inner) == ["forbidden"]


def test_the_documentation_lists_every_field_with_its_operation_and_permission():
    page = (Path(__file__).parents[3] / "docs" / "graphql.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)\.(\w+)` \| `(\w+)` \| `([\w:]+)` \|$", page, re.MULTILINE))
    assert listed == {(kind, name, one.name, one.permission) for (kind, name), one in BOUND.items()}

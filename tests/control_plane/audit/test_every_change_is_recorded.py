"""The audit log, by REST at a whole control plane: every management operation leaves its entry, and no secret in it."""

import ast
import asyncio
import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

import amplifier_api_server
from amplifier_api_server.control_plane.audit.actions import AUDITED, KNOWN_BY_THE_LOG
from amplifier_api_server.control_plane.operations import OPERATIONS
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.models import Collection
from amplifier_api_server.tenants.repository import collections
from tests.hostile_runtime import attacked
from tests.tenants.embedded import GITHUB

SOURCE = Path(amplifier_api_server.__file__).parent / "control_plane"
# They need a browser, or a sandbox that asks: their own tests do them.
ELSEWHERE = {"finishLogin", "logOut", "decideDeviceLogin", "acceptInvitation", "answerApproval"}
SECRET = "sk-own-0123456789abcdef0123456789"
PROFILE = "---\nbundle:\n  name: mine\n---\nYou are mine.\n"


def actions_in_source() -> set[str]:
    """What `record` is called with, wherever it is written out."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "record"
            if is_call and len(node.args) > 3 and isinstance(node.args[3], ast.Constant):
                found.add(node.args[3].value)
    return found


def test_what_is_audited_is_what_is_recorded():
    assert actions_in_source() == AUDITED


def test_an_action_is_an_operations_name():
    assert OPERATIONS.keys() >= AUDITED >= KNOWN_BY_THE_LOG


def test_management_that_changes_something_is_audited():
    """By the operations' names: whoever adds one decides here, by name, or in `daily` below."""
    daily = {
        "createSession",
        "updateSession",
        "forkSession",
        "importSession",
        "execute",
        "executeOnce",
        "cancelExecution",
        "executeTool",
        "graphql",  # what is asked there is an operation of its own
        "getLimits",
        "getMe",
    }
    reads = ("list", "get", "stream")
    changing = {
        name for name, one in OPERATIONS.items() if one.permission is not None and not name.startswith(reads)
    } - {"exportSession"}
    assert changing - daily - AUDITED == set()


@pytest.fixture
async def hanging():
    """An address that takes connections and says nothing."""
    waiting: list[asyncio.StreamWriter] = []

    async def accept(_reader, writer):
        waiting.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for writer in waiting:
        writer.transport.abort()


@pytest.fixture
async def plane(tmp_path, hanging):
    provider = {
        "name": "openai",
        "base_url": "http://127.0.0.1:9/v1",
        "api_key": "sk-of-the-operator",
        "tenant_keys": "allowed",
    }
    async with attacked(
        tmp_path,
        collections={"private_hosts": [hanging], "wait": "1ms"},
        models={"providers": [provider], "default": "m"},
        auth={"methods": [{"type": "api_key"}, GITHUB]},
    ) as one:
        yield one


@pytest.fixture
async def client(plane):
    async with plane.client() as one:
        one.headers["User-Agent"] = "audit-test/1"
        yield one


async def entries(client, **wanted) -> list[dict]:
    answer = await client.get("/v1/audit", params={"limit": 200, **wanted})
    assert answer.status_code == 200, answer.text
    return answer.json()["audit_entries"]


async def do(client, method: str, path: str, body=None, *, status: int):
    answer = await client.request(method, path, json=body)
    assert answer.status_code == status, (method, path, answer.text)
    return answer


async def me_of(client) -> tuple[str, str]:
    """The caller's tenant and member."""
    me = (await client.get("/v1/me")).json()
    return me["tenant"]["id"], me["member"]["id"]


async def collection(plane, tenant_id: str) -> None:
    row = Collection(
        id="col_x",
        tenant_id=tenant_id,
        name="mine",
        version="1",
        source="git+https://example.com/x",
        content_hash="sha256:" + "0" * 64,
        image={"root": {"tree": "0" * 64}},
        manifest={},
        installed_at=datetime.now(UTC),
        installed_by="mem_x",
    )
    async with plane.app.services.database.write() as db:
        await collections.put(db, TenantId(tenant_id), row)


async def changed_by_a_tenant(plane, client, hanging, tenant_id) -> dict[str, str]:
    """Every operation of a tenant's: its action, and the id of the request that did it."""
    done = {}

    async def step(action, method, path, body=None, *, status):
        answer = await do(client, method, path, body, status=status)
        done[action] = answer.headers["X-Request-Id"]
        return answer.json() if answer.content else None

    key = await step("createKey", "POST", "/v1/keys", {"name": "a", "role": "developer"}, status=201)
    rotated = await step("rotateKey", "POST", f"/v1/keys/{key['id']}/rotate", {}, status=201)
    await step("revokeKey", "DELETE", f"/v1/keys/{rotated['id']}", status=204)
    own = {"provider": "openai", "api_key": SECRET}
    await step("setProviderKey", "POST", "/v1/provider-keys", own, status=201)
    await step("deleteProviderKey", "DELETE", "/v1/provider-keys/openai", status=204)
    await step("setWebPolicy", "PUT", "/v1/web-policy", {"deny": ["example.com"]}, status=200)
    member = await step("createMember", "POST", "/v1/members", {"name": "bot", "role": "readonly"}, status=201)
    path = f"/v1/members/{member['id']}"
    await step("updateMember", "PATCH", path, {"role": "developer"}, status=200)
    await step("deleteMember", "DELETE", path, status=204)
    wish = {"email": "ada@example.com", "role": "developer"}
    invited = await step("createInvitation", "POST", "/v1/invitations", wish, status=201)
    await step("revokeInvitation", "DELETE", f"/v1/invitations/{invited['id']}", status=204)
    await step("createRole", "POST", "/v1/roles", {"name": "r", "permissions": ["sessions:read"]}, status=201)
    await step("updateRole", "PATCH", "/v1/roles/r", {"permissions": ["usage:read"]}, status=200)
    await step("deleteRole", "DELETE", "/v1/roles/r", status=204)
    await step("setProfile", "POST", "/v1/profiles", {"name": "mine", "content": PROFILE}, status=201)
    await step("deleteProfile", "DELETE", "/v1/profiles/mine", status=204)
    source = {"source": f"git+https://{hanging}/x"}
    job = await step("installCollection", "POST", "/v1/collections", source, status=202)
    await step("cancelInstallation", "DELETE", f"/v1/collections/installations/{job['installation_id']}", status=204)
    await collection(plane, tenant_id)
    await step("deleteCollection", "DELETE", "/v1/collections/mine", status=204)
    session = await plane.session()
    await step("closeSession", "DELETE", f"/v1/sessions/{session}", status=204)
    answer = await client.get("/v1/audit/export")
    done["exportAuditEntries"] = answer.headers["X-Request-Id"]
    for secret in (key["key"], rotated["key"], SECRET, invited["token"]):
        assert secret not in answer.text
        assert secret not in json.dumps(await entries(client))
    return done


async def test_each_change_of_a_tenant_leaves_an_entry(plane, client, hanging):
    async def compiled(request):
        await request.reply(200, {"spec": {"name": "mine"}, "plan": {"a": 1}, "model": "m"})

    plane.fleet.answers["POST", "compile"] = compiled
    tenant_id, member_id = await me_of(client)
    done = await changed_by_a_tenant(plane, client, hanging, tenant_id)
    operators = {"createTenant", "updateTenant", "deleteTenant"}
    assert done.keys() == AUDITED - ELSEWHERE - operators
    found = await entries(client)
    for action, request_id in done.items():
        (entry,) = [one for one in found if (one["action"], one["http_request_id"]) == (action, request_id)]
        assert (entry["actor"], entry["tenant_id"]) == (member_id, tenant_id)
        assert (entry["door"], entry["address"], entry["user_agent"]) == ("rest", "127.0.0.1", "audit-test/1")
        assert entry["credential_id"].startswith("key_")
        assert entry["target"] or action == "exportAuditEntries"
        assert all(isinstance(pair, list) and len(pair) == 2 for pair in entry["changes"].values()), action
    role = next(one for one in found if one["action"] == "updateRole")
    assert role["changes"]["permissions"] == [["sessions:read"], ["usage:read"]]


async def test_each_change_of_an_operator_is_in_the_log_of_the_tenant_that_it_changes(plane):
    async with plane.client(plane.operator_key) as operator:
        made = (await do(operator, "POST", "/v1/tenants", {"name": "t", "tier": "pro"}, status=201)).json()
        path = f"/v1/tenants/{made['id']}"
        await do(operator, "PATCH", path, {"status": "suspended"}, status=200)
        await do(operator, "PATCH", path, {"status": "active"}, status=200)
        async with plane.client(made["admin_key"]) as admin:
            theirs = [one["action"] for one in await entries(admin)]
        assert {"createTenant", "updateTenant"} <= set(theirs)
        await do(operator, "DELETE", path, status=204)
        found = await entries(operator, tenant_id=made["id"])
        assert found[0]["action"] == "deleteTenant"
        assert found[0]["actor"].startswith("op_")
        assert made["admin_key"] not in json.dumps(found)


async def test_what_was_refused_leaves_no_entry(client):
    before = len(await entries(client))
    await do(client, "POST", "/v1/roles", {"name": "r", "permissions": ["no:such"]}, status=422)
    await do(client, "DELETE", "/v1/keys/key_x", status=404)
    await do(client, "DELETE", "/v1/roles/r", status=404)
    assert len(await entries(client)) == before


async def test_nobody_changes_the_log(plane, client):
    await do(client, "POST", "/v1/roles", {"name": "r", "permissions": ["sessions:read"]}, status=201)
    for statement in ("DELETE FROM audit_entry", "UPDATE audit_entry SET actor = 'nobody'"):
        with pytest.raises(Exception, match="append-only"):
            async with plane.app.services.database.write() as db:
                await (await db.connection()).exec_driver_sql(statement)
    with contextlib.suppress(Exception):
        await client.delete("/v1/audit")
    assert (await entries(client))[0]["action"] == "createRole"

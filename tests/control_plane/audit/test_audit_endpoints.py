"""Reading the audit log: by whom, in which order, as which file."""

import csv
import io
import json

import pytest

from amplifier_api_server.control_plane.audit.recording import record
from amplifier_api_server.control_plane.origin import Origin, reset_origin, set_origin
from amplifier_api_server.tenants.ids import TenantId
from tests.hostile_runtime import attacked


@pytest.fixture
async def plane(tmp_path):
    async with attacked(tmp_path) as one:
        yield one


@pytest.fixture
async def client(plane):
    async with plane.client() as one:
        yield one


@pytest.fixture
async def tenant_id(client) -> TenantId:
    return TenantId((await client.get("/v1/me")).json()["tenant"]["id"])


async def write(plane, tenant_id, *actions: str, target="x", agent="") -> None:
    services = plane.app.services
    token = set_origin(Origin("rest", "10.0.0.1", agent, "r"))
    async with services.database.write() as db:
        for action in actions:
            await record(db, services.clock, "system", action, tenant_id=tenant_id, target=target)
    reset_origin(token)


async def page(client, **query) -> dict:
    answer = await client.get("/v1/audit", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def actions(client, **query) -> list[str]:
    return [one["action"] for one in (await page(client, **query))["audit_entries"]]


async def test_the_newest_is_first_and_pages_go_on(plane, client, tenant_id):
    names = [f"a{number}" for number in range(25)]
    await write(plane, tenant_id, *names)
    found, cursor = [], None
    while True:
        answer = await page(client, target="x", limit=10, **({"cursor": cursor} if cursor else {}))
        found += [one["action"] for one in answer["audit_entries"]]
        await write(plane, tenant_id, "meanwhile", target="x")
        if (cursor := answer["next_cursor"]) is None:
            break
    assert found == names[::-1]


async def test_entries_are_filtered(plane, client, tenant_id):
    await write(plane, tenant_id, "one", "two", target="t1")
    await write(plane, tenant_id, "one", target="t2")
    assert await actions(client, action="one", target="t1") == ["one"]
    assert await actions(client, actor="system", action="one") == ["one", "one"]
    assert await actions(client, actor="nobody") == []
    at = (await page(client, action="two"))["audit_entries"][0]["at"]
    assert "two" in await actions(client, since=at)
    assert "two" not in await actions(client, until=at)
    assert await actions(client, since="2100-01-01T00:00:00Z") == []


@pytest.mark.parametrize(
    "query", [{"since": "yesterday"}, {"since": "2026-01-01T00:00:00"}, {"cursor": "x"}, {"limit": 0}]
)
async def test_what_can_not_be_asked_is_refused(client, query):
    assert (await client.get("/v1/audit", params=query)).status_code == 422


async def test_a_log_is_its_tenants_alone(plane, client, tenant_id):
    async with plane.client(plane.operator_key) as operator:
        made = (await operator.post("/v1/tenants", json={"name": "t", "tier": "pro"})).json()
        await write(plane, tenant_id, "mine")
        await write(plane, TenantId(""), "operators")
        async with plane.client(made["admin_key"]) as other:
            assert "mine" not in await actions(other)
            for path in ("/v1/audit", "/v1/audit/export"):
                answer = await other.get(path, params={"tenant_id": tenant_id})
                assert (answer.status_code, answer.json()["code"]) == (404, "tenant_not_found")
            assert "createTenant" in await actions(other, tenant_id=made["id"])
        assert "operators" in await actions(operator)
        assert "mine" not in await actions(operator)
        assert "mine" in await actions(operator, tenant_id=tenant_id)
        assert (await operator.get("/v1/audit?tenant_id=ten_nobody")).status_code == 404
        assert (await operator.get("/v1/audit/export?tenant_id=ten_nobody")).status_code == 404
        await operator.delete(f"/v1/tenants/{made['id']}")
        assert "deleteTenant" in await actions(operator, tenant_id=made["id"]), "it outlives its tenant"


@pytest.mark.parametrize("role", ["developer", "readonly"])
async def test_who_may_not_read_it_does_not(plane, client, role):
    made = (await client.post("/v1/keys", json={"name": "x", "role": role})).json()
    async with plane.client(made["key"]) as other:
        for path in ("/v1/audit", "/v1/audit/export"):
            assert (await other.get(path)).status_code == 403


async def test_an_export_has_all_of_it_oldest_first_and_is_recorded(plane, client, tenant_id):
    names = [f"a{number}" for number in range(1203)]
    await write(plane, tenant_id, *names)
    answer = await client.get("/v1/audit/export")
    assert answer.headers["content-type"] == "application/x-ndjson"
    entries = [json.loads(line) for line in answer.text.splitlines()]
    assert [one["action"] for one in entries if one["target"] == "x"] == names
    assert "exportAuditEntries" not in {one["action"] for one in entries}, "it ends with what was there before"
    assert (await actions(client))[0] == "exportAuditEntries"
    at = entries[-1]["at"]
    assert (await client.get("/v1/audit/export", params={"until": "2020-01-01T00:00:00Z"})).text == ""
    recorded = (await page(client))["audit_entries"][0]
    assert recorded["changes"] == {"until": [None, "2020-01-01T00:00:00Z"]}
    later = await client.get("/v1/audit/export", params={"since": at, "action": "exportAuditEntries"})
    assert len(later.text.splitlines()) == 2


async def test_a_table_computes_nothing_of_what_a_client_called_itself(plane, client, tenant_id):
    await write(plane, tenant_id, "one", target='=1+1,"x"', agent='=HYPERLINK("http://evil")')
    answer = await client.get("/v1/audit/export", params={"format": "csv", "action": "one"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    (row,) = list(csv.DictReader(io.StringIO(answer.text)))
    assert (row["action"], row["target"]) == ("one", '\'=1+1,"x"')
    assert row["user_agent"] == '\'=HYPERLINK("http://evil")'
    assert json.loads(row["changes"]) == {}


async def test_an_export_breaks_off_for_who_may_read_no_more(plane, client, tenant_id):
    """A file that ended well would look whole."""
    await write(plane, tenant_id, *[f"a{number}" for number in range(600)])
    made = (await client.post("/v1/keys", json={"name": "x", "role": "admin"})).json()
    streams, ended = plane.app.services.streams, []
    add = streams.add

    def add_and_end(principal, end):
        add(principal, end)
        ended.append(principal.credential_id)
        streams.end_credential(principal.credential_id)

    streams.add = add_and_end
    async with plane.client(made["key"]) as other:
        with pytest.raises(ConnectionAbortedError):
            await other.get("/v1/audit/export")
    assert ended == [made["id"]]

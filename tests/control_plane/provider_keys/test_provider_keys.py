"""A tenant's own keys for model providers: set, hinted at, used, removed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.model_gateway.answers import Refusal
from amplifier_api_server.control_plane.provider_keys import service
from amplifier_api_server.control_plane.provider_keys.service import ProviderKeys
from amplifier_api_server.control_plane.secrets import Vault
from amplifier_api_server.control_plane.settings import ModelProvider
from amplifier_api_server.tenants.ids import KeyId, MemberId, TenantId
from amplifier_api_server.tenants.permissions import GRANTS, Role
from amplifier_api_server.tenants.repository import provider_keys
from amplifier_api_server.tenants.tiers import DEFAULT
from tests.control_plane.accounts.doors import Doors, opened
from tests.tenants.embedded import Embedded, embedded

__all__ = ["embedded"]

PATH = "/v1/provider-keys"
SECRET = "sk-own-0123456789-wxyz"
PROVIDERS = [
    ModelProvider(name=name, base_url="http://127.0.0.1:9/v1", tenant_keys=tenant_keys)
    for name, tenant_keys in (("alone", "refused"), ("either", "allowed"), ("own", "required"))
]


def keys_of(embedded: Embedded, key: bytes = b"k" * 32, **more: Any) -> ProviderKeys:
    return ProviderKeys(PROVIDERS, embedded.database, Vault(key), embedded.clock, **more)


def who(doors: Doors) -> Principal:
    return Principal(
        KeyId("key_1"), doors.first.tenant_id, MemberId("mem_1"), "admin", GRANTS[Role.ADMIN], "pro", DEFAULT
    )


@pytest.fixture
async def doors(embedded: Embedded) -> AsyncIterator[Doors]:
    embedded.provider_keys = keys_of(embedded)  # type: ignore[attr-defined]
    async with opened(embedded) as found:
        yield found


async def put(doors: Doors, provider: str = "own", api_key: str = SECRET) -> Any:
    return await doors.admin.post(PATH, json={"provider": provider, "api_key": api_key})


async def test_a_key_is_set_hinted_at_replaced_and_removed(doors: Doors):
    tenant, keys = doors.first.tenant_id, doors.embedded.provider_keys
    made = await put(doors)
    assert made.status_code == 201
    assert made.json().keys() == {"provider", "hint", "is_readable", "created_at", "created_by"}
    assert made.json()["hint"] == "wxyz"
    assert (await keys.key_of(tenant, "own")).get_secret_value() == SECRET
    assert (await put(doors, api_key="sk-another-0123456789")).status_code == 201
    assert (await keys.key_of(tenant, "own")).get_secret_value() == "sk-another-0123456789"
    listed = await doors.admin.get(PATH)
    assert [(one["provider"], one["hint"]) for one in listed.json()["provider_keys"]] == [("own", "6789")]
    assert listed.json()["providers"] == [
        {"provider": "either", "is_required": False},
        {"provider": "own", "is_required": True},
    ]
    assert SECRET not in made.text + listed.text
    assert (await doors.admin.delete(f"{PATH}/own")).status_code == 204
    assert await keys.key_of(tenant, "own") is None
    assert (await doors.admin.delete(f"{PATH}/own")).status_code == 404


async def test_another_tenants_key_is_neither_seen_nor_used_nor_removed(doors: Doors):
    await put(doors)
    made = await doors.operator.post("/v1/tenants", json={"name": "other", "tier": "pro"})
    other = doors.caller(made.json()["admin_key"])
    assert (await other.get(PATH)).json()["provider_keys"] == []
    assert (await other.delete(f"{PATH}/own")).status_code == 404
    assert await doors.embedded.provider_keys.key_of(TenantId(made.json()["id"]), "own") is None
    assert await doors.embedded.provider_keys.key_of(doors.first.tenant_id, "own") is not None


async def test_a_row_that_was_given_to_another_tenant_does_not_open(doors: Doors):
    await put(doors)
    other = await doors.embedded.tenant()
    async with doors.embedded.database.write() as db:
        row = await provider_keys.find(db, doors.first.tenant_id, "own")
        row.tenant_id = other.id
    with pytest.raises(Refusal) as refused:
        await keys_of(doors.embedded).key_of(TenantId(other.id), "own")
    assert (refused.value.status, refused.value.code) == (503, "provider_key_unreadable")


@pytest.mark.parametrize(
    ("provider", "api_key", "status", "code"),
    [
        ("alone", SECRET, 409, "tenant_keys_refused"),
        ("nobody", SECRET, 422, "invalid_request"),
        ("Not A Name", SECRET, 422, "invalid_request"),
        ("own", "short", 422, "invalid_request"),
        ("own", SECRET + "\r\nX-Evil: 1", 422, "invalid_request"),
        ("own", SECRET + "\u00e9", 422, "invalid_request"),
        ("own", "x" * 2000, 422, "invalid_request"),
    ],
)
async def test_a_key_that_can_not_be_used_is_refused_and_not_repeated(doors: Doors, provider, api_key, status, code):
    answer = await put(doors, provider, api_key)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert api_key not in answer.text
    assert (await doors.admin.get(PATH)).json()["provider_keys"] == []


async def test_only_admins_set_keys(doors: Doors):
    for role in ("developer", "readonly"):
        made = await doors.admin.post("/v1/keys", json={"name": role, "role": role})
        caller = doors.caller(made.json()["key"])
        for method, path in (("GET", PATH), ("POST", PATH), ("DELETE", f"{PATH}/own")):
            body = {"provider": "own", "api_key": SECRET} if method == "POST" else None
            assert (await caller.request(method, path, json=body)).status_code == 403, (role, method)


async def test_what_is_stored_does_not_hold_the_key(doors: Doors):
    await put(doors)
    async with doors.embedded.database.read() as db:
        row = await provider_keys.find(db, doors.first.tenant_id, "own")
    assert SECRET.encode() not in row.ciphertext
    for path in doors.embedded.settings.server.data_dir.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


async def test_another_encryption_key_is_told_at_the_start_and_refuses_the_call(doors: Doors):
    await put(doors)
    await put(doors, "either")
    keys = keys_of(doors.embedded, b"x" * 32)
    await keys.put(who(doors), "either", SecretStr(SECRET))
    with capture_logs() as logged:
        assert await keys.check() == 1
    (line,) = [one for one in logged if one["event"] == "provider_keys:other_encryption_key"]
    assert (line["log_level"], line["unreadable"], line["of"]) == ("error", 1, 2)
    assert line["keys"] == [f"{doors.first.tenant_id}/own"]
    doors.embedded.provider_keys = keys
    listed = (await doors.admin.get(PATH)).json()["provider_keys"]
    assert {one["provider"]: one["is_readable"] for one in listed} == {"either": True, "own": False}
    with pytest.raises(Refusal) as refused:
        await keys.key_of(doors.first.tenant_id, "own")
    assert (refused.value.status, refused.value.code) == (503, "provider_key_unreadable")
    assert (await keys.key_of(doors.first.tenant_id, "either")).get_secret_value() == SECRET
    await put(doors)
    with capture_logs() as logged:
        assert await keys.check() == 0
    assert not logged


async def test_a_deleted_tenants_keys_are_forgotten(doors: Doors):
    await put(doors)
    assert (await doors.operator.delete(f"/v1/tenants/{doors.first.tenant_id}")).status_code == 204
    async with doors.embedded.database.read() as db:
        assert await provider_keys.find(db, doors.first.tenant_id, "own") is None


async def test_a_read_that_began_before_a_change_is_not_believed_after_it(doors: Doors, monkeypatch):
    await put(doors)
    tenant, keys = doors.first.tenant_id, keys_of(doors.embedded)
    find = service.provider_keys.find

    async def slow(db: Any, tenant_id: TenantId, provider: str) -> Any:
        row = await find(db, tenant_id, provider)
        monkeypatch.setattr(service.provider_keys, "find", find)
        await keys.put(who(doors), "own", SecretStr("sk-the-new-one-0123456789"))
        return row

    monkeypatch.setattr(service.provider_keys, "find", slow)
    await keys.key_of(tenant, "own")
    assert (await keys.key_of(tenant, "own")).get_secret_value() == "sk-the-new-one-0123456789"


async def test_a_change_made_elsewhere_is_noticed_soon(doors: Doors, monkeypatch):
    tenant, keys, elsewhere = doors.first.tenant_id, keys_of(doors.embedded), keys_of(doors.embedded)
    assert await keys.key_of(tenant, "own") is None
    await elsewhere.put(who(doors), "own", SecretStr(SECRET))
    assert await keys.key_of(tenant, "own") is None  # for as long as it is believed
    monkeypatch.setattr(service, "_CACHED_SECONDS", 0.0)
    assert (await keys.key_of(tenant, "own")).get_secret_value() == SECRET


async def test_whoever_is_told_of_changes_is_told(doors: Doors):
    told: list[Any] = []
    keys = keys_of(doors.embedded, on_change=lambda *what: told.append(what))
    tenant = doors.first.tenant_id
    await keys.put(who(doors), "own", SecretStr(SECRET))
    await keys.remove(who(doors), "own")
    assert told == [(tenant, "own")] * 2

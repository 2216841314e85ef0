from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from amplifier_api_server.control_plane.accounts import bootstrap
from amplifier_api_server.control_plane.accounts import service as accounts
from amplifier_api_server.control_plane.accounts.bootstrap import FirstKeys, ensure_first_keys
from amplifier_api_server.control_plane.keys import operators
from amplifier_api_server.control_plane.keys import service as keys_service
from amplifier_api_server.tenants.ids import KeyId, TenantId
from amplifier_api_server.tenants.lifecycle import TenantStatus
from tests.tenants.embedded import PEPPER, Embedded


async def first(embedded: Embedded) -> FirstKeys:
    return await ensure_first_keys(embedded.database, embedded.settings.server.data_dir, PEPPER, embedded.clock)


def file_of(embedded: Embedded) -> Path:
    return embedded.settings.server.data_dir / bootstrap.FILE_NAME


async def both_work(embedded: Embedded, found: FirstKeys) -> bool:
    admin = await embedded.authenticator.principal_of(found.tenant_key)
    operator = await embedded.authenticator.principal_of(found.operator_key)
    assert (admin.tier, admin.role, admin.tenant_id) == ("enterprise", "admin", found.tenant_id)
    assert operator.is_operator
    return True


async def test_the_first_start_makes_keys_that_later_ones_find(embedded: Embedded):
    made = await first(embedded)
    assert await both_work(embedded, made)
    assert await first(embedded) == made
    assert stat.S_IMODE(file_of(embedded).stat().st_mode) == 0o600
    assert len(await accounts.page(embedded, limit=10, before=None)) == 1
    assert made.tenant_key not in repr(made)
    assert made.operator_key not in repr(made)


async def test_a_kill_between_file_and_commit_is_repaired(embedded: Embedded, monkeypatch):
    class Killed(BaseException):
        pass

    write = bootstrap._write

    def killed_after(path: Path, keys: FirstKeys) -> None:
        write(path, keys)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "_write", killed_after)
        with pytest.raises(Killed):
            await first(embedded)
    left = json.loads(file_of(embedded).read_text())
    again = await first(embedded)
    assert again == FirstKeys(**left)
    assert await both_work(embedded, again)


async def test_a_lost_file_gets_new_keys_of_the_same_tenant(embedded: Embedded):
    made = await first(embedded)
    file_of(embedded).unlink()
    again = await first(embedded)
    assert again.tenant_id == made.tenant_id
    assert again.tenant_key != made.tenant_key
    assert await both_work(embedded, again)
    assert await both_work(embedded, made)  # whoever holds the old ones goes on


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"tenant_key": 1}', '{"tenant_key": 1, "operator_key": 2, "tenant_id": 3}', "\x00"]
)
async def test_a_spoiled_file_is_replaced(embedded: Embedded, content: str):
    await first(embedded)
    file_of(embedded).write_text(content)
    assert await both_work(embedded, await first(embedded))


async def test_a_lost_database_gets_the_kept_keys_again(embedded: Embedded, tmp_path: Path):
    keep = FirstKeys(keys_service.api_keys.mint().text, keys_service.api_keys.mint().text, "ten_kept")
    bootstrap._write(file_of(embedded), keep)
    assert await first(embedded) == keep
    assert await both_work(embedded, keep)


async def test_revoked_keys_are_replaced(embedded: Embedded):
    made = await first(embedded)
    tenant_id = TenantId(made.tenant_id)
    await keys_service.create(embedded, tenant_id, keys_service.Wish("other", "admin"), "cli")
    admin = await embedded.authenticator.principal_of(made.tenant_key)
    operator = await embedded.authenticator.principal_of(made.operator_key)
    await keys_service.revoke(embedded, tenant_id, admin.credential_id, "cli")
    await operators.revoke(embedded, KeyId(operator.credential_id), "cli")
    again = await first(embedded)
    assert again.tenant_id == made.tenant_id
    assert {again.tenant_key, again.operator_key}.isdisjoint({made.tenant_key, made.operator_key})
    assert await both_work(embedded, again)


async def test_a_deleted_first_tenant_is_followed_by_another(embedded: Embedded):
    made = await first(embedded)
    other = await embedded.tenant(name="somebody else's")
    await accounts.delete(embedded, TenantId(made.tenant_id), "cli")
    again = await first(embedded)
    assert again.tenant_id not in (made.tenant_id, other.id)
    assert await both_work(embedded, again)


async def test_a_suspended_first_tenant_stays_suspended(embedded: Embedded):
    made = await first(embedded)
    await accounts.change(embedded, TenantId(made.tenant_id), "cli", status=TenantStatus.SUSPENDED)
    assert await first(embedded) == made
    assert (await accounts.find(embedded, TenantId(made.tenant_id))).status == "suspended"

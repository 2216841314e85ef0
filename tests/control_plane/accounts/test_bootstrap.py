from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from amplifier_api_server.control_plane.accounts import bootstrap
from amplifier_api_server.control_plane.accounts import service as accounts
from amplifier_api_server.control_plane.accounts.bootstrap import FirstKeys, ensure_first_keys
from amplifier_api_server.control_plane.audit.service import Audit
from amplifier_api_server.control_plane.keys import operators
from amplifier_api_server.control_plane.keys import service as keys_service
from amplifier_api_server.tenants.errors import Unauthenticated
from amplifier_api_server.tenants.ids import KeyId, TenantId
from amplifier_api_server.tenants.repository.audit import Wanted
from amplifier_api_server.tenants.repository.pages import Page
from tests.tenants.embedded import PEPPER, Embedded


async def first(embedded: Embedded) -> FirstKeys | None:
    return await ensure_first_keys(embedded.database, embedded.settings.server.data_dir, PEPPER, embedded.clock)


def file_of(embedded: Embedded) -> Path:
    return embedded.settings.server.data_dir / bootstrap.FILE_NAME


async def both_work(embedded: Embedded, found: FirstKeys) -> bool:
    admin = await embedded.authenticator.principal_of(found.tenant_key)
    operator = await embedded.authenticator.principal_of(found.operator_key)
    assert (admin.tier, admin.role, admin.tenant_id) == ("enterprise", "admin", found.tenant_id)
    assert operator.is_operator
    return True


async def test_the_first_start_makes_keys_and_later_ones_do_not(embedded: Embedded):
    made = await first(embedded)
    assert made is not None
    assert await both_work(embedded, made)
    assert stat.S_IMODE(file_of(embedded).stat().st_mode) == 0o600
    assert bootstrap.read(embedded.settings.server.data_dir) == made
    assert await first(embedded) is None
    assert len(await accounts.page(embedded, Page(10))) == 1
    assert made.tenant_key not in repr(made)
    assert made.operator_key not in repr(made)


async def test_the_first_keys_are_in_the_audit_log(embedded: Embedded):
    made = await first(embedded)
    log = Audit(database=embedded.database, clock=embedded.clock)
    found = []
    for tenant_id in (TenantId(made.tenant_id), TenantId("")):
        async for page in await log.export("cli", tenant_id, Wanted()):
            found += [(one.actor, one.action) for one in page if one.actor == "bootstrap"]
    assert sorted(found) == [("bootstrap", "createKey"), ("bootstrap", "createKey"), ("bootstrap", "createTenant")]


async def test_a_kill_between_file_and_commit_leaves_no_key_that_works(embedded: Embedded, monkeypatch):
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
    left = FirstKeys(**json.loads(file_of(embedded).read_text()))
    again = await first(embedded)
    assert again is not None
    assert bootstrap.read(embedded.settings.server.data_dir) == again
    assert {left.tenant_key, left.operator_key}.isdisjoint({again.tenant_key, again.operator_key})
    assert await both_work(embedded, again)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"tenant_key": 1}', "\x00"])
async def test_a_lost_or_spoiled_file_gets_nobody_a_key(embedded: Embedded, content: str | None):
    made = await first(embedded)
    file_of(embedded).unlink()
    if content is not None:
        file_of(embedded).write_text(content)
    assert await first(embedded) is None
    assert await both_work(embedded, made)  # whoever holds them goes on
    assert len(await operators.page(embedded, Page(10))) == 1


async def test_a_file_of_other_keys_makes_them_no_keys_here(embedded: Embedded):
    stale = FirstKeys(keys_service.api_keys.mint().text, keys_service.api_keys.mint().text, "ten_stale")
    bootstrap._write(file_of(embedded), stale)
    made = await first(embedded)
    assert made is not None
    for text in (stale.tenant_key, stale.operator_key):
        with pytest.raises(Unauthenticated):
            await embedded.authenticator.principal_of(text)


async def test_what_was_made_before_the_first_start_is_no_empty_database(embedded: Embedded):
    await operators.create(embedded, keys_service.Wish("mine", "operator"), "cli")
    assert await first(embedded) is None


async def test_a_deleted_tenant_is_followed_by_no_other(embedded: Embedded):
    made = await first(embedded)
    await accounts.delete(embedded, TenantId(made.tenant_id), "cli")
    assert await first(embedded) is None


async def test_only_keys_that_still_work_are_told_again(embedded: Embedded):
    made = await first(embedded)
    assert await bootstrap.still_good(embedded.database, PEPPER, made, embedded.clock) == made
    operator = await embedded.authenticator.principal_of(made.operator_key)
    await operators.revoke(embedded, KeyId(operator.credential_id), "cli")
    told = await bootstrap.still_good(embedded.database, PEPPER, made, embedded.clock)
    assert (told.tenant_key, told.operator_key) == (made.tenant_key, "")

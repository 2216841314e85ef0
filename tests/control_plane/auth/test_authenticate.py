from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from amplifier_api_server.control_plane.accounts import service as accounts
from amplifier_api_server.control_plane.auth.authenticate import Authenticator
from amplifier_api_server.control_plane.auth.headers import carried_in, well_formed
from amplifier_api_server.control_plane.keys import service as keys_service
from amplifier_api_server.control_plane.keys.service import NewKey, Wish
from amplifier_api_server.tenants import api_keys
from amplifier_api_server.tenants.errors import Forbidden, Unauthenticated, Unavailable
from amplifier_api_server.tenants.ids import KeyId, TenantId
from amplifier_api_server.tenants.lifecycle import TenantStatus
from amplifier_api_server.tenants.models import Tenant
from amplifier_api_server.tenants.repository import keys
from tests.tenants.embedded import PEPPER, Embedded


@pytest.fixture
async def tenant(embedded: Embedded) -> Tenant:
    return await embedded.tenant(limits={"tokens_per_day": 900})


async def new_key(embedded: Embedded, tenant: Tenant, role: str = "developer", **more: Any) -> NewKey:
    return await keys_service.create(embedded, TenantId(tenant.id), Wish("k", role, **more), "cli")


def with_key(text: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"x-api-key", text.encode())]


class Queries:
    """Counts what the database is asked."""

    def __init__(self, embedded: Embedded) -> None:
        self.count = 0
        for engine in (embedded.database._read_engine, embedded.database._write_engine):
            event.listen(engine.sync_engine, "before_cursor_execute", self._counted)

    def _counted(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.count += statement.startswith("SELECT")


async def test_a_key_says_who_is_calling(embedded: Embedded, tenant: Tenant):
    made = await new_key(embedded, tenant, limits={"requests_per_minute": 7, "concurrent_sessions": 1})
    principal = await embedded.authenticator.authenticate(with_key(made.text))
    assert (principal.credential_id, principal.tenant_id, principal.role) == (made.row.id, tenant.id, "developer")
    assert principal.member_id == made.row.member_id
    assert principal.may("sessions:create")
    assert not principal.may("keys:create")
    limits = principal.limits
    assert (limits.requests_per_minute, limits.concurrent_sessions) == (7, 1)  # the key's
    assert limits.tokens_per_day == 900  # the tenant's
    assert limits.sessions_per_user == 50  # the tier's


async def test_a_bearer_key_is_the_same(embedded: Embedded, tenant: Tenant):
    made = await new_key(embedded, tenant)
    for scheme in (b"Bearer", b"bearer", b"BEARER"):
        headers = [(b"authorization", scheme + b" " + made.text.encode())]
        assert (await embedded.authenticator.authenticate(headers)).credential_id == made.row.id
    both = [*with_key(made.text), (b"authorization", b"Bearer " + made.text.encode())]
    one_is_empty = [[*with_key(made.text), (b"authorization", b"Bearer")], [(b"x-api-key", b""), both[-1]]]
    for headers in (both, *one_is_empty):
        assert (await embedded.authenticator.authenticate(headers)).credential_id == made.row.id


WRONG: list[tuple[list[tuple[bytes, bytes]], str]] = [
    ([], "no API key was sent"),
    ([(b"x-api-key", b"")], "no API key was sent"),
    ([(b"x-api-key", b""), (b"authorization", b"")], "no API key was sent"),
    ([(b"x-api-key", b"amp_live_typo")], "not well-formed"),
    ([(b"x-api-key", b"\xff\x00\x80")], "not well-formed"),
    ([(b"authorization", b"Basic dXNlcjpwdw==")], "scheme is not Bearer"),
    ([(b"authorization", b"Bearer")], "no API key was sent"),
    ([(b"x-api-key", b"one"), (b"authorization", b"Bearer other")], "two different"),
    ([(b"x-api-key", b"one"), (b"x-api-key", b"two")], "two different"),
]


@pytest.mark.parametrize(("headers", "says"), WRONG)
async def test_what_is_wrong_is_said_without_asking_the_database(
    embedded: Embedded, headers: list[tuple[bytes, bytes]], says: str
):
    queries = Queries(embedded)
    with pytest.raises(Unauthenticated, match=says) as refused:
        await embedded.authenticator.authenticate(headers)
    assert queries.count == 0
    for _, value in headers:
        secret = value.rpartition(b" ")[2].decode("latin-1")
        assert len(secret) < 7 or secret not in refused.value.detail


@given(
    st.lists(
        st.tuples(st.sampled_from([b"x-api-key", b"authorization", b"cookie"]), st.binary(max_size=60)), max_size=5
    )
)
def test_no_headers_make_anything_but_a_refusal(headers: list[tuple[bytes, bytes]]):
    with pytest.raises(Unauthenticated):
        well_formed(carried_in(headers, [b"x-api-key"]).given or b"")


async def test_an_unknown_key_is_refused_and_not_echoed(embedded: Embedded):
    text = api_keys.mint().text
    with pytest.raises(Unauthenticated, match="not known") as refused:
        await embedded.authenticator.authenticate(with_key(text))
    assert text not in refused.value.detail


async def test_a_key_is_looked_up_once_in_a_while(embedded: Embedded, tenant: Tenant):
    made = await new_key(embedded, tenant)
    queries = Queries(embedded)
    await asyncio.gather(*(embedded.authenticator.authenticate(with_key(made.text)) for _ in range(50)))
    for _ in range(50):
        await embedded.authenticator.authenticate(with_key(made.text))
    assert queries.count == 1
    embedded.clock.advance(1.0)
    await embedded.authenticator.authenticate(with_key(made.text))
    assert queries.count == 2


async def test_lookups_that_come_together_are_few_queries(embedded: Embedded, tenant: Tenant):
    made = [await new_key(embedded, tenant) for _ in range(20)]
    wrong = [api_keys.mint().text for _ in range(300)]
    queries = Queries(embedded)
    everybody = [embedded.authenticator.authenticate(with_key(one)) for one in [*(m.text for m in made), *wrong]]
    answers = await asyncio.gather(*everybody, return_exceptions=True)
    assert queries.count <= 4
    assert [getattr(one, "credential_id", None) for one in answers[:20]] == [one.row.id for one in made]
    assert all(isinstance(one, Unauthenticated) for one in answers[20:])


async def test_busy_keys_are_refreshed_together(embedded: Embedded, tenant: Tenant):
    made = [await new_key(embedded, tenant) for _ in range(50)]
    for one in made:
        await embedded.authenticator.authenticate(with_key(one.text))
    queries = Queries(embedded)
    for _ in range(10):
        embedded.clock.advance(0.7)
        for one in made:
            await embedded.authenticator.authenticate(with_key(one.text))
    assert queries.count <= 14  # one a second or so, not fifty


async def test_a_flood_of_invented_keys_pushes_out_no_good_one(embedded: Embedded, tenant: Tenant):
    made = await new_key(embedded, tenant)
    await embedded.authenticator.authenticate(with_key(made.text))
    for start in range(0, 6000, 1000):
        wrong = [api_keys.mint().text for _ in range(1000)]
        answers = await asyncio.gather(
            *(embedded.authenticator.principal_of(one) for one in wrong), return_exceptions=True
        )
        assert all(isinstance(one, Unauthenticated) for one in answers), start
    assert len(embedded.authenticator._keys.verdicts._refused) <= 4000
    queries = Queries(embedded)
    await embedded.authenticator.authenticate(with_key(made.text))
    assert queries.count == 0


async def test_more_lookups_than_can_wait_are_turned_away(embedded: Embedded):
    wrong = [api_keys.mint().text for _ in range(2500)]
    answers = await asyncio.gather(*(embedded.authenticator.principal_of(one) for one in wrong), return_exceptions=True)
    assert sum(isinstance(one, Unavailable) for one in answers) == 500


async def test_strangers_lock_out_nobody_who_was_let_in_a_moment_ago(embedded: Embedded, tenant: Tenant):
    made = await new_key(embedded, tenant)
    known = await embedded.authenticator.authenticate(with_key(made.text))
    embedded.clock.advance(1.0)
    wrong = [api_keys.mint().text for _ in range(2500)]
    *_, mine = await asyncio.gather(
        *(embedded.authenticator.principal_of(one) for one in [*wrong, made.text]), return_exceptions=True
    )
    assert mine == known


async def test_a_wrong_key_is_remembered_briefly(embedded: Embedded):
    text = api_keys.mint().text
    queries = Queries(embedded)
    for _ in range(20):
        with pytest.raises(Unauthenticated):
            await embedded.authenticator.principal_of(text)
    assert queries.count == 1


async def test_a_revoked_key_is_refused_at_once_here(embedded: Embedded, tenant: Tenant):
    await new_key(embedded, tenant, "admin")
    made = await new_key(embedded, tenant)
    await embedded.authenticator.authenticate(with_key(made.text))
    await keys_service.revoke(embedded, TenantId(tenant.id), KeyId(made.row.id), "cli")
    with pytest.raises(Unauthenticated):
        await embedded.authenticator.authenticate(with_key(made.text))


async def test_a_key_revoked_elsewhere_is_refused_within_the_cache_s_time(embedded: Embedded, tenant: Tenant):
    await new_key(embedded, tenant, "admin")
    made = await new_key(embedded, tenant)
    elsewhere = Authenticator(embedded.database, embedded.settings, PEPPER, embedded.clock)
    await elsewhere.authenticate(with_key(made.text))
    await keys_service.revoke(embedded, TenantId(tenant.id), KeyId(made.row.id), "cli")
    await elsewhere.authenticate(with_key(made.text))
    embedded.clock.advance(1.0)
    with pytest.raises(Unauthenticated):
        await elsewhere.authenticate(with_key(made.text))
    await elsewhere.close()


@pytest.mark.parametrize("jump", [-3600, -2 * 86_400, 3600, 2 * 86_400])
async def test_a_key_revoked_elsewhere_is_refused_as_soon_when_the_machines_clock_is_set(
    embedded: Embedded, tenant: Tenant, jump: float
):
    await new_key(embedded, tenant, "admin")
    made = await new_key(embedded, tenant)
    elsewhere = Authenticator(embedded.database, embedded.settings, PEPPER, embedded.clock)
    await elsewhere.authenticate(with_key(made.text))
    await keys_service.revoke(embedded, TenantId(tenant.id), KeyId(made.row.id), "cli")
    embedded.clock.jump(jump)
    embedded.clock.advance(1.0)
    with pytest.raises(Unauthenticated):
        await elsewhere.authenticate(with_key(made.text))
    await elsewhere.close()


async def test_a_lookup_that_began_before_a_revocation_is_not_remembered_after(embedded: Embedded, tenant: Tenant):
    """The row was read, then revoked and forgotten, then the answer comes: it must be read anew."""
    await new_key(embedded, tenant, "admin")
    made = await new_key(embedded, tenant)
    original, reads = keys.find_by_digest, 0

    async def revoked_in_between(db: Any, digests: Any) -> Any:
        nonlocal reads
        found = await original(db, digests)
        reads += 1
        if reads == 1:
            await keys_service.revoke(embedded, TenantId(tenant.id), KeyId(made.row.id), "cli")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "find_by_digest", revoked_in_between)
        with pytest.raises(Unauthenticated):
            await embedded.authenticator.authenticate(with_key(made.text))
    assert reads == 2


async def test_an_expired_key_is_refused_even_while_it_is_remembered(embedded: Embedded, tenant: Tenant):
    made = await new_key(embedded, tenant, expires_at=embedded.clock.now() + timedelta(seconds=0.5))
    await embedded.authenticator.authenticate(with_key(made.text))
    embedded.clock.advance(0.5)
    with pytest.raises(Unauthenticated, match="expired"):
        await embedded.authenticator.authenticate(with_key(made.text))


async def test_a_suspended_tenant_is_told_so_and_comes_back(embedded: Embedded, tenant: Tenant):
    made = await new_key(embedded, tenant)
    await embedded.authenticator.authenticate(with_key(made.text))
    await accounts.change(embedded, TenantId(tenant.id), "cli", status=TenantStatus.SUSPENDED)
    with pytest.raises(Forbidden) as refused:
        await embedded.authenticator.authenticate(with_key(made.text))
    assert refused.value.stable_code == "tenant_suspended"
    await accounts.change(embedded, TenantId(tenant.id), "cli", status=TenantStatus.ACTIVE)
    await embedded.authenticator.authenticate(with_key(made.text))


async def test_a_deleted_tenant_s_keys_are_unknown(embedded: Embedded, tenant: Tenant):
    made = await new_key(embedded, tenant)
    await accounts.delete(embedded, TenantId(tenant.id), "cli")
    with pytest.raises(Unauthenticated):
        await embedded.authenticator.authenticate(with_key(made.text))


async def test_no_override_raises_a_tenant_above_its_own(embedded: Embedded, tenant: Tenant):
    """The tenant was moved to a smaller tier after its key was made."""
    made = await new_key(embedded, tenant, limits={"requests_per_minute": 80, "tokens_per_day": 800})
    await accounts.change(embedded, TenantId(tenant.id), "cli", tier="free")
    limits = (await embedded.authenticator.authenticate(with_key(made.text))).limits
    assert (limits.requests_per_minute, limits.tokens_per_day) == (10, 800)


async def test_a_tier_that_is_configured_no_more_falls_back_to_the_default(embedded: Embedded):
    tenant = await embedded.tenant(tier="vanished", limits={"gone": 5, "sandboxes": 2})
    member = await embedded.member(tenant)
    wish = Wish("k", "developer", None, member.id)
    async with embedded.database.write() as db:
        made = await keys_service._insert(embedded, db, TenantId(tenant.id), wish, "cli")
    limits = (await embedded.authenticator.authenticate(with_key(made.text))).limits
    assert (limits.requests_per_minute, limits.sandboxes) == (60, 2)


async def test_last_used_is_written_in_the_background(embedded: Embedded, tenant: Tenant):
    made = await new_key(embedded, tenant)
    await embedded.authenticator.authenticate(with_key(made.text))
    row = await keys_service.find(embedded, TenantId(tenant.id), KeyId(made.row.id))
    assert row.last_used_at is None
    await embedded.authenticator.write_last_used()
    row = await keys_service.find(embedded, TenantId(tenant.id), KeyId(made.row.id))
    assert row.last_used_at == embedded.clock.now()


async def test_a_database_that_fails_is_not_a_wrong_key(embedded: Embedded, tenant: Tenant, monkeypatch):
    made = await new_key(embedded, tenant)

    async def fails(*_: Any) -> Any:
        raise OSError("disk")

    with monkeypatch.context() as patch:
        patch.setattr(keys, "find_by_digest", fails)
        with pytest.raises(Unavailable):
            await embedded.authenticator.authenticate(with_key(made.text))
    await embedded.authenticator.authenticate(with_key(made.text))

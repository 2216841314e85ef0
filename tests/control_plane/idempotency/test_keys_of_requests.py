"""The keeper of keys, on a database of its own: one does the work, whatever dies in between."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from amplifier_api_server.control_plane.audit.recording import record
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.idempotency.answers import MAX_ANSWER_BYTES, StoredAnswer
from amplifier_api_server.control_plane.idempotency.service import Idempotency, RepeatedTurn, Ticket
from amplifier_api_server.control_plane.origin import origin_of, reset_origin, set_origin
from amplifier_api_server.control_plane.secrets import Vault
from amplifier_api_server.tenants.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from amplifier_api_server.tenants.ids import SessionId
from tests.tenants.embedded import embedded

__all__ = ["embedded"]

PRINT, OTHER = b"f" * 32, b"g" * 32
DONE = StoredAnswer(201, ((b"content-type", b"application/json"),), b'{"key":"amp_secret"}')


def keeper_of(embedded, key: bytes = b"k" * 32) -> Idempotency:
    return Idempotency(settings=embedded.settings, database=embedded.database, vault=Vault(key), clock=embedded.clock)


@pytest.fixture
async def me(embedded):
    return await embedded.principal()


@pytest.fixture
def keeper(embedded):
    return keeper_of(embedded)


async def code_of(waiting) -> str:
    with pytest.raises((Conflict, Invalid)) as found:
        await waiting
    return found.value.stable_code


async def test_the_first_gets_the_ticket_and_the_next_its_answer(keeper, me):
    ticket = await keeper.begin(me, "k", PRINT, "createKey")
    assert await code_of(keeper.begin(me, "k", PRINT, "createKey")) == "idempotency_in_flight"
    await ticket.answered(DONE)
    assert await keeper.begin(me, "k", PRINT, "createKey") == DONE
    assert await code_of(keeper.begin(me, "k", OTHER, "createKey")) == "idempotency_key_reused"


async def test_of_many_at_once_one_does_the_work(keeper, me):
    found = await asyncio.gather(
        *(keeper.begin(me, "k", PRINT, "createKey") for _ in range(50)), return_exceptions=True
    )
    assert sum(isinstance(one, Ticket) for one in found) == 1
    assert {one.stable_code for one in found if not isinstance(one, Ticket)} == {"idempotency_in_flight"}


async def test_a_key_is_its_members_own(keeper, me, embedded):
    await (await keeper.begin(me, "k", PRINT, "createKey")).answered(DONE)
    assert isinstance(await keeper.begin(await embedded.principal(), "k", PRINT, "createKey"), Ticket)


async def test_a_released_key_can_be_used_again_for_anything(keeper, me):
    await (await keeper.begin(me, "k", PRINT, "createKey")).release()
    assert isinstance(await keeper.begin(me, "k", OTHER, "createRole"), Ticket)


async def test_a_kept_answer_can_not_be_read_in_the_database(keeper, me, embedded):
    await (await keeper.begin(me, "k", PRINT, "createKey")).answered(DONE)
    for path in embedded.settings.server.data_dir.glob("amplifier.db*"):
        assert b"amp_secret" not in path.read_bytes()


async def test_with_another_encryption_key_an_answer_is_lost_and_said_to_be(keeper, me, embedded):
    await (await keeper.begin(me, "k", PRINT, "createKey")).answered(DONE)
    other = keeper_of(embedded, b"o" * 32)
    assert await code_of(other.begin(me, "k", PRINT, "createKey")) == "idempotency_lost"


async def test_an_answer_that_is_too_large_is_not_kept_and_its_work_not_done_again(keeper, me):
    ticket = await keeper.begin(me, "k", PRINT, "graphql")
    await ticket.answered(StoredAnswer(200, (), b"x" * (MAX_ANSWER_BYTES + 1)))
    assert await code_of(keeper.begin(me, "k", PRINT, "graphql")) == "idempotency_answer_too_large"


async def test_a_key_is_kept_for_its_time_and_no_longer(keeper, me, embedded):
    await (await keeper.begin(me, "k", PRINT, "createKey")).answered(DONE)
    embedded.clock.advance(24 * 3600 - 1)
    await keeper.sweep()
    assert await keeper.begin(me, "k", PRINT, "createKey") == DONE
    embedded.clock.advance(2)
    assert isinstance(await keeper.begin(me, "k", OTHER, "createKey"), Ticket), "before anything swept it"


async def test_old_keys_are_swept(keeper, me, embedded):
    for number in range(5):
        await (await keeper.begin(me, f"k{number}", PRINT, "createKey")).answered(DONE)
    embedded.clock.advance(24 * 3600 + 1)
    await keeper.begin(me, "new", PRINT, "createKey")
    await keeper.sweep()
    assert await _keys(embedded.database) == ["new"]


async def _keys(database: Database) -> list[str]:
    async with database.read() as db:
        rows = await db.connection()
        found = await rows.exec_driver_sql("SELECT key FROM idempotent_request ORDER BY key")
        return [row[0] for row in found]


class TestAfterADeath:
    """`keeper` died with requests in work; another one of the same database recovers."""

    async def begun(self, keeper, me, embedded, *, is_done: bool) -> None:
        token = set_origin(origin_of("rest", "", [(b"x-request-id", b"chosen-by-the-client")]))
        try:
            assert isinstance(await keeper.begin(me, "k", PRINT, "createKey"), Ticket)
            if is_done:
                async with embedded.database.write() as db:
                    await record(db, embedded.clock, me, "createKey", target="key_x")
        finally:
            reset_origin(token)

    async def test_work_that_was_not_done_can_be_done(self, keeper, me, embedded):
        await self.begun(keeper, me, embedded, is_done=False)
        assert await keeper_of(embedded).recover() == 1
        assert isinstance(await keeper.begin(me, "k", PRINT, "createKey"), Ticket)

    async def test_work_that_was_done_is_not_done_again(self, keeper, me, embedded):
        await self.begun(keeper, me, embedded, is_done=True)
        assert await keeper_of(embedded).recover() == 1
        assert await code_of(keeper.begin(me, "k", PRINT, "createKey")) == "idempotency_lost"

    async def test_the_work_of_another_request_with_the_same_id_of_its_clients_is_not_taken_for_it(
        self, keeper, me, embedded
    ):
        await self.begun(keeper, me, embedded, is_done=False)
        other = set_origin(origin_of("rest", "", [(b"x-request-id", b"chosen-by-the-client")]))
        async with embedded.database.write() as db:
            await record(db, embedded.clock, me, "createKey", target="key_x")
        reset_origin(other)
        assert await keeper_of(embedded).recover() == 1
        assert isinstance(await keeper.begin(me, "k", PRINT, "createKey"), Ticket)

    async def test_work_that_may_have_been_done_is_not_done_again(self, keeper, me, embedded):
        await keeper.begin(me, "k", PRINT, "createSession")
        await keeper_of(embedded).recover()
        assert await code_of(keeper.begin(me, "k", PRINT, "createSession")) == "idempotency_lost"

    async def test_an_execution_that_was_not_recorded_can_be_begun(self, keeper, me, embedded):
        first = await keeper.begin_turn(me, "k", PRINT, SessionId("sess_1"))
        assert await keeper.begin_turn(me, "k", PRINT, SessionId("sess_1")) == RepeatedTurn(
            SessionId("sess_1"), first.turn_id
        )
        await keeper_of(embedded).recover()
        again = await keeper.begin_turn(me, "k", PRINT, SessionId("sess_1"))
        assert isinstance(again, Ticket)
        assert again.turn_id != first.turn_id

    async def test_many_are_recovered(self, keeper, me, embedded):
        for number in range(450):
            await keeper.begin(me, f"k{number}", PRINT, "createSession" if number % 2 else "createKey")
        assert await keeper_of(embedded).recover() == 450
        assert len(await _keys(embedded.database)) == 225


class TestOnce:
    async def test_work_is_done_once_and_told_to_everybody(self, keeper, me):
        done = []

        async def work():
            done.append(1)
            return {"session_id": "sess_1"}

        for _ in range(3):
            assert await keeper.once(me, "k", "createSession", {"a": 1}, work) == {"session_id": "sess_1"}
        assert len(done) == 1
        assert await code_of(keeper.once(me, "k", "createSession", {"a": 2}, work)) == "idempotency_key_reused"

    async def test_it_goes_on_when_who_waits_for_it_goes_away(self, keeper, me):
        may_end, begun = asyncio.Event(), asyncio.Event()

        async def work():
            begun.set()
            await may_end.wait()
            return {"done": True}

        waiting = asyncio.create_task(keeper.once(me, "k", "createSession", {}, work))
        await begun.wait()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await code_of(keeper.once(me, "k", "createSession", {}, work)) == "idempotency_in_flight"
        may_end.set()
        await asyncio.gather(*keeper._working)
        assert await keeper.once(me, "k", "createSession", {}, work) == {"done": True}

    @pytest.mark.parametrize(
        ("error", "times"),
        [(NotFound("x", code="session_not_found"), 1), (Conflict("x"), 1), (Forbidden("x"), 2), (Unavailable("x"), 2)],
    )
    async def test_what_was_refused_for_good_is_refused_again_without_work(self, keeper, me, error, times):
        done = []

        async def work():
            done.append(1)
            raise error

        for _ in range(2):
            with pytest.raises(type(error)):
                await keeper.once(me, "k", "createSession", {}, work)
        assert len(done) == times

    async def test_a_mistake_in_the_middle_is_not_tried_again(self, keeper, me):
        async def work():
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await keeper.once(me, "k", "createSession", {}, work)
        assert await code_of(keeper.once(me, "k", "createSession", {}, work)) == "idempotency_lost"
        with pytest.raises(ZeroDivisionError):
            await keeper.once(me, "l", "createKey", {}, work)
        with pytest.raises(ZeroDivisionError):
            await keeper.once(me, "l", "createKey", {}, work)

    async def test_closing_ends_what_goes_on(self, keeper, me):
        begun = asyncio.Event()

        async def work():
            begun.set()
            await asyncio.Event().wait()

        waiting = asyncio.create_task(keeper.once(me, "k", "createSession", {}, work))
        await begun.wait()
        await keeper.close()
        assert (await asyncio.gather(waiting, return_exceptions=True))[0].__class__ is asyncio.CancelledError
        assert not keeper._working


async def test_an_answer_that_can_not_be_written_now_is_written_later(keeper, me, monkeypatch):
    ticket = await keeper.begin(me, "k", PRINT, "createKey")
    with monkeypatch.context() as broken:
        broken.setattr(keeper._database, "write", _full)
        await ticket.answered(DONE)
    assert await code_of(keeper.begin(me, "k", PRINT, "createKey")) == "idempotency_in_flight"
    await keeper.sweep()
    assert await keeper.begin(me, "k", PRINT, "createKey") == DONE


def _full():
    raise Unavailable("the disk is full")


@pytest.mark.parametrize("trouble", [Unavailable("it was not told that it was committed"), asyncio.CancelledError()])
async def test_a_key_that_was_written_for_a_caller_who_was_not_told_is_free_again(
    keeper, me, embedded, monkeypatch, trouble
):
    write = embedded.database.write

    @asynccontextmanager
    async def breaks_after_the_commit(*given):
        async with write(*given) as db:
            yield db
        raise trouble

    with monkeypatch.context() as now:
        now.setattr(embedded.database, "write", breaks_after_the_commit)
        with pytest.raises(type(trouble)):
            await keeper.begin(me, "k", PRINT, "createKey")
        with pytest.raises(type(trouble)):
            await keeper.begin_turn(me, "t", PRINT, SessionId("ses_1"))
    await keeper.sweep()
    assert isinstance(await keeper.begin(me, "k", PRINT, "createKey"), Ticket)
    assert isinstance(await keeper.begin_turn(me, "t", PRINT, SessionId("ses_1")), Ticket)


async def test_another_request_that_was_not_told_ends_nobodys_work(keeper, me, embedded, monkeypatch):
    ticket = await keeper.begin(me, "k", PRINT, "createKey")
    write = embedded.database.write

    @asynccontextmanager
    async def breaks_after_the_commit(*given):
        async with write(*given) as db:
            yield db
        raise Unavailable("it was not told that it was committed")

    with monkeypatch.context() as now:
        now.setattr(embedded.database, "write", breaks_after_the_commit)
        with pytest.raises(Unavailable):
            await keeper.begin(me, "k", PRINT, "createKey")
    await keeper.sweep()
    await ticket.answered(DONE)
    assert await keeper.begin(me, "k", PRINT, "createKey") == DONE


async def test_a_clock_that_is_set_forward_has_nothing_done_twice(keeper, me, embedded):
    await (await keeper.begin(me, "k", PRINT, "createKey")).answered(DONE)
    embedded.clock.jump(embedded.settings.idempotency.ttl.total_seconds() + 1)
    assert await keeper.begin(me, "k", PRINT, "createKey") == DONE
    await keeper.sweep()
    assert await keeper.begin(me, "k", PRINT, "createKey") == DONE
    embedded.clock.advance(3600)
    await keeper.sweep()
    assert isinstance(await keeper.begin(me, "k", PRINT, "createKey"), Ticket), "an hour later it is believed"

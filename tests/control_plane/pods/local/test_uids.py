from __future__ import annotations

import os

import pytest

from amplifier_api_server.control_plane.pods import process, uids

FIRST = 1_200_000_000  # nobody's


def test_ids_are_not_shared_and_not_reused_at_once() -> None:
    pool = uids.UidPool(FIRST, 3)
    taken = [pool.take(holder) for holder in "abc"]
    assert len(set(taken)) == 3
    assert pool.take("a") == taken[0]
    pool.give_back("a")
    pool.give_back("a")
    assert pool.take("d") not in taken


def test_when_all_are_taken_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uids, "_SPARE", 0)
    pool = uids.UidPool(FIRST, 2)
    pool.take("a")
    second = pool.take("b")
    with pytest.raises(LookupError, match=str(FIRST)):
        pool.take("c")
    pool.give_back("b")
    assert pool.take("c") == second


def test_an_id_that_somebody_runs_as_is_passed_over() -> None:
    assert uids.UidPool(os.geteuid(), 1).take("a") != os.geteuid()


def test_this_users_id_is_mapped() -> None:
    assert uids.is_mapped(os.geteuid())


def test_a_process_is_itself_and_nobody_later_with_its_number() -> None:
    me = process.identify(os.getpid())
    assert me is not None
    assert process.is_alive(me)
    assert not process.is_alive(process.ProcessId(me.pid, me.started_ticks + 1))
    assert process.identify(2**22 + 1) is None

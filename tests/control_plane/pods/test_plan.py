"""The table of what a runtime needs next, and what holds for every table."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane.pods.plan import (
    Add,
    Drain,
    MarkReachable,
    MarkUnreachable,
    Policy,
    Seen,
    Start,
    Stop,
    Wanted,
    plan,
    step,
)
from amplifier_api_server.tenants.ids import RuntimeId
from amplifier_api_server.tenants.lifecycle import RuntimeStatus as S

ONE = RuntimeId("run_1")
POLICY = Policy(warm=0, max_runtimes=50, start_timeout=timedelta(seconds=20), idle_timeout=timedelta(minutes=5))


def want(status: S, *, age: float = 60, idle: float | None = None, turns: int = 0) -> Wanted:
    return Wanted(ONE, status, timedelta(seconds=age), None if idle is None else timedelta(seconds=idle), turns)


def have(running: bool | None = True, *, age: float = 60, silent: float | None = None, reason: str = "") -> Seen:
    return Seen(running, timedelta(seconds=age), None if silent is None else timedelta(seconds=silent), reason)


TABLE = [
    ("a row is written first, then it is started", want(S.STARTING, age=1), None, Start(ONE)),
    ("a start is repeated while it has time", want(S.STARTING, age=1), have(), Start(ONE)),
    ("a start that takes too long is given up", want(S.STARTING, age=41), None, Stop(ONE, "it did not start in time")),
    ("a warm one that runs is left alone", want(S.WARM), have(), None),
    ("a warm one that is gone is marked", want(S.WARM), None, Stop(ONE, "its process is gone")),
    ("an end says why", want(S.CLAIMED), have(False, reason="killed: memory"), Stop(ONE, "killed: memory")),
    ("what can't be seen is not taken for gone", want(S.CLAIMED), have(None), None),
    ("a claimed one that works is left alone", want(S.CLAIMED), have(), None),
    ("a silent one is unreachable first", want(S.CLAIMED), have(silent=1), MarkUnreachable(ONE)),
    ("it may come back", want(S.UNREACHABLE), have(), MarkReachable(ONE)),
    ("it gets some time", want(S.UNREACHABLE), have(silent=14), None),
    ("and is ended then", want(S.UNREACHABLE), have(silent=16), Stop(ONE, "it has not answered for 15 s")),
    (
        "a warm one that is silent is of no use",
        want(S.WARM),
        have(silent=1),
        Stop(ONE, "it was warm and stopped answering"),
    ),
    ("one without sessions drains after a while", want(S.CLAIMED, idle=301), have(), Drain(ONE, "idle")),
    ("but not before", want(S.CLAIMED, idle=299), have(), None),
    ("a draining one waits for its turns", want(S.DRAINING, turns=1), have(), None),
    ("and ends without any", want(S.DRAINING), have(), Stop(ONE, "drained")),
    ("an orphan gets a grace", None, have(age=14), None),
    ("and is ended then", None, have(age=16), Stop(ONE, "no row wants it")),
    ("what an orphan left is cleared at once", None, have(False, age=0), Stop(ONE, "no row wants it")),
    ("an orphan that can't be seen is left", None, have(None, age=99), None),
    ("nothing needs nothing", None, None, None),
]


@pytest.mark.parametrize(("says", "wanted", "seen", "expected"), TABLE, ids=[row[0] for row in TABLE])
def test_the_table(says, wanted, seen, expected):
    assert step(ONE, wanted, seen, POLICY) == expected


def test_warm_ones_are_added_up_to_the_policy_and_the_room():
    policy = Policy(warm=3, max_runtimes=4, start_timeout=timedelta(seconds=20), idle_timeout=timedelta(minutes=5))
    rows = {RuntimeId(f"run_{n}"): Wanted(RuntimeId(f"run_{n}"), S.CLAIMED, timedelta(0), None, 0) for n in range(3)}
    seen = {one: have() for one in rows}
    assert plan(rows, seen, policy) == [Add()]


spans = st.integers(0, 1000).map(lambda seconds: timedelta(seconds=seconds))
ids = st.sampled_from([RuntimeId(f"run_{n}") for n in range(5)])
rows = st.builds(
    Wanted,
    id=ids,
    status=st.sampled_from([s for s in S if s is not S.GONE]),
    wanted_for=spans,
    idle_for=st.none() | spans,
    turns=st.integers(0, 2),
)
sights = st.builds(Seen, running=st.sampled_from([True, False, None]), seen_for=spans, silent_for=st.none() | spans)


class World:
    """What doing an action makes of both sides: the least that a launcher and a database promise."""

    def __init__(self, wanted, seen):
        self.wanted, self.seen, self.made = dict(wanted), dict(seen), 0

    def do(self, action):
        match action:
            case Add():
                self.made += 1
                new = RuntimeId(f"new_{self.made}")
                self.wanted[new] = Wanted(new, S.STARTING, timedelta(0), None, 0)
            case Start(id):
                self.seen[id] = Seen(True, timedelta(0), None)
                self.set(id, S.WARM)
            case Stop(id, _):
                self.wanted.pop(id, None)
                self.seen.pop(id, None)
            case MarkUnreachable(id):
                self.set(id, S.UNREACHABLE)
            case MarkReachable(id):
                self.set(id, S.CLAIMED)
            case Drain(id, _):
                self.set(id, S.DRAINING)

    def set(self, one, status):
        row = self.wanted[one]
        self.wanted[one] = Wanted(row.id, status, row.wanted_for, row.idle_for, row.turns)


@given(st.lists(rows), st.dictionaries(ids, sights), st.integers(0, 3), st.data())
def test_any_start_converges_and_then_plans_nothing(wanted, seen, warm, data):
    policy = Policy(warm=warm, max_runtimes=20, start_timeout=timedelta(seconds=20), idle_timeout=timedelta(minutes=5))
    world = World({row.id: row for row in wanted}, seen)
    # At least the first action of each plan is done, in any order with the rest: four a runtime is the longest way.
    for _ in range(4 * (len(world.wanted) + len(world.seen) + warm) + 1):
        actions = plan(world.wanted, world.seen, policy)
        for action in actions[: data.draw(st.integers(1, max(1, len(actions))))]:
            world.do(action)
    assert plan(world.wanted, world.seen, policy) == []


@given(st.lists(rows), st.dictionaries(ids, sights))
def test_what_cannot_be_seen_is_never_stopped_or_doubled(wanted, seen):
    table = {row.id: row for row in wanted}
    for action in plan(table, seen, POLICY):
        target = getattr(action, "id", None)
        assert target is None or seen.get(target) is None or seen[target].running is not None


@given(st.lists(rows), st.dictionaries(ids, sights))
def test_planning_twice_gives_the_same(wanted, seen):
    table = {row.id: row for row in wanted}
    assert plan(table, seen, POLICY) == plan(dict(reversed(table.items())), seen, POLICY)

"""What should happen to runtimes: a pure function of what is wanted and what is seen, each with how long it has been so.

`plan` reads like its table; `docs/lifecycle.md` tells it in prose. Invariants: planning twice changes nothing; planning
after any part of a plan was done gives the rest; what could not be seen (`running is None`) is never taken for gone; nothing
depends on the time of day, which somebody may set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from amplifier_api_server.tenants.ids import RuntimeId
from amplifier_api_server.tenants.lifecycle import RuntimeStatus


@dataclass(frozen=True, slots=True)
class Wanted:
    """A runtime's row, as far as it matters here; for how long, by a clock that nobody sets."""

    id: RuntimeId
    status: RuntimeStatus
    wanted_for: timedelta
    idle_for: timedelta | None  # without a session; None while it has one
    turns: int  # running in it


@dataclass(frozen=True, slots=True)
class Seen:
    """A runtime as the launcher and the last ping saw it; for how long, by a clock that nobody sets."""

    running: bool | None
    seen_for: timedelta
    silent_for: timedelta | None  # it runs, but has not answered; None: it answered
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    warm: int
    max_runtimes: int
    start_timeout: timedelta
    idle_timeout: timedelta
    orphan_grace: timedelta = timedelta(seconds=15)  # a row may be on its way from another replica
    silence_grace: timedelta = timedelta(seconds=15)  # a stopped or stalled process, before it is ended


@dataclass(frozen=True, slots=True)
class Add:
    """Write the row of one more runtime; the next pass starts it."""


@dataclass(frozen=True, slots=True)
class Start:
    id: RuntimeId


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process, if any, and everything it left; the row, if any, is gone then."""

    id: RuntimeId
    reason: str


@dataclass(frozen=True, slots=True)
class MarkUnreachable:
    id: RuntimeId


@dataclass(frozen=True, slots=True)
class MarkReachable:
    id: RuntimeId


@dataclass(frozen=True, slots=True)
class Drain:
    id: RuntimeId
    reason: str


Action = Add | Start | Stop | MarkUnreachable | MarkReachable | Drain


def plan(wanted: Mapping[RuntimeId, Wanted], seen: Mapping[RuntimeId, Seen], policy: Policy) -> list[Action]:
    """The steps that bring what is seen nearer to what is wanted; none when they agree."""
    actions: list[Action] = []
    for runtime_id in sorted(wanted.keys() | seen.keys()):
        action = step(runtime_id, wanted.get(runtime_id), seen.get(runtime_id), policy)
        if action is not None:
            actions.append(action)
    ended = {action.id for action in actions if isinstance(action, Stop)}
    kept = [row for row in wanted.values() if row.id not in ended]
    ready = sum(row.status in (RuntimeStatus.STARTING, RuntimeStatus.WARM) for row in kept)
    room = policy.max_runtimes - len(kept)
    actions.extend(Add() for _ in range(max(0, min(policy.warm - ready, room))))
    return actions


def step(runtime_id: RuntimeId, want: Wanted | None, have: Seen | None, policy: Policy) -> Action | None:
    """What one runtime needs next."""
    if want is None:
        return _orphan(runtime_id, have, policy)
    if have is not None and have.running is None:
        return None
    if want.status is RuntimeStatus.STARTING:
        late = want.wanted_for > policy.start_timeout * 2
        return Stop(want.id, "it did not start in time") if late else Start(want.id)
    if have is None:
        return Stop(want.id, "its process is gone")
    if not have.running:
        return Stop(want.id, have.reason or "its process has ended")
    return _running(want, have, policy)


def _orphan(runtime_id: RuntimeId, have: Seen | None, policy: Policy) -> Action | None:
    if have is None or have.running is None:
        return None
    if not have.running or have.seen_for > policy.orphan_grace:
        return Stop(runtime_id, "no row wants it")
    return None


def _running(want: Wanted, have: Seen, policy: Policy) -> Action | None:
    silent = have.silent_for is not None
    match want.status:
        case RuntimeStatus.WARM if silent:
            return Stop(want.id, "it was warm and stopped answering")
        case RuntimeStatus.CLAIMED if silent:
            return MarkUnreachable(want.id)
        case RuntimeStatus.UNREACHABLE if not silent:
            return MarkReachable(want.id)
        case RuntimeStatus.UNREACHABLE if have.silent_for is not None and have.silent_for > policy.silence_grace:
            return Stop(want.id, f"it has not answered for {policy.silence_grace.total_seconds():.0f} s")
        case RuntimeStatus.CLAIMED if want.idle_for is not None and want.idle_for > policy.idle_timeout:
            return Drain(want.id, "idle")
        case RuntimeStatus.DRAINING if not want.turns:
            return Stop(want.id, "drained")
        case _:
            return None

"""In which order pieces of work that can't be interrupted are done, and how much of the event loop's time they take.

What one caller asks for may be many small pieces: a hundred thousand frames, twenty thousand fields. Done in one go they hold
the event loop for seconds, for everybody. Here they wait in queues, one for each caller (a tenant, or a network before the
tenant is known), which take turns. Owns the order and the shares, not the work. Invariants: one turn of the event loop does
about a millisecond of it, and then everything else that is ready has its turn; a caller that asks for much gets no more than
its share of the time, those who ask for much leave a part of it to everything else together, and who asks for little waits
for one step of theirs at most.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from time import monotonic, thread_time
from typing import Final, TypeVar

from amplifier_api_server.control_plane.pace import Pace

Result = TypeVar("Result")

TURN_SECONDS: Final = 0.001  # of work in one turn of the loop
# Shares of the loop's time, and how many seconds of work may be done at once before they hold. A request passes some twenty
# turns of the loop on its way: what it waits for is as many pieces of others' work as fit in between.
SHARE_OF_ONE, BURST_OF_ONE = 0.5, 0.1
SHARE_OF_ALL, BURST_OF_ALL = 0.65, 0.02
_LITTLE_SHARE, _LITTLE_BURST = 0.02, 0.02  # of a caller that goes first
_MOST_CALLERS: Final = 4096  # that are remembered

Step = Callable[[], float]


@dataclass(slots=True)
class _Caller:
    pace: Pace  # its share
    little: Pace  # how much of that it may use and go first
    steps: deque[Step] = field(default_factory=deque)
    is_resting: bool = False  # it had its share


class FairQueue:
    """One for an event loop. `worked` is a clock of the thread's own processor time, `now` one of the wall's."""

    def __init__(self, worked: Callable[[], float] = thread_time, now: Callable[[], float] = monotonic) -> None:
        self._worked = worked
        self._now = now
        self._left = TURN_SECONDS  # of this turn
        self._admitted = 0.0  # seconds of work elsewhere, by the step that is being done
        self._callers: OrderedDict[str, _Caller] = OrderedDict()  # the one that was served last comes last
        # Who has steps, and may go on. Modest ones, who have used little lately, go first and wait for nobody's share.
        self._modest: OrderedDict[str, _Caller] = OrderedDict()
        self._greedy: OrderedDict[str, _Caller] = OrderedDict()
        self._all = Pace(SHARE_OF_ALL, BURST_OF_ALL, now)
        self._next: asyncio.Handle | None = None  # turn
        self._is_pausing = False  # until that

    def put(self, key: str, step: Step) -> None:
        """Do a step when its turn comes.

        It raises nothing, and gives how many seconds of work it begins that is done elsewhere in this turn of the loop.
        """
        caller = self._caller(key)
        caller.steps.append(step)
        if not caller.is_resting:
            self._wait(key, caller)
            self._call()

    def do(self, key: str, step: Step) -> None:
        """Do a step now, where this turn of the loop has room for it and nothing waits under its key; else in its turn.

        A step that is done now raises what it raises.
        """
        caller = self._caller(key)
        if self._left <= 0 or caller.steps or caller.is_resting:
            self.put(key, step)
            return
        self._take(key, caller, step)
        self._call()  # the next turn has room again

    async def run(self, key: str, work: Callable[[], Result]) -> Result:
        """What `work` gives or raises, when its turn comes, in the caller's own context."""
        return await self._done(key, partial(copy_context().run, work))

    async def _done(self, key: str, work: Callable[[], Result]) -> Result:
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def step() -> float:
            if not done.done():  # else it was cancelled
                try:
                    done.set_result(work())
                except Exception as error:  # noqa: BLE001 - it is raised where it is awaited
                    done.set_exception(error)
            return 0

        self.put(key, step)
        return await done

    async def admit(self, key: str, seconds: float) -> None:
        """Returns when the caller may begin what takes about so long, which counts as done then: it is not done here."""

        def begin() -> None:
            self._admitted += seconds

        await self._done(key, begin)

    def _wait(self, key: str, caller: _Caller) -> None:
        """A caller that has steps waits for its turn, unless it waits or rests already."""
        if not (caller.is_resting or key in self._modest or key in self._greedy):
            (self._greedy if caller.little.wait_seconds(0) else self._modest)[key] = caller

    def _call(self) -> None:
        """Go on in the loop's next turn; for greedy callers alone, when they may together."""
        pause = 0.0 if self._modest else self._all.wait_seconds(0)
        if self._next is not None:
            if pause or not self._is_pausing:
                return
            self._next.cancel()
        loop = asyncio.get_running_loop()
        self._is_pausing = pause > 0
        self._next = loop.call_later(pause, self._turn) if pause else loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._left = TURN_SECONDS
        try:
            while self._left > 0 and (ready := self._modest or (not self._all.wait_seconds(0) and self._greedy)):
                key, caller = ready.popitem(last=False)
                self._take(key, caller, caller.steps.popleft())
        finally:
            self._next = None
            if self._modest or self._greedy:
                self._call()

    def _take(self, key: str, caller: _Caller, step: Step) -> None:
        """Do a step. Its caller is served again after the others, or after a rest where it had more than its share."""
        begun, more = self._worked(), 0.0
        try:
            more = step()
        finally:
            took = self._worked() - begun + self._admitted
            self._admitted = 0.0
            self._left -= took + more
            self._all.wait_seconds(took)
            if not caller.little.wait_seconds(0):  # else it is greedy, for a second after the last of it at most
                caller.little.wait_seconds(min(took, _LITTLE_BURST))
            if rest := caller.pace.wait_seconds(took):
                caller.is_resting = True
                self._modest.pop(key, None)
                self._greedy.pop(key, None)
                asyncio.get_running_loop().call_later(rest, self._has_rested, key, caller)
            elif caller.steps:
                self._wait(key, caller)

    def _has_rested(self, key: str, caller: _Caller) -> None:
        caller.is_resting = False
        if caller.steps:
            self._wait(key, caller)
            self._call()

    def _caller(self, key: str) -> _Caller:
        caller = self._callers.get(key)
        if caller is None:
            caller = self._callers[key] = _Caller(
                Pace(SHARE_OF_ONE, BURST_OF_ONE, self._now), Pace(_LITTLE_SHARE, _LITTLE_BURST, self._now)
            )
            if len(self._callers) > _MOST_CALLERS:
                self._forget_one()
        else:
            self._callers.move_to_end(key)
        return caller

    def _forget_one(self) -> None:
        """The one that was served longest ago, of those that have nothing to do."""
        idle = next((key for key, one in self._callers.items() if not one.steps and not one.is_resting), None)
        if idle is not None:
            del self._callers[idle]

"""In which order pieces of work that can't be interrupted are done, and how many in one turn of the event loop.

What one caller asks for may be many small pieces: a hundred thousand frames, twenty thousand fields. Done in one go they hold
the event loop for seconds, for everybody. Here they wait in queues by whoever is counted for them, which take turns. Owns the
order, not the work. Invariants: one turn of the event loop does about so much, counted by the work itself, and then
everything else that is ready has its turn; whoever asks for much has no larger share than who asks for little.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from contextvars import copy_context
from typing import TypeVar

Result = TypeVar("Result")


class Turns:
    """One for each kind of work in an event loop. `most`: how much of it one turn of the loop does."""

    def __init__(self, most: float) -> None:
        self._most = self._left = most  # `_left` of this turn
        self._queues: OrderedDict[str, deque[Callable[[], float]]] = OrderedDict()
        self._is_called = False

    def put(self, key: str, step: Callable[[], float]) -> None:
        """Do a step when its turn comes. It gives what it was worth, and raises nothing."""
        self._queues.setdefault(key, deque()).append(step)
        self._call()

    def do(self, key: str, step: Callable[[], float]) -> None:
        """Do a step now, where this turn of the loop has room for it and nothing waits under its key; else in its turn.

        A step that is done now raises what it raises.
        """
        if self._left <= 0 or key in self._queues:
            self.put(key, step)
            return
        self._call()
        self._left -= step()

    async def run(self, key: str, work: Callable[[], Result], worth: Callable[[], float]) -> Result:
        """What `work` gives or raises, when its turn comes, in the caller's own context. `worth` is asked after it."""
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        context = copy_context()

        def step() -> float:
            if done.done():  # cancelled
                return 0
            try:
                done.set_result(context.run(work))
            except Exception as error:  # noqa: BLE001 - it is raised where it is awaited
                done.set_exception(error)
            return worth()

        self.put(key, step)
        return await done

    def _call(self) -> None:
        if not self._is_called:
            self._is_called = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_called = False
        self._left = self._most
        try:
            while self._queues and self._left > 0:
                key, queue = self._queues.popitem(last=False)
                step = queue.popleft()
                if queue:
                    self._queues[key] = queue
                self._left -= step()
        finally:
            if self._queues:
                self._call()

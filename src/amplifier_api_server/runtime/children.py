"""Child sessions: `session.spawn` and `session.resume`, as delegating modules call them.

A child is a session of its own, in its parent's process and folder, for one turn at a time; between its turns only its
record is there. Its model calls are its parent's turn's, so that the ledger and the budget hold for them too.
Invariants: no child outlives the turn that it works for, nor the limits of its turn; a turn of a child that did not
complete leaves its record as it was; a place at one depth is never waited for by who holds a place there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from amplifier_api_server.runtime import routing
from amplifier_api_server.runtime.child_records import Record, Records
from amplifier_api_server.runtime.protocol import Failure
from amplifier_api_server.runtime.spawning import MAX_STEPS, SELF, Recipe, child_plan, new_session_id, preferences_of
from amplifier_api_server.runtime.transcript import Messages, as_json, conversation, is_valid, repaired
from amplifier_api_server.runtime.turn_port import ChildTurn, Turn, call_clock_stopped

if TYPE_CHECKING:
    from amplifier_api_server.runtime.host import Host

log = logging.getLogger(__name__)

MAX_DEPTH = 3
MAX_AT_ONCE = 8  # children of one depth; more wait for a place. An open session takes 0.1 to 3 MB
MAX_A_TURN = 200  # that one turn may start or resume: recipes loop over lists
MAX_SECONDS = 900.0
CUT_SECONDS = 0.3  # how long a child that was cut may take to come back, within what its parent's cancel may take
MAX_INSTRUCTION_CHARS = 1_000_000
_ID = re.compile(r"[\w.:/-]{1,256}", re.ASCII)


class ChildRefusedError(ValueError):
    """The child can't be made: what to do is in its words, which a model may read."""


class UnknownChildError(FileNotFoundError):
    """There is no such child session to resume."""


class ChildFailedError(Exception):
    """The child's turn did not complete."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one turn of a child."""

    seconds: float = MAX_SECONDS
    steps: int = MAX_STEPS
    tokens: int | None = None

    @classmethod
    def of(cls, given: Any) -> Limits:
        """From `{max_seconds, max_steps, max_tokens}` of a caller's configuration; the ceilings hold."""
        told = given if isinstance(given, Mapping) else {}
        seconds, steps, tokens = (_number(told.get(f"max_{name}")) for name in ("seconds", "steps", "tokens"))
        return cls(
            seconds=min(seconds or MAX_SECONDS, MAX_SECONDS),
            steps=min(int(steps or MAX_STEPS), MAX_STEPS),
            tokens=int(tokens) if tokens else None,
        )


OpenChild = Callable[["Host", Record, dict[str, Any]], Awaitable["Host"]]


class Children:
    """Of one session and all below it."""

    def __init__(self, root_plan: Mapping[str, Any], open_child: OpenChild) -> None:
        self.records = Records()
        self._root_plan = root_plan
        self._open_child = open_child
        self._places = [asyncio.Semaphore(MAX_AT_ONCE) for _ in range(MAX_DEPTH)]
        self._running: set[str] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._turn: Turn | None = None  # the one that `_started` counts for
        self._started = 0

    async def spawn(
        self,
        parent: Host,
        *,
        agent_name: str,
        instruction: str,
        agent_configs: Mapping[str, Any] | None = None,
        sub_session_id: str | None = None,
        parent_messages: Messages | None = None,
        provider_preferences: Any = None,
        self_delegation_depth: int = 0,
        **more: Any,
    ) -> dict[str, Any]:
        """A new child's first turn. Raises ChildRefusedError and ChildFailedError. `more`: see `_recipe`; else ignored."""
        turn = self._admit(parent, instruction)
        session_id = str(sub_session_id or new_session_id(parent.session_id, agent_name))
        if not _ID.fullmatch(session_id) or session_id in self._running or self.records.get(session_id) is not None:
            raise ChildRefusedError(f"{session_id!r:.100} is no new session id; leave sub_session_id out")
        agent = self._agent(parent, agent_name, agent_configs)
        limits = Limits.of(more.get("limits"))
        preferences = preferences_of(provider_preferences) or await routing.preferences(parent, agent)
        record = Record(
            session_id=session_id,
            parent_id=parent.session_id,
            recipes=(
                *parent.recipes,
                Recipe(
                    name=agent_name,
                    agent=None if agent is None or _is_pinned(parent, agent_name, agent) else dict(agent),
                    tools=_policy(more.get("tool_inheritance"), "tools"),
                    hooks=_policy(more.get("hook_inheritance"), "hooks"),
                    orchestrator=_mapping(more.get("orchestrator_config")),
                    provider=await routing.chosen(parent, preferences),
                    max_steps=limits.steps,
                ),
            ),
            self_depth=max(int(self_delegation_depth or 0), 0),
            turns=0,
            transcript=_inherited(parent_messages),
            state={},
        )
        return await self._take_turn(parent, turn, record, instruction, limits)

    async def resume(
        self, parent: Host, *, sub_session_id: str, instruction: str, limits: Any = None, **_: Any
    ) -> dict[str, Any]:
        """Another turn of a child. Raises UnknownChildError, ChildRefusedError and ChildFailedError."""
        turn = self._admit(parent, instruction)
        record = self.records.get(str(sub_session_id))
        if record is None:
            raise UnknownChildError(
                f"there is no agent session {sub_session_id!r:.100} to resume: it never completed a turn, or was dropped "
                "as one of the oldest or largest; delegate anew"
            )
        if record.session_id in self._running:
            raise ChildRefusedError(f"agent session {record.session_id} runs already; wait for its answer")
        return await self._take_turn(parent, turn, record, instruction, Limits.of(limits))

    async def close(self) -> None:
        """Wait a little for children that were cut to be gone."""
        if self._ending:
            await asyncio.wait(set(self._ending), timeout=2 * CUT_SECONDS)

    def _admit(self, parent: Host, instruction: str) -> Turn:
        turn = parent.port.turn
        if turn is None or not turn.is_open or turn.cancelled.done():
            raise ChildRefusedError("no turn runs that a child session could work for")
        if len(parent.recipes) >= MAX_DEPTH:
            raise ChildRefusedError(
                f"agents may delegate {MAX_DEPTH} deep, and this is one at that depth: do the work here"
            )
        if not isinstance(instruction, str) or not instruction.strip() or len(instruction) > MAX_INSTRUCTION_CHARS:
            raise ChildRefusedError(f"the instruction should be a text of at most {MAX_INSTRUCTION_CHARS} characters")
        root = turn.root
        if root is not self._turn:
            self._turn, self._started = root, 0
        self._started += 1
        if self._started > MAX_A_TURN:
            raise ChildRefusedError(f"one turn may delegate {MAX_A_TURN} times; go on in the next one")
        return turn

    def _agent(self, parent: Host, name: str, configs: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """The agent's settings, None for `self`."""
        held = parent.agents
        agents = configs if isinstance(configs, Mapping) and configs else held if isinstance(held, Mapping) else {}
        found = agents.get(name)
        if isinstance(found, Mapping):
            return found
        if name == SELF:
            return None
        known = ", ".join(sorted(map(str, agents))) or "none"
        raise ChildRefusedError(f"there is no agent {name!r:.100}; there are: {known:.2000}")

    async def _take_turn(
        self, parent: Host, turn: Turn, record: Record, instruction: str, limits: Limits
    ) -> dict[str, Any]:
        self._running.add(record.session_id)
        try:
            with call_clock_stopped():
                async with self._places[record.depth - 1]:
                    if turn.cancelled.done():
                        raise ChildFailedError(f"agent {record.agent!r} was not started: the turn was cancelled")
                    own = ChildTurn(turn, record.session_id, record.agent)
                    return await self._run(parent, own, record, instruction, limits)
        finally:
            self._running.discard(record.session_id)

    async def _run(
        self, parent: Host, turn: ChildTurn, record: Record, instruction: str, limits: Limits
    ) -> dict[str, Any]:
        try:
            plan: Mapping[str, Any] = self._root_plan
            for recipe in record.recipes:
                plan = child_plan(plan, recipe)
            host = await self._open_child(parent, record, dict(plan))
        except BaseException as error:
            turn.close()
            if isinstance(error, Exception):
                raise ChildFailedError(f"agent {record.agent!r} could not be started: {error}"[:2000]) from error
            raise
        host.port.turn = turn
        meter = Meter(turn, limits.tokens)
        host.listen("provider:response", meter.provider_response)
        host.listen("llm:response", meter.llm_response)
        host.listen("orchestrator:complete", meter.orchestrator_complete)
        task = asyncio.ensure_future(self._execute(host, record, instruction))
        try:
            with parent.cancels(host):
                done = await _first(task, turn, limits.seconds)
                if not done and not turn.cancelled.done():
                    turn.fail(Failure(code="turn_timeout", detail=f"it took longer than {limits.seconds:g} s"))
                    turn.cancel()
                if not done:
                    await _cut(host, task)
            kept, output = _outcome(task, turn, record)
            self.records.keep(kept)
            told = meter.completion
            return {
                "output": output,
                "session_id": record.session_id,
                "agent": record.agent,
                "status": "success" if told.get("status") in (None, "completed") else str(told["status"]),
                "turn_count": kept.turns,
                "metadata": _mapping(told.get("metadata")),
            }
        finally:
            turn.cancel()
            self._end_soon(host, task, turn)

    async def _execute(self, host: Host, record: Record, instruction: str) -> tuple[Record, str]:
        """One turn of the child; its record after that, and its answer."""
        before = await host.messages()
        host.begin_turn(before)
        output = await host.execute(await host.expanded(instruction))
        added = await host.added()
        if not is_valid(added):
            added = repaired(added, output)
        transcript = as_json([*record.transcript, *added])
        return replace(record, turns=record.turns + 1, transcript=transcript, state=host.own_state()), output

    def _end_soon(self, host: Host, task: asyncio.Future[Any], turn: ChildTurn) -> None:
        """Close the child without keeping its parent's cancel waiting for it."""
        turn.close()
        self._keep(_end(host, task))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        ending = asyncio.ensure_future(work)
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


class Meter:
    """Counts what a child's model calls use, as its loop or its provider tells it, and ends its turn at the limit.

    What is billed is counted by the gateway, whatever is told here.
    """

    def __init__(self, turn: Turn, max_tokens: int | None) -> None:
        self.completion: dict[str, Any] = {}  # what the orchestrator told at the end
        self._turn = turn
        self._max_tokens = max_tokens
        self._used = {"provider:response": 0, "llm:response": 0}  # the same calls, told twice or once

    async def provider_response(self, event: str, data: dict[str, Any]) -> None:
        self._count(event, data.get("usage"))

    async def llm_response(self, event: str, data: dict[str, Any]) -> None:
        self._count(event, data.get("usage"))

    async def orchestrator_complete(self, event: str, data: dict[str, Any]) -> None:
        self.completion.update(data)

    def _count(self, event: str, usage: Any) -> None:
        if not isinstance(usage, Mapping):
            return
        total = _number(usage.get("total_tokens"))
        parts = ("input_tokens", "output_tokens") if "input_tokens" in usage else ("input", "output")
        self._used[event] += int(total if total is not None else sum(_number(usage.get(part)) or 0 for part in parts))
        if (
            self._max_tokens is not None
            and max(self._used.values()) >= self._max_tokens
            and not self._turn.cancelled.done()
        ):
            self._turn.fail(Failure(code="turn_failed", detail=f"it used its {self._max_tokens} tokens up"))
            self._turn.cancel()


async def _first(task: asyncio.Future[Any], turn: Turn, timeout_seconds: float) -> bool:
    """Whether the task ended before the turn was cancelled or the time was over."""
    watched: set[asyncio.Future[Any]] = {task, turn.cancelled}
    await asyncio.wait(watched, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
    return task.done()


async def _cut(host: Host, task: asyncio.Future[Any]) -> None:
    """Core's cancel, not the task's: that would orphan the loop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CUT_SECONDS):
            await host.cancel()
            await asyncio.wait({task})


async def _end(host: Host, task: asyncio.Future[Any]) -> None:
    try:
        if not task.done():
            await _cut(host, task)
        if not task.done():
            log.warning("a child session did not come back from its cancel; it is abandoned")
            task.cancel()
    finally:
        task.add_done_callback(_forget)
        await host.close()


def _outcome(task: asyncio.Future[tuple[Record, str]], turn: Turn, record: Record) -> tuple[Record, str]:
    if turn.cancelled.done():
        reason = turn.failure.detail if turn.failure else "it was cancelled with the turn that it worked for"
        raise ChildFailedError(f"agent {record.agent!r} did not finish: {reason}")
    error = task.exception()
    if error is not None:
        told = f"{turn.failure.detail} ({turn.failure.code})" if turn.failure else str(error)
        raise ChildFailedError(f"agent {record.agent!r} failed: {told}"[:2000]) from error
    return task.result()


def _inherited(messages: Any) -> Messages:
    """A parent's messages as a child may begin with them: none, or a valid transcript."""
    given = as_json(conversation(messages)) if isinstance(messages, list) and messages else []
    return given if not given or is_valid(given) else repaired(given, "")


def _is_pinned(parent: Host, name: str, agent: Mapping[str, Any]) -> bool:
    """Whether the parent's plan says the same of the agent, so that a record need not."""
    held = (parent.plan.get("agents") or {}).get(name)
    return isinstance(held, Mapping) and _less_routing(held) == _less_routing(agent)


def _less_routing(agent: Mapping[str, Any]) -> dict[str, Any]:
    """Routing hooks write what they chose into the agents' settings; a recipe says what was chosen by itself."""
    return {key: value for key, value in agent.items() if key != "provider_preferences"}


def _policy(given: Any, kind: str) -> dict[str, Any]:
    told = _mapping(given)
    return {key: told[key] for key in (f"exclude_{kind}", f"inherit_{kind}") if isinstance(told.get(key), list)}


def _mapping(given: Any) -> dict[str, Any]:
    return dict(given) if isinstance(given, Mapping) else {}


def _number(given: Any) -> float | None:
    return float(given) if isinstance(given, int | float) and not isinstance(given, bool) and given > 0 else None


def _forget(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()

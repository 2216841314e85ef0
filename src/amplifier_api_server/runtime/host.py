"""One AmplifierSession of amplifier-core, made from a plan, with what its modules expect of a host, and taken apart
whole.

Owns the session object and knows core's traps (tests/runtime/contract says each as a test). Refuses to know HTTP,
turns' events or checkpoints. Invariant: a session whose every module mounted, or none; after `close` nothing of it is
held. A child session is one too; the session at the root owns the records of all its children.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from amplifier_core import AmplifierSession
from pydantic_core import from_json

from amplifier_api_server.runtime import capabilities
from amplifier_api_server.runtime.bridge import FIRST, Bridge, Handler, is_foreign
from amplifier_api_server.runtime.bundles.mentions import MentionResolver
from amplifier_api_server.runtime.bundles.plans import folders_of, resolver_of, sources_of
from amplifier_api_server.runtime.child_records import Record
from amplifier_api_server.runtime.children import Children
from amplifier_api_server.runtime.consent import Approvals, Consents, Provider
from amplifier_api_server.runtime.events import encoded
from amplifier_api_server.runtime.failures import BadRequest, Refused
from amplifier_api_server.runtime.module_loader import RuntimeModuleLoader
from amplifier_api_server.runtime.spawning import Recipe
from amplifier_api_server.runtime.transcript import Messages, conversation, plain, starts_with
from amplifier_api_server.runtime.turn_port import CAPABILITY, TurnPort

log = logging.getLogger(__name__)

OPEN_SECONDS = 30.0  # for all modules of a session to mount
CLOSE_SECONDS = 5.0
MAX_OWN_STATE_BYTES = 768 * 1024  # of a session's modules, beside its children: see `child_records`
_LOAD_FAILED = "module:load_failed"
_SECTIONS = ("session", "providers", "tools", "hooks", "agents")


@dataclass(frozen=True, slots=True)
class Making:
    """What a session and its children are made with, beside their plans."""

    folders: Mapping[str, Path]
    resolver: MentionResolver
    sources: Mapping[str, Path] = field(default_factory=dict)  # what configurations name by its address
    consents: Consents = field(default_factory=Consents)


class Host:
    """Made by `open_host`, and by it for children."""

    def __init__(
        self, session: Any, plan: Mapping[str, Any], port: TurnPort, making: Making, children: Children | None = None
    ) -> None:
        self.port = port
        self.plan = plan
        self.session_id: str = session.session_id
        self.recipes: tuple[Recipe, ...] = ()  # that lead from the session at the root to this one
        self.making = making
        self.children = children or Children(plan, open_child)
        self._session = session
        self._coordinator = session.coordinator
        self._approvals = Approvals(port, making.consents)
        self._coordinator.approval_system = self._approvals
        self._bridge = Bridge(port, self.listen)
        self._unregister: list[Any] = []
        self._load_failures: list[str] = []
        self._recorded: Messages | None = None  # kept apart where a context of somebody else's may forget
        self._journal: Messages = []
        self._at_start: Messages = []

    async def start(self, self_depth: int = 0, routing: Any = None) -> None:
        """Mount everything. Raises BadRequest (module_failed) naming each module that did not mount, and why."""
        coordinator = self._coordinator
        coordinator.loader = RuntimeModuleLoader(self.making.folders, self.making.sources)
        offered = {
            CAPABILITY: self.port,
            capabilities.WORKING_DIR: str(self.port.working_dir),
            capabilities.MENTION_RESOLVER: self.making.resolver,
            capabilities.SPAWN: self._spawn,
            capabilities.RESUME: self._resume,
            capabilities.SELF_DEPTH: self_depth,
            capabilities.ROUTING: routing,
        }
        capabilities.offer(coordinator, offered)
        self.listen(_LOAD_FAILED, self._note_load_failure)
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await self._session.initialize()
        except TimeoutError:
            raise BadRequest("module_failed", f"the modules took longer than {OPEN_SECONDS:g} s to mount") from None
        except Exception as error:
            raise BadRequest("module_failed", str(error)[:2000]) from error
        if self._load_failures:
            raise BadRequest("module_failed", "; ".join(self._load_failures)[:2000])
        self._register_provider()
        self._bridge.connect(coordinator.get("orchestrator"), self.providers)
        self._watch_context()
        await self._set_prompt()

    def begin_turn(self, messages: Messages) -> None:
        """`messages` is what the context holds before it."""
        self._at_start = messages
        self._journal.clear()
        self._bridge.begin_turn()

    async def execute(self, prompt: str) -> str:
        """One turn of core's. Raises RuntimeError without a cause: why is at `port.turn.failure`, if anybody knew."""
        self._coordinator.cancellation.reset()
        self._coordinator.reset_turn()
        response = str(await self._session.execute(prompt))
        turn = self.port.turn
        if turn is not None and not turn.cancelled.done():
            turn.answer(response)
        return response

    async def cancel(self) -> None:
        await self._coordinator.request_cancel(immediate=True)

    async def messages(self) -> Messages:
        """What the context holds, without prompts."""
        return conversation(await self._context.get_messages())

    async def transcript(self) -> Messages:
        """The whole of it, as it was recorded: what a foreign context holds may be less."""
        return list(self._recorded) if self._recorded is not None else await self.messages()

    async def added(self) -> Messages:
        """What was added since `begin_turn`, also when the context compacted away what was there before."""
        messages = await self.messages()
        if starts_with(messages, self._at_start):
            return messages[len(self._at_start) :]
        return conversation(self._journal)

    def record(self, added: Messages) -> None:
        """The turn that added these is durable."""
        if self._recorded is not None:
            self._recorded.extend(added)

    async def set_messages(self, messages: Messages) -> None:
        """The whole transcript. A system message of a context without a prompt factory stays in front."""
        held = await self._context.get_messages()
        kept = [message for message in held if plain(message).get("role") == "system"]
        await self._context.set_messages(kept + list(messages))
        if self._recorded is not None:
            self._recorded = list(messages)

    def own_state(self) -> dict[str, Any]:
        """What modules keep beside the transcript, as JSON; nothing of it when it is over its bound."""
        told = {"todo_state": getattr(self._coordinator, "todo_state", None), "context": self._context_state()}
        told = {name: value for name, value in told.items() if value}
        if not told:
            return {}
        text = encoded(told)
        if len(text) > MAX_OWN_STATE_BYTES:
            log.warning("a session's state is over %d bytes and is not kept", MAX_OWN_STATE_BYTES)
            return {}
        as_json: dict[str, Any] = from_json(text)
        return as_json

    def state(self) -> dict[str, Any]:
        """`own_state`, the children, and what was allowed for good."""
        shared = {"children": self.children.records.state(), "consents": self.making.consents.state()}
        return {**self.own_state(), **{name: value for name, value in shared.items() if value}}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """A child's leaves the records alone: they are the root's."""
        self._coordinator.todo_state = state.get("todo_state") or []
        take = getattr(self._context, "set_state", None)
        if callable(take):
            take(state.get("context") or {})
        if not self.recipes:
            self.children.records.restore(state.get("children") or {})
            self.making.consents.restore(state.get("consents"))

    @property
    def providers(self) -> dict[str, Any]:
        return dict(self._coordinator.get("providers") or {})

    @property
    def agents(self) -> Any:
        """As the session's configuration has them: hooks may have added what they chose."""
        return self._coordinator.config.get("agents")

    def capability(self, name: str) -> Any:
        return self._coordinator.get_capability(name)

    @contextlib.contextmanager
    def cancels(self, child: Host) -> Iterator[None]:
        """While it holds, cancelling this session cancels `child`."""
        mine, its = self._coordinator.cancellation, child._coordinator.cancellation
        mine.register_child(its)
        try:
            yield
        finally:
            mine.unregister_child(its)

    def listen(self, event: str, handler: Handler, priority: int = FIRST) -> None:
        """Until the session closes."""
        name = f"host:{event}:{id(self)}:{len(self._unregister)}"  # unregister() goes by name alone
        self._unregister.append(self._coordinator.hooks.register(event, handler, priority=priority, name=name))

    async def close(self) -> None:
        """Clean up and break every cycle: core alone never frees a closed session. Idempotent."""
        if self._session is None:
            return
        session, coordinator = self._session, self._coordinator
        self._session = self._coordinator = None
        if not self.recipes:
            await self.children.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await session.cleanup()
        except Exception:  # a module's cleanup is anybody's code
            log.exception("a session's cleanup failed")
        self._take_apart(coordinator)
        self.port.turn = None

    def _take_apart(self, coordinator: Any) -> None:
        for unregister in self._unregister:
            unregister()
        self._unregister.clear()
        for names in coordinator.hooks.list_handlers().values():
            for name in names:  # each as often as it is there: unregister() takes one away, of any event
                coordinator.hooks.unregister(name)
        for point, mounted in dict(coordinator.mount_points).items():
            if isinstance(mounted, dict):
                mounted.clear()
            elif point != "hooks":
                coordinator.mount_points[point] = None
        for holder in (coordinator.channels, coordinator.session_state, vars(coordinator)):
            with contextlib.suppress(AttributeError):
                holder.clear()
        with contextlib.suppress(AttributeError, TypeError):
            coordinator._cleanup_fns.clear()  # noqa: SLF001 - core offers no other way
        capabilities.withdraw_all(coordinator)
        coordinator.loader = None
        coordinator.approval_system = None
        coordinator.display_system = None
        with contextlib.suppress(TypeError):
            coordinator._set_session(None)  # noqa: SLF001 - core offers no other way

    def _register_provider(self) -> None:
        """With a module from outside that asks for consent by a protocol of its own."""
        register = self.capability(capabilities.REGISTER_APPROVALS)
        if callable(register):
            try:
                register(Provider(self._approvals))
            except Exception as error:  # noqa: BLE001 - a module's code; without one it denies
                log.warning("a module takes no approval provider: %s", type(error).__name__)

    @property
    def _context(self) -> Any:
        return self._coordinator.get("context")

    def _context_state(self) -> Any:
        """Of a context that keeps more than messages, as a summary of what it compacted."""
        tell = getattr(self._context, "get_state", None)
        try:
            told = tell() if callable(tell) else None
        except Exception as error:  # noqa: BLE001 - a module's code
            log.warning("a context's state can't be had: %s", type(error).__name__)
            return None
        return told if isinstance(told, dict) else None

    def _watch_context(self) -> None:
        """Note what is added to a context that isn't ours: it may forget what a transcript has to hold."""
        context = self._context
        if not is_foreign(context):
            return
        self._recorded = []
        add = context.add_message

        async def noted(message: Any, *more: Any, **named: Any) -> Any:
            self._journal.append(plain(message))
            return await add(message, *more, **named)

        try:
            context.add_message = noted
        except AttributeError:
            log.info("a context takes no attribute: what it compacts in mid-turn is not recorded")

    async def _set_prompt(self) -> None:
        prompt = await self._prompt()
        if prompt is None:
            return
        if hasattr(self._context, "set_system_prompt_factory"):
            await self._context.set_system_prompt_factory(prompt)
        else:
            await self._context.add_message({"role": "system", "content": await prompt()})
        self._journal.clear()

    async def _prompt(self) -> capabilities.Prompt | None:
        agent, resolver = self.plan.get("agent"), self.making.resolver
        if isinstance(agent, Mapping):
            instruction = str(agent.get("instruction") or "")
            return await asyncio.to_thread(capabilities.agent_prompt, instruction, resolver) if instruction else None
        text = str(self.plan.get("system_prompt") or "")
        return capabilities.Prompt(text, self.plan.get("mentions") or [], resolver) if text else None

    async def expanded(self, instruction: str) -> str:
        return await asyncio.to_thread(capabilities.with_mentioned, instruction, self.making.resolver)

    async def _spawn(self, agent_name: str, instruction: str, **given: Any) -> dict[str, Any]:
        """The capability `session.spawn`. Whose child it is, is known: `parent_session` says nothing new."""
        given.pop("parent_session", None)
        return await self.children.spawn(self, agent_name=agent_name, instruction=instruction, **given)

    async def _resume(self, sub_session_id: str, instruction: str, **given: Any) -> dict[str, Any]:
        """The capability `session.resume`."""
        return await self.children.resume(self, sub_session_id=sub_session_id, instruction=instruction, **given)

    async def _note_load_failure(self, event: str, data: dict[str, Any]) -> None:
        self._load_failures.append(f"{data.get('module_type')} {data.get('module_id')!r}: {data.get('error')}")


async def open_host(
    session_id: str,
    plan: Mapping[str, Any],
    folders: Mapping[str, Path],
    port: TurnPort,
    *,
    transcript: Messages,
    state: Mapping[str, Any],
    resolver: MentionResolver | None = None,
) -> Host:
    """A session, new or again. Raises Refused and leaves nothing. `resolver`: what the plan's names mean."""
    collections = port.services.collections
    resolver = resolver or resolver_of(plan, collections, port.working_dir)
    making = Making(folders, resolver, sources_of(plan, collections))
    host = Host(_session(session_id, plan, is_resumed=bool(transcript)), plan, port, making)
    return await _started(host, transcript, state)


async def open_child(parent: Host, record: Record, plan: Mapping[str, Any]) -> Host:
    """A child session as its record says it was. Raises Refused."""
    session = _session(record.session_id, plan, is_resumed=record.turns > 0, parent_id=record.parent_id)
    port = TurnPort(parent.port.services, parent.port.working_dir)
    making = parent.making
    if isinstance(agent := plan.get("agent"), Mapping) and agent.get("namespaces"):  # its file is of another repository
        names = folders_of(agent["namespaces"], port.services.collections)
        making = replace(making, resolver=making.resolver.over(names))
    host = Host(session, plan, port, making, parent.children)
    host.recipes = record.recipes
    routing = parent.capability(capabilities.ROUTING)
    return await _started(host, record.transcript, record.state, self_depth=record.self_depth, routing=routing)


def _session(session_id: str, plan: Mapping[str, Any], *, is_resumed: bool, parent_id: str | None = None) -> Any:
    # A copy: hooks write into a session's configuration, and a plan is pinned.
    config = copy.deepcopy({section: plan[section] for section in _SECTIONS if section in plan})
    return AmplifierSession(
        config,
        session_id=session_id,
        parent_id=parent_id,
        display_system=capabilities.LoggedDisplay(),
        is_resumed=is_resumed,
    )


async def _started(host: Host, transcript: Messages, state: Mapping[str, Any], **start: Any) -> Host:
    try:
        await host.start(**start)
        if transcript:
            await host.set_messages(transcript)
        host.set_state(state)
    except BaseException as error:
        await host.close()
        if isinstance(error, Exception) and not isinstance(error, Refused):
            raise BadRequest("module_failed", f"{type(error).__name__}: {error}"[:2000]) from error
        raise
    return host

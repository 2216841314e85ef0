"""Sessions of amplifier-core with the least of modules, to state what core itself does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amplifier_core import AmplifierSession, ModuleLoader


class ScriptedLoop:
    """An orchestrator that does what `behaviour` does."""

    def __init__(self, behaviour: Callable[..., Any]) -> None:
        self.behaviour = behaviour

    async def execute(
        self, prompt: str, context: Any, providers: Any, tools: Any, hooks: Any, coordinator: Any = None, **_: Any
    ) -> str:
        return await self.behaviour(prompt, context, coordinator)


class ListContext:
    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    async def add_message(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    async def get_messages(self) -> list[dict[str, Any]]:
        return list(self.messages)

    async def set_messages(self, messages: list[dict[str, Any]]) -> None:
        self.messages = list(messages)


class TableLoader(ModuleLoader):
    """Modules by id, each what is to be mounted; an exception is raised by its mount."""

    def __init__(self, modules: dict[str, Any]) -> None:
        super().__init__()
        self.modules = modules

    async def load(self, module_id: str, config: Any = None, source_hint: Any = None, coordinator: Any = None) -> Any:
        async def mount(coordinator: Any) -> None:
            module = self.modules[module_id]
            if isinstance(module, Exception):
                raise module
            point = {"loop": "orchestrator", "context": "context", "tool": "tools", "provider": "providers"}[
                module_id.split("-", maxsplit=1)[0]
            ]
            await coordinator.mount(point, module, name=module_id if point.endswith("s") else None)

        return mount


async def answer(prompt: str, context: Any, coordinator: Any) -> str:
    await context.add_message({"role": "user", "content": prompt})
    await context.add_message({"role": "assistant", "content": "ok"})
    return "ok"


async def core_session(
    behaviour: Callable[..., Any] = answer, *, tools: dict[str, Any] | None = None, **more: Any
) -> Any:
    """An initialized session of core's own, without our host."""
    session = bare_session(tools=tools, **more)
    session.coordinator.loader = TableLoader(
        {"loop-x": ScriptedLoop(behaviour), "context-x": ListContext(), **(tools or {})}
    )
    await session.initialize()
    return session


def bare_session(*, tools: dict[str, Any] | None = None, **more: Any) -> Any:
    config = {
        "session": {"orchestrator": {"module": "loop-x"}, "context": {"module": "context-x"}},
        "providers": [],
        "tools": [{"module": module_id} for module_id in tools or {}],
        "hooks": [],
    }
    return AmplifierSession(config, session_id="s", **more)

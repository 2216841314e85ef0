"""How a session finds its modules: the runtime's own by table, those from outside in the folders that its plan names;
never by what else is installed.

Given to core as `coordinator.loader`, which core's own search would cost 10 ms a module, mount resolved modules twice
and lose the reasons of failures. Invariant: modules from outside are only ever loaded in a process that is one
session's own, because what is imported is the whole process's.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amplifier_core import ModuleLoader

from amplifier_api_server.runtime.modules import IN_TREE, in_tree

Mount = Callable[[Any], Awaitable[Any]]

ENTRY_POINTS = "amplifier.modules"


class ModuleMissingError(Exception):
    """No such module here, or it has no `mount`."""


class RuntimeModuleLoader(ModuleLoader):  # type: ignore[misc]
    """Loads for one session. `folders` are its modules from outside: id -> the folder to import it from; `sources`:
    where what configurations name by its address was put.
    """

    def __init__(self, folders: Mapping[str, Path], sources: Mapping[str, Path] | None = None) -> None:
        super().__init__()
        self._folders = folders
        self._sources = sources or {}

    async def load(
        self,
        module_id: str,
        config: dict[str, Any] | None = None,
        source_hint: Any = None,
        coordinator: Any = None,
    ) -> Mount:
        """The module's mount function, its configuration bound. `source_hint` is ignored: what is installed runs."""
        if module_id in self._folders:
            with _in_words():
                module, mount = from_outside(module_id, self._folders[module_id])
            config = self._placed(config)
        elif module_id in IN_TREE:
            module = in_tree(module_id)
            mount = getattr(module, "mount", None)
        else:
            raise ModuleMissingError(
                f"there is no module {module_id!r}, neither bundled nor in this session's collections"
            )
        if not callable(mount):
            raise ModuleMissingError(f"module {module_id!r} has no mount()")

        async def mount_with_config(coordinator: Any) -> Any:
            with _in_words():
                return await mount(coordinator, config or {})

        ready = getattr(module, "on_session_ready", None)
        if inspect.iscoroutinefunction(ready):
            mount_with_config.__on_session_ready__ = (module_id, ready)  # type: ignore[attr-defined]
        return mount_with_config

    def _placed(self, value: Any) -> Any:
        """A configuration with folders in the place of addresses: there is no network to fetch them with."""
        if isinstance(value, str):
            return str(self._sources.get(value, value))
        if isinstance(value, Mapping):
            return {key: self._placed(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._placed(one) for one in value]
        return value


@contextmanager
def _in_words() -> Iterator[None]:
    """An exception that says nothing, such as MemoryError, says what it is: core tells no more than the text."""
    try:
        yield
    except Exception as error:
        if str(error):
            raise
        raise RuntimeError(type(error).__name__) from error


def from_outside(module_id: str, folder: Path) -> tuple[Any, Any]:
    """The module and its mount: by the entry point of a distribution in `folder`, else by its package's name."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # after what was installed: a tree that is no package shadows nothing
    try:
        entry = _entry_point(module_id, folder)
        if entry is None:
            module = importlib.import_module(package_name(module_id))
            return module, getattr(module, "mount", None)
        module = importlib.import_module(entry.module)
        found = entry.load()
        # An entry point may name the module instead of its mount function.
        return module, getattr(found, "mount", found)
    except SystemExit as error:  # asyncio would let it end the process
        raise ModuleMissingError(f"module {module_id!r} tried to exit with {error.code!r} when imported") from None


def _entry_point(module_id: str, folder: Path) -> importlib.metadata.EntryPoint | None:
    for distribution in importlib.metadata.distributions(path=[str(folder)]):
        for entry in distribution.entry_points:
            if entry.group == ENTRY_POINTS and entry.name == module_id:
                return entry
    return None


def package_name(module_id: str) -> str:
    return f"amplifier_module_{module_id.replace('-', '_')}"

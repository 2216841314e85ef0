"""How a session finds its modules: the runtime's own by table, a collection's by its folder; never by what pip
installed.

Given to core as `coordinator.loader`, which core's own search would cost 10 ms a module, mount resolved modules twice
and lose the reasons of failures. Invariant: one module id is one folder for the life of the process (core's modules
are process-global), and no collection takes an id of the runtime's own.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from amplifier_core import ModuleLoader

from amplifier_api_server.runtime.failures import Conflicting
from amplifier_api_server.runtime.merging import MODULE_LISTS
from amplifier_api_server.runtime.modules import IN_TREE, in_tree

Mount = Callable[[Any], Awaitable[Any]]

_folders: dict[str, Path] = {}  # of every collection's module that this process has loaded or is about to


class ModuleMissingError(Exception):
    """No such module here, or it has no `mount`."""


class RuntimeModuleLoader(ModuleLoader):  # type: ignore[misc]
    """Loads for one session. `folders` are its collections' modules: id -> the folder that holds the package."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        super().__init__()
        self._folders = folders

    async def load(
        self,
        module_id: str,
        config: dict[str, Any] | None = None,
        source_hint: Any = None,
        coordinator: Any = None,
    ) -> Mount:
        """The module's mount function, its configuration bound. `source_hint` is ignored: what is installed runs."""
        module = in_tree(module_id) if module_id in IN_TREE else self._from_collection(module_id)
        mount = getattr(module, "mount", None)
        if mount is None:
            raise ModuleMissingError(f"module {module_id!r} has no mount()")

        async def mount_with_config(coordinator: Any) -> Any:
            return await mount(coordinator, config or {})

        ready = getattr(module, "on_session_ready", None)
        if inspect.iscoroutinefunction(ready):
            mount_with_config.__on_session_ready__ = (module_id, ready)  # type: ignore[attr-defined]
        return mount_with_config

    def _from_collection(self, module_id: str) -> Any:
        folder = self._folders.get(module_id)
        if folder is None:
            raise ModuleMissingError(
                f"there is no module {module_id!r}, neither bundled nor in this session's collections"
            )
        claim_folder(module_id, folder)
        try:
            return importlib.import_module(package_name(module_id))
        except SystemExit as error:  # asyncio would let it end the process, and with it the tenant's other sessions
            raise ModuleMissingError(f"module {module_id!r} tried to exit with {error.code!r} when imported") from None


def claim_folders(plan: Mapping[str, Any], folders: Mapping[str, Path]) -> None:
    """`claim_folder` for every module of a plan that a collection has."""
    items = [*plan["session"].values(), *(item for section in MODULE_LISTS for item in plan[section])]
    for module_id in {item["module"] for item in items} & folders.keys():
        claim_folder(module_id, folders[module_id])


def claim_folder(module_id: str, folder: Path) -> None:
    """Make `module_id` mean `folder` in this process. Raises Conflicting when it already means another."""
    held = _folders.setdefault(module_id, folder)
    if held != folder:
        raise Conflicting(
            "module_conflict",
            f"module {module_id!r} is loaded from another collection in this runtime; it needs a runtime of its own",
        )
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that no collection shadows the standard library


def package_name(module_id: str) -> str:
    return f"amplifier_module_{module_id.replace('-', '_')}"

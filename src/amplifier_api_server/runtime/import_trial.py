"""Whether an image's modules can be imported, tried before any session has them.

Owns the trial: children that import one module after the other (`import_check`), each import with a limit of time; where
one never comes back, or takes its process with it, the rest goes on in another. Refuses to import anything here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from amplifier_api_server.runtime.failures import BadRequest
from amplifier_api_server.runtime.module_loader import package_name
from amplifier_api_server.runtime.protocol import MAX_SOURCES, OutsideModule

_IMPORT_SECONDS = 20.0  # of one module: the heaviest vendor's SDK takes half a second
_MAX_LOG_BYTES = 4 * 1024 * 1024
_PACKAGE_PREFIX = "amplifier_module_"
_PROGRAM = ("-m", "amplifier_api_server.runtime.import_check")
# As in a session's process, where SDKs that are made when they are imported find the gateway.
_ENVIRONMENT = {
    "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
    "OPENAI_API_KEY": "none",
    "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
    "ANTHROPIC_API_KEY": "none",
}

Run = Callable[[Sequence[str], Mapping[str, str], Path], Awaitable[tuple[int, str]]]  # command, environment, log


async def unusable(
    modules: Sequence[OutsideModule], installed: Path, packages: Path, log: Path, run: Run
) -> dict[str, str]:
    """Why, by id, of each module that can't be imported; and of packages of modules that nobody named, by their names."""
    named = {one.id: f"{one.id}={_folder(one, installed, packages)}" for one in modules}
    others = await asyncio.to_thread(_packages, packages)
    left = named | {name: name for name in others if name not in {package_name(one) for one in named}}
    environment = {**_ENVIRONMENT, "PYTHONPATH": str(packages)}
    found: dict[str, str] = {}
    while left and len(found) < MAX_SOURCES:
        child = asyncio.ensure_future(run([*_PROGRAM, *left.values()], environment, log))
        try:
            is_late = await _is_late(child, log)
        finally:
            child.cancel()
            await asyncio.wait({child})
        begun, ended = await asyncio.to_thread(_read, log)
        culprit = next((name for name in left if name in begun and name not in ended), None)
        if culprit is not None:
            ended[culprit] = f"it took longer than {_IMPORT_SECONDS:.0f} s" if is_late else "it ended its process"
        elif not ended.keys() & left.keys():
            raise BadRequest("build_failed", "whether the modules can be imported could not be tried")
        found |= {name: why for name, why in ended.items() if why and name in left}
        left = {name: what for name, what in left.items() if name not in ended}
    return found


def _packages(folder: Path) -> list[str]:
    there = folder.glob(_PACKAGE_PREFIX + "*")
    return sorted(one.name for one in there if (one / "__init__.py").is_file())


def _folder(one: OutsideModule, installed: Path, packages: Path) -> Path:
    """Where it is imported from. Raises BadRequest for what leads elsewhere."""
    if one.tree is None:
        return packages
    tree = installed / one.tree
    folder = (tree / one.subdirectory).resolve()
    if not folder.is_relative_to(tree.resolve()) or not folder.is_dir():
        raise BadRequest("build_failed", f"{one.uri} has no folder {one.subdirectory!r:.200}")
    return folder


async def _is_late(child: asyncio.Future[tuple[int, str]], log: Path) -> bool:
    """Wait for the child's end, or until one import takes too long; whether it was that."""
    seen, since = -1, time.monotonic()
    while not child.done():
        await asyncio.wait({child}, timeout=0.5)
        size = await asyncio.to_thread(_size, log)
        if size != seen:
            seen, since = size, time.monotonic()
        elif time.monotonic() - since > _IMPORT_SECONDS:
            return True
    return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read(log: Path) -> tuple[set[str], dict[str, str]]:
    """Which imports began, and how those that ended did: "" or why not. What modules write themselves is in there too, and
    harms no more than what is said of them.
    """
    begun: set[str] = set()
    ended: dict[str, str] = {}
    with log.open("rb") as file:
        text = file.read(_MAX_LOG_BYTES).decode("utf-8", "replace")
    for line in text.splitlines():
        mark, _, rest = line.partition(" ")
        name, _, why = rest.partition(" ")
        if mark == "?":
            begun.add(name)
        elif mark in ("+", "-"):
            ended[name] = "" if mark == "+" else why[:400] or "it failed"
    return begun, ended

"""What is different inside a session's own process: what its modules may import, and what they find in the environment.

Invariants: what the runtime itself is made of is imported before anything of an image can be, so that no image takes
its place; the standard library comes first, then the images' packages, then the server's own: a module gets the versions
that were installed for it (docs/decisions/0016-own-process-imports.md).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from amplifier_api_server.runtime.modules import IN_TREE, in_tree

MAIN_PID = "AMPLIFIER_MAIN_PID"  # of the runtime's main process: it alone is answered
_OURS = ("amplifier_core", "pydantic", "pydantic_core", "httptools", "typing_extensions", "typing_inspection", "yaml")
_SITE_FOLDERS = ("site-packages", "dist-packages")


def main_pid(environment: Mapping[str, str]) -> int | None:
    """The main process's number in a session's own process; None in the main process."""
    return int(environment[MAIN_PID]) if environment.get(MAIN_PID) else None


def import_ours(module_ids: Sequence[str]) -> None:
    """What the runtime needs from outside of its own package, and those of its own modules that the session uses."""
    for name in _OURS:
        importlib.import_module(name)
    for module_id in module_ids:
        if module_id in IN_TREE:
            in_tree(module_id)


def add_packages(trees: Sequence[Path]) -> None:
    """Let modules import from these trees: before the server's own packages, after the standard library."""
    new = [str(tree) for tree in trees if str(tree) not in sys.path]
    at = next((at for at, path in enumerate(sys.path) if Path(path).name in _SITE_FOLDERS), len(sys.path))
    sys.path[at:at] = new
    importlib.invalidate_caches()


def point_at_gateway(environment: Mapping[str, str]) -> None:
    """Before any module is imported: vendors' SDKs read these once."""
    os.environ.update(environment)

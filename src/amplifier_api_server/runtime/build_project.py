"""A program: have one project's own build backend make a wheel of it (PEP 517 and 518). A process of its own for each.

Usage: python -m amplifier_api_server.runtime.build_project PROJECT INTO. Exits 0 with a wheel in INTO; else its output says
what went wrong. The backend and what it needs come from PYTHONPATH. Runs strangers' code: that is its purpose, so nothing
that matters is in this process.
"""

from __future__ import annotations

import codecs
import importlib
import importlib.metadata
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_DEFAULT = "setuptools.build_meta:__legacy__"  # PEP 517: for a project that names none


def build_system(project: Path) -> tuple[list[str], str, list[str]]:
    """What building needs, the backend, and the folders that it is in, when that is in the project. Raises ValueError."""
    try:
        text = (project / "pyproject.toml").read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ["setuptools>=40.8"], _DEFAULT, []
    table = tomllib.loads(text).get("build-system", {"requires": ["setuptools>=40.8"]})
    requires, paths = table.get("requires", []), table.get("backend-path", [])
    if not isinstance(requires, list) or not isinstance(paths, list):
        raise ValueError("build-system: requires and backend-path should be lists")  # noqa: TRY004 - a file's content
    return [str(one) for one in requires], str(table.get("build-backend", _DEFAULT)), [str(one) for one in paths]


def _take_mark_away(file: Path) -> None:
    """Windows' editors begin a file with a byte order mark, which backends' TOML does not know."""
    if file.is_file() and (content := file.read_bytes()).startswith(codecs.BOM_UTF8):
        file.write_bytes(content.removeprefix(codecs.BOM_UTF8))


def missing(requirements: Sequence[str]) -> list[str]:
    """Those that nothing here meets."""
    from packaging.requirements import Requirement

    found = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found.append(text)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{text} (there is {version})")
    return found


def main(arguments: Sequence[str]) -> int:
    project, into = Path(arguments[0]).resolve(), arguments[1]
    os.chdir(project)
    _take_mark_away(project / "pyproject.toml")
    _, name, paths = build_system(project)
    for path in reversed(paths):
        inside = (project / path).resolve()
        if not inside.is_relative_to(project):
            sys.stderr.write(f"backend-path: {path} leads out of the project\n")
            return 1
        sys.path.insert(0, str(inside))
    module, _, attribute = name.partition(":")
    backend: Any = importlib.import_module(module)
    for part in attribute.split(".") if attribute else ():
        backend = getattr(backend, part)
    ask = getattr(backend, "get_requires_for_build_wheel", None)
    lacking = missing(ask()) if ask is not None else []
    if lacking:
        sys.stderr.write(
            f"to be built it needs {', '.join(lacking)} as well; name it in pyproject.toml, build-system.requires\n"
        )
        return 1
    backend.build_wheel(into)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

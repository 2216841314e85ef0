"""What a runtime imports itself: it is there in every sandbox, in one version, and no collection brings another.

Owns the list, and stand-ins for it when wheels are resolved: wheels of metadata alone, so that what a collection needs is
resolved against the very versions that it will find, and none of them is downloaded.
"""

from __future__ import annotations

import importlib.metadata
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import sys_tags
from packaging.utils import canonicalize_name

_ROOTS = ("amplifier-core", "pydantic", "pyyaml", "httptools", "uvloop")
_BUILD_NUMBER = "99999"  # of two wheels of one version the higher one is taken


@cache
def runtime_pins() -> Mapping[str, str]:
    """Normalised name -> version, of all that a runtime imports and what that needs in turn."""
    found: dict[str, str] = {}
    waiting = list(_ROOTS)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        waiting += [one.name for one in map(_requirement, distribution.requires or ()) if one is not None]
    return found


def _requirement(text: str) -> Requirement | None:
    try:
        found = Requirement(text)
    except InvalidRequirement:
        return None
    return found if found.marker is None or found.marker.evaluate({"extra": ""}) else None


def write_stand_ins(folder: Path) -> None:
    """One wheel for each, with its metadata and no code."""
    tag = next(iter(sys_tags()))  # the most specific: preferred to the real one
    for name, version in runtime_pins().items():
        metadata = importlib.metadata.distribution(name).read_text("METADATA") or ""
        # A dash would end the name in a file's name (PEP 427).
        stem = f"{name.replace('-', '_')}-{version}"
        with zipfile.ZipFile(folder / f"{stem}-{_BUILD_NUMBER}-{tag}.whl", "w") as wheel:
            wheel.writestr(f"{stem}.dist-info/METADATA", metadata)
            wheel.writestr(
                f"{stem}.dist-info/WHEEL",
                f"Wheel-Version: 1.0\nGenerator: amplifier-api-server\nRoot-Is-Purelib: false\nTag: {tag}\n",
            )
            wheel.writestr(f"{stem}.dist-info/RECORD", "")

"""Wheels and projects made by hand: no index is asked."""

from __future__ import annotations

import zipfile
from pathlib import Path

# A build backend in a dozen lines: what is in `package/` becomes a wheel with the metadata in `METADATA`.
BACKEND = """
import os, pathlib, zipfile
def build_wheel(into, config_settings=None, metadata_directory=None):
    here = pathlib.Path(".")
    metadata = (here / "METADATA").read_text().replace("@VERSION@", os.environ["SETUPTOOLS_SCM_PRETEND_VERSION"])
    fields = dict(line.split(": ", 1) for line in metadata.splitlines() if ": " in line)
    stem = fields["Name"].replace("-", "_") + "-" + fields["Version"]
    name = stem + "-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(into, name), "w") as made:
        for path in sorted((here / "package").rglob("*")):
            if path.is_file():
                made.writestr(path.relative_to(here / "package").as_posix(), path.read_bytes())
        made.writestr(stem + ".dist-info/METADATA", metadata)
    return name
"""


def wheel(
    folder: Path,
    name: str,
    files: dict[str, str] | None = None,
    *,
    version: str = "1.0",
    requires: tuple[str, ...] = (),
    tag: str = "py3-none-any",
) -> Path:
    """A wheel of these files."""
    stem = f"{name.replace('-', '_')}-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as made:
        for inside, text in (files or {f"{name.replace('-', '_')}.py": ""}).items():
            made.writestr(inside, text)
        made.writestr(f"{stem}.dist-info/METADATA", metadata(name, version, requires))
        made.writestr(f"{stem}.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        made.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def metadata(name: str, version: str, requires: tuple[str, ...]) -> str:
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {one}\n" for one in requires
    )


def project(
    folder: Path,
    name: str,
    package: dict[str, str],
    *,
    version: str = "1.0",
    requires: tuple[str, ...] = (),
    build_requires: tuple[str, ...] = ("toy-backend",),
    backend: str = "toy_backend",
) -> Path:
    """A source tree that the toy backend builds."""
    for inside, text in package.items():
        (folder / "package" / inside).parent.mkdir(parents=True, exist_ok=True)
        (folder / "package" / inside).write_text(text)
    (folder / "METADATA").write_text(metadata(name, version, requires))
    listed = ", ".join(f'"{one}"' for one in build_requires)
    (folder / "pyproject.toml").write_text(
        f'[build-system]\nrequires = [{listed}]\nbuild-backend = "{backend}"\n[project]\nname = "{name}"\n'
    )
    return folder

"""Collections with a module from outside, built by hand: a tool that runs any Python in its session's own process."""

from __future__ import annotations

from amplifier_api_server.runtime.protocol import Image
from tests.runtime.bundle_trees import SESSION, Trees, bundle

ODD = "git+https://git.example/birds/tool-odd@main"
TOOL = """
import asyncio, json, os, sys
from amplifier_core import ToolResult
VERSION = {version!r}

async def mount(coordinator, config=None):
    await coordinator.mount("tools", Odd(coordinator), name="odd")

class Odd:
    name = "odd"
    description = "Runs Python, where it is."
    input_schema = {{"type": "object", "properties": {{"code": {{"type": "string"}}}}}}

    def __init__(self, coordinator):
        self.coordinator = coordinator

    async def execute(self, input):
        scope = {{"os": os, "sys": sys, "found": {{}}, "VERSION": VERSION, "coordinator": self.coordinator}}
        exec(compile(input["code"], "odd", "exec"), scope)
        if "main" in scope:
            await scope["main"]()
        return ToolResult(success=True, output=json.dumps(scope["found"]))
"""


def distribution(name: str, version: str, entry_points: str = "") -> dict[str, str]:
    """The metadata of an installed distribution."""
    folder = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
    return files | ({f"{folder}/entry_points.txt": entry_points} if entry_points else {})


def odd_packages(version: str = "1", before: str = "") -> dict[str, str]:
    """What a build of the tool gives. Its package has another name than its id: only its entry point says it."""
    entry = "[amplifier.modules]\ntool-odd = odd_tool:mount\n"
    source = before + TOOL.format(version=version)
    return {"odd_tool/__init__.py": source, **distribution("odd-tool", version, entry)}


def odd_image(trees: Trees, packages: dict[str, str] | None = None, name: str = "watch") -> Image:
    """A collection whose profile `NAME:NAME` has the tool."""
    rest = f"{SESSION}tools:\n- {{module: tool-odd, source: '{ODD}'}}\n- {{module: tool-bash}}\n"
    project = '[project]\nname = "odd-tool"\nversion = "1"\n[build-system]\nrequires = ["hatchling"]\n'
    packages = odd_packages() if packages is None else packages
    return trees.image(
        {"bundle.md": bundle(name, rest)},
        {ODD: {"pyproject.toml": project, "odd_tool/__init__.py": ""}},
        name=name,
        packages=trees.tree(packages),
    )

"""Collections as people publish them: repositories on a git server, with modules, and wheels on an index beside it.

What is here is built by the toy backend of `tests/runtime/wheel_files.py`, so that nothing is asked of the world.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import yaml

from tests.git_server import GitServer
from tests.runtime.wheel_files import BACKEND, metadata, wheel
from tests.system.server import Answer, Caller, eventually

_BUNDLE = """---
bundle:
  name: {name}
  version: {version}
  description: Greets
session:
  orchestrator:
    module: loop-streaming
  context:
    module: context-simple
tools:
  - module: tool-{tool}
    source: {source}
---
You greet whoever asks.
"""
_TOOL = """
from amplifier_core import ToolResult
import greetings


async def mount(coordinator, config=None):
    await coordinator.mount("tools", Tool(), name="{name}")


class Tool:
    name = "{name}"
    description = "Says hello."
    input_schema = {{"type": "object", "properties": {{}}}}

    async def execute(self, input):
        return ToolResult(success=True, output=greetings.WORD + " {version}")
"""


class Forge:
    """A git server and its index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git = GitServer(folder / "git")
        self.repositories: dict[str, Any] = {}

    def publish_wheel(self, name: str, files: dict[str, str], **more: Any) -> None:
        path = wheel(self.folder / "wheels", name, files, **more)
        self.git.files[f"/wheels/{path.name}"] = ("application/octet-stream", path.read_bytes())
        page = f'<!DOCTYPE html><html><body><a href="/wheels/{path.name}">{path.name}</a></body></html>'
        self.git.files[f"/simple/{name}/"] = ("text/html", page.encode())

    def push(self, name: str, files: dict[str, str]) -> str:
        """The new commit of a repository's main branch."""
        if name not in self.repositories:
            self.repositories[name] = self.git.repository(name)
        return str(self.repositories[name].commit(files))

    def push_tool(self, name: str, *, version: str = "1", code: str | None = None, **more: Any) -> str:
        """A repository of one module; the address that bundles name it by."""
        package = f"amplifier_module_tool_{name}"
        project = more.get("backend", "toy_backend"), more.get("build_requires", ["toy-backend"])
        self.push(
            f"acme/tool-{name}",
            {
                f"package/{package}/__init__.py": code or _TOOL.format(name=name, version=version),
                "METADATA": metadata(
                    f"amplifier-module-tool-{name}", version, tuple(more.get("requires", ["greetings>=1"]))
                ),
                "pyproject.toml": _pyproject(f"amplifier-module-tool-{name}", version, *project, more),
                **more.get("files", {}),
            },
        )
        return self.git.uri(f"acme/tool-{name}")

    def push_kit(self, name: str = "kit", tool: str = "greet", *, version: str = "1") -> str:
        """A repository with a bundle that uses a tool of another; its address."""
        source = self.git.uri(f"acme/tool-{tool}")
        self.push(f"acme/{name}", {"bundle.md": _BUNDLE.format(name=name, version=version, tool=tool, source=source)})
        return self.git.uri(f"acme/{name}")

    def configuration(self, path: Path, **collections: Any) -> dict[str, str]:
        """The environment of a server that installs from here."""
        section = self.git.configuration(**{"wheel_index": self.git.url("simple/"), "wait": "20s"} | collections)
        path.write_text(yaml.safe_dump({"collections": json.loads(json.dumps(section))}))
        return {"AMPLIFIER_CONFIG": str(path)}


def _pyproject(name: str, version: str, backend: str, requires: list[str], more: dict[str, Any]) -> str:
    return textwrap.dedent(f"""\
        [build-system]
        requires = {json.dumps(requires)}
        build-backend = "{backend}"
        [project]
        name = "{name}"
        version = "{version}"
        dependencies = {json.dumps(more.get("requires", ["greetings>=1"]))}
        """)


def stocked(folder: Path) -> Forge:
    """With a kit, its tool, what that needs, and the backend that builds it."""
    forge = Forge(folder)
    forge.publish_wheel("toy-backend", {"toy_backend.py": BACKEND})
    forge.publish_wheel("greetings", {"greetings.py": "WORD = 'hello'\n"})
    forge.push_tool("greet")
    forge.push_kit()
    return forge


def install(caller: Caller, source: str, **more: Any) -> Answer:
    return caller.call("POST", "/v1/collections", {"source": source, **more})


def ended(caller: Caller, answer: Answer, seconds: float = 60) -> Any:
    """How the job of a 202 ended."""
    assert answer.status == 202, (answer.status, answer.body)
    path = answer.headers["location"]
    found = eventually(lambda: (job := caller.get(path))["status"] != "running" and job, seconds)
    assert found, caller.get(path)
    return found

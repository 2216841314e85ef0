"""Pinned trees for tests of bundles: repositories made anew, laid out as the control plane does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amplifier_api_server.runtime.bundles.compiling import Compiled, Defaults, compile_profile
from amplifier_api_server.runtime.bundles.library import Library
from amplifier_api_server.runtime.protocol import Image, Source

HOME = "git+https://git.example/birds/watch@main"
SESSION = "session: {orchestrator: {module: loop-basic}, context: {module: context-simple}}\n"


def bundle(name: str = "watch", rest: str = SESSION, body: str = "") -> str:
    return f"---\nbundle: {{name: {name}, version: 1.2.0}}\n{rest}---\n{body}"


def module_files(
    module_id: str, folder: str = "", source: str = "async def mount(c, config=None): ...\n"
) -> dict[str, str]:
    """A package with its project, which says how it is built."""
    package = f"amplifier_module_{module_id.replace('-', '_')}"
    project = f'[project]\nname = "{module_id}-project"\nversion = "1"\n[build-system]\nrequires = ["hatchling"]\n'
    return {f"{folder}pyproject.toml": project, f"{folder}{package}/__init__.py": source}


@dataclass
class Trees:
    """`folder` is what COLLECTIONS is in a sandbox."""

    folder: Path
    images: list[Image] = field(default_factory=list)
    documents: dict[str, str] = field(default_factory=dict)

    def tree(self, files: dict[str, str]) -> str:
        content_hash = f"tree{len(list(self.folder.iterdir())) if self.folder.exists() else 0}"
        self.write(content_hash, files)
        return content_hash

    def write(self, content_hash: str, files: dict[str, str]) -> Path:
        root = self.folder / content_hash
        root.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        return root

    def image(
        self, files: dict[str, str], sources: dict[str, dict[str, str]] | None = None, name: str = "watch", **more: Any
    ) -> Image:
        """An installed collection; `sources` are its other repositories, by their keys."""
        uri = more.pop("uri", HOME)
        image = Image(
            name=name,
            root=Source(uri=uri, tree=self.tree(files)),
            sources=[Source(uri=key, tree=self.tree(of)) for key, of in (sources or {}).items()],
            **more,
        )
        self.images.append(image)
        return image

    def library(self) -> Library:
        return Library(self.folder, self.images, self.documents)

    def compiled(self, name: str = "watch:watch", **context: Any) -> Compiled:
        return compile_profile(self.library(), name, context, Defaults("some-model", "provider-openai"))

    def plan(self, name: str = "watch:watch") -> dict[str, Any]:
        return self.compiled(name).plan

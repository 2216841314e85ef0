"""A control plane whose sandboxes say what a test wants them to about the collections that they are given.

`Bench` installs by zips and by mirrored addresses; `answers` of its fleet are the sandboxes' words.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.hostile_runtime import Attacked, Behaviour, Request, attacked

ZIP = {"content-type": "application/zip"}
HOST = "https://code.example.com/"


def zipped(**files: str) -> bytes:
    """An archive of these files; names may hold `/` as `__`."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return made.getvalue()


def manifest(name: str = "kit", *profiles: str) -> dict[str, Any]:
    return {"name": name, "version": "1", "profiles": [{"name": f"{name}:{one}"} for one in profiles or ("p",)]}


def inspection(name: str = "kit", *profiles: str, **more: Any) -> dict[str, Any]:
    return {"manifest": manifest(name, *profiles), **more}


def says(body: Any, status: int = 200) -> Behaviour:
    async def answer(request: Request) -> None:
        await request.reply(status, body)

    return answer


def asks(say: Callable[[dict[str, Any]], dict[str, Any]]) -> Behaviour:
    """An inspection that depends on what the image has."""

    async def answer(request: Request) -> None:
        await request.reply(200, say(request.body["image"]))

    return answer


async def hang(request: Request) -> None:
    await request.hang()


async def die(request: Request) -> None:
    request.writer.transport.abort()


def has(image: dict[str, Any], uri: str) -> bool:
    return any(one["uri"] == uri for one in image["sources"])


@dataclass
class Bench:
    plane: Attacked
    mirror: Path

    @property
    def trees(self) -> list[str]:
        folder = self.plane.app.services.settings.server.data_dir / "collections"
        return sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []

    def inspects(self, behaviour: Behaviour) -> None:
        self.plane.fleet.answers["POST", "inspect"] = behaviour

    def publish(self, name: str, **files: str) -> str:
        """An archive at an address of HOST."""
        (self.mirror / f"{name}.zip").write_bytes(zipped(**(files or {"README.md": name})))
        return f"{HOST}{name}.zip"

    async def call(self, method: str, path: str, *, key: str | None = None, **more: Any) -> httpx2.Response:
        async with self.plane.client(key) as client:
            return await client.request(method, path, **more)

    async def upload(self, text: str = "x", *, key: str | None = None, query: str = "") -> httpx2.Response:
        return await self.call("POST", "/v1/collections" + query, content=zipped(file=text), headers=ZIP, key=key)

    async def install(self, source: str, *, key: str | None = None, **more: Any) -> httpx2.Response:
        return await self.call("POST", "/v1/collections", json={"source": source, **more}, key=key)

    async def jobs(self, key: str | None = None) -> list[dict[str, Any]]:
        answer = await self.call("GET", "/v1/collections/installations", key=key)
        assert answer.status_code == 200, answer.text
        return answer.json()["installations"]

    async def ended(self, answer: httpx2.Response, key: str | None = None) -> dict[str, Any]:
        """How the job of a 202 ended."""
        assert answer.status_code == 202, answer.text
        async with asyncio.timeout(60):
            while (found := (await self.call("GET", answer.headers["location"], key=key)).json())[
                "status"
            ] == "running":
                await asyncio.sleep(0.01)
        return found

    async def tenant(self, **limits: Any) -> str:
        """The key of another tenant's admin."""
        body = {"name": "another", "tier": "enterprise", "limits": limits}
        answer = await self.call("POST", "/v1/tenants", json=body, key=self.plane.operator_key)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["admin_key"])

    def asked(self) -> list[str]:
        """What all sandboxes were asked, without pings."""
        return [one for runtime in self.plane.fleet.runtimes.values() for one in runtime.seen if "health" not in one]


@contextlib.asynccontextmanager
async def bench(folder: Path, *, sandbox: dict[str, Any] | None = None, **collections: Any) -> AsyncIterator[Bench]:
    """A started one. `collections` are settings of that section."""
    mirror = folder / "mirror"
    mirror.mkdir()
    settings = {"mirrors": {HOST: mirror.as_uri() + "/"}, **collections}
    async with attacked(folder, collections=settings, sandbox=sandbox or {}) as plane:
        made = Bench(plane, mirror)
        made.inspects(says(inspection()))
        yield made

"""What `serve` tells whoever started it: where it listens, and how to use it. On standard error: standard output has the log.

Invariant: keys are told by the start that made them, once; afterwards to a terminal alone, because what is written anywhere
else is kept by whoever collects it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from amplifier_api_server.control_plane.accounts.bootstrap import FILE_NAME, FirstKeys
from amplifier_api_server.control_plane.settings import Settings


@dataclass(frozen=True, slots=True)
class Announcement:
    """`keys` are those that may be told; without a text for one that may not, or works no more."""

    settings: Settings
    keys: FirstKeys | None
    is_demo: bool

    def tell(self, port: int) -> None:
        sys.stderr.write("\n".join(self.lines(port)) + "\n")
        sys.stderr.flush()

    def lines(self, port: int) -> list[str]:
        host = self.settings.server.host
        address = f"http://{'127.0.0.1' if host in {'0.0.0.0', '::', ''} else host}:{port}"  # noqa: S104 - compared, not bound
        lines = ["", f"Amplifier API server at {address} (documentation: {address}/docs)"]
        if self.keys is not None and self.keys.tenant_key:
            lines.append(f"API key: {self.keys.tenant_key}")
        if self.keys is not None and self.keys.operator_key:
            lines.append(f"Operator key: {self.keys.operator_key}")
        lines += self._where_keys_are()
        if self.is_demo:
            lines.append(
                "Models: the built-in demo, which is no model; set OPENAI_API_KEY or OPENAI_BASE_URL for a real one"
            )
        if self.settings.sandbox.mode == "none":
            lines.append(
                "WARNING: --unsafe-no-sandbox: what runs in sessions can read and change everything that you can"
            )
        key = self.keys.tenant_key if self.keys is not None else ""
        return [*lines, *_example(address, key or "$KEY"), ""]

    def _where_keys_are(self) -> list[str]:
        path = self._path()
        if path.is_file():
            return [f"The first keys are in {path}, for you alone to read"]
        return ["Keys are made by `amplifier-api-server keys create`: see its --help"] if self.keys is None else []

    def _path(self) -> Path:
        return self.settings.server.data_dir.absolute() / FILE_NAME


def _example(address: str, key: str) -> list[str]:
    quote = '"' if key.startswith("$") else "'"
    return [
        "Try:",
        f"  curl -s {address}/v1/tools/bash/execute -H {quote}X-API-Key: {key}{quote} \\",
        """    -H 'Content-Type: application/json' -d '{"input": {"command": "echo hello from a sandbox"}}'""",
    ]

"""A collection whose tool runs any Python in the runtime's own process, and how to attack by it and by the shell.

An attack is source that leaves what it learned in `found`; it is run as it is by both.
"""

import io
import json
import textwrap
import zipfile
from dataclasses import dataclass
from typing import Any

from tests.system.server import Caller, eventually

_PROJECT = '[project]\nname = "evil"\nversion = "1.0.0"\n[tool.amplifier.collection]\nauthor = "mallory"\n'
_PROFILE = """---
profile:
  name: agent
  version: 1.0.0
  description: Means harm
  extends: foundation:base
tools:
  - module: tool-evil
---
You mean harm.
"""
_MODULE = '''
import asyncio
import inspect
import json
import os

from amplifier_core import ToolResult

GATEWAY = "/proc/self/fd/" + os.environ.get("AMPLIFIER_GATEWAY_FD", "")  # a build that tries to import it has none


async def mount(coordinator, config=None):
    await coordinator.mount("tools", Evil(coordinator), name="evil")


class Evil:
    name = "evil"
    description = "Runs Python in the runtime itself."
    input_schema = {"type": "object", "properties": {"code": {"type": "string"}}}

    def __init__(self, coordinator):
        self.coordinator = coordinator

    async def execute(self, input):
        scope = {"found": {}, "coordinator": self.coordinator, "gateway": gateway, "GATEWAY": GATEWAY}
        await asyncio.to_thread(exec, compile(input["code"], "evil", "exec"), scope)
        return ToolResult(success=True, output=json.dumps(scope["found"]))


def gateway(method, path, body=b"", headers=()):
    """One request of one's own to the control plane: status and body."""
    import socket
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(GATEWAY)
        lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}", *headers]
        sock.sendall(("\\r\\n".join(lines) + "\\r\\n\\r\\n").encode() + body)
        answer = b""
        while more := sock.recv(65536):
            answer += more
    head, _, text = answer.partition(b"\\r\\n\\r\\n")
    return [int(head.split()[1]), text.decode(errors="replace")]
'''


def archive(files: dict[str, str]) -> bytes:
    """A zip of these files."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as zipped:
        for name, text in files.items():
            zipped.writestr(name, text)
    return made.getvalue()


def evil_archive() -> bytes:
    return archive(
        {
            "pyproject.toml": _PROJECT,
            "profiles/agent.md": _PROFILE,
            "modules/tool-evil/amplifier_module_tool_evil/__init__.py": _MODULE,
        }
    )


def install(caller: Caller, zipped: bytes) -> Any:
    """The collection, also where the machine is too busy to have it at once."""
    answer = caller.call("POST", "/v1/collections", zipped, {"Content-Type": "application/zip"})
    if answer.status == 202:
        job = answer.headers["location"]
        assert eventually(lambda: caller.get(job)["status"] != "running")
        return caller.get("/v1/collections/" + caller.get(job)["collection"])
    assert answer.status == 201, (answer.status, answer.body[:500])
    return answer.json


@dataclass
class Attacker:
    """A session of a tenant that means harm. `way` is module or bash."""

    caller: Caller
    session_id: str
    way: str

    def prompt(self, code: str) -> str:
        code = textwrap.dedent(code)
        if self.way == "module":
            return "use evil " + json.dumps({"code": code})
        whole = f"import json\nfound = {{}}\n{code}\nprint('FOUND' + json.dumps(found))"
        return "use bash " + json.dumps({"command": f"python3 - <<'THE_END'\n{whole}\nTHE_END"})

    def found(self, code: str) -> Any:
        """What the attack learned."""
        answer = self.caller.ask(self.session_id, self.prompt(code))
        (call,) = answer["tool_calls"]
        assert call["status"] == "completed", call
        if self.way == "module":
            return json.loads(call["output"])
        assert "FOUND" in call["output"]["stdout"], call["output"]
        return json.loads(call["output"]["stdout"].partition("FOUND")[2])


def attacker(caller: Caller, way: str) -> Attacker:
    """Of a tenant that has the collection."""
    return Attacker(caller, caller.session("evil:agent"), way)

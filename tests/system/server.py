"""A real server as its users see it: a process, its keys, its HTTP. Nothing of the product is imported here.

`Server` starts, watches and ends the process; `Caller` speaks with one key; `Stream` is an open stream of events.
"""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

# How long is waited for what must come: no measure of how fast it comes, which is the machine's.
PATIENCE_SECONDS = 60
FREE = dict.fromkeys(("requests_per_minute", "tokens_per_day", "concurrent_sessions", "sessions_per_user"), "unlimited")
_BANNER = re.compile(r"server at http://127\.0\.0\.1:(\d+)")
_KEYS = re.compile(r"^API key: (amp_\S+)\s+Operator key: (amp_\S+)", re.MULTILINE)
_COMMAND = "from amplifier_api_server.control_plane.cli import app; app()"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"null")

    @property
    def code(self) -> str:
        """The problem's code; fails for anything that is no problem."""
        assert self.headers.get("content-type", "").startswith("application/problem+json"), (
            self.status,
            self.body[:300],
        )
        assert self.json["status"] == self.status
        return self.json["code"]


@dataclass
class Event:
    id: str
    name: str
    data: Any

    @property
    def number(self) -> int:
        return int(self.id.rpartition(":")[2])

    @property
    def request_id(self) -> str:
        return self.id.rpartition(":")[0]


class Stream:
    """An open stream. Iterate it; `raw` is what came so far; leave it by closing."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.raw = b""
        self.comments: list[str] = []
        self._events = self._parsed()

    def __iter__(self) -> Iterator[Event]:
        return self._events

    def __next__(self) -> Event:
        return next(self._events)

    def take(self, count: int) -> list[Event]:
        return [next(self._events) for _ in range(count)]

    def rest(self) -> list[Event]:
        return list(self._events)

    def cut(self) -> list[Event]:
        """The rest of a stream that is cut off while its execution runs on: no end of that is told."""
        events = self.rest()
        assert not [event for event in events if event.name in ("complete", "error")], events[-1]
        return events

    def _parsed(self) -> Iterator[Event]:
        name, identifier, data = "message", "", []
        while line := self._response.readline():
            self.raw += line
            text = line.decode().rstrip("\r\n")
            if text.startswith(":"):
                self.comments.append(text)
            elif not text:
                if data:
                    yield Event(identifier, name, json.loads("\n".join(data)))
                name, data = "message", []
            else:
                key, _, value = text.partition(": ")
                if key == "event":
                    name = value
                elif key == "id":
                    identifier = value
                elif key == "data":
                    data.append(value)

    def close(self) -> None:
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Caller:
    """One key at one server."""

    port: int
    key: str | None = None
    timeout_seconds: float = PATIENCE_SECONDS
    tenant_id: str = ""

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        connection, response = self._send(method, path, body, headers or {})
        try:
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            response.close()
            connection.close()

    def get(self, path: str) -> Any:
        answer = self.call("GET", path)
        assert answer.status == 200, (path, answer.status, answer.body[:500])
        return answer.json

    def open(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Stream:
        connection, response = self._send(method, path, body, {"Accept": "text/event-stream", **(headers or {})})
        if response.status != 200:
            text = response.read()
            response.close()
            connection.close()
            raise AssertionError(f"{method} {path}: {response.status} {text[:500]!r}")
        return Stream(connection, response)

    def _send(self, method: str, path: str, body: Any, headers: dict[str, str]):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout_seconds)
        headers = {"Connection": "close", **headers}
        if self.key is not None:
            headers.setdefault("X-API-Key", self.key)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body=body, headers=headers)
            return connection, connection.getresponse()
        except BaseException:
            connection.close()
            raise

    # What the tests do all the time.

    def session(self, profile: str = "foundation:base", **context: Any) -> str:
        answer = self.call("POST", "/v1/sessions", {"profile": profile, "context": context})
        assert answer.status == 201, (answer.status, answer.body[:500])
        return answer.json["session_id"]

    def status(self, session_id: str) -> str:
        return self.get(f"/v1/sessions/{session_id}")["status"]

    def execute(self, session_id: str, prompt: str) -> Answer:
        return self.call("POST", f"/v1/sessions/{session_id}/execute", {"prompt": prompt})

    def ask(self, session_id: str, prompt: str) -> Any:
        answer = self.execute(session_id, prompt)
        assert answer.status == 200, (answer.status, answer.body[:800])
        return answer.json

    def stream(self, session_id: str, prompt: str) -> Stream:
        return self.open("POST", f"/v1/sessions/{session_id}/execute", {"prompt": prompt, "stream": True})

    def asked(self, session_id: str, prompt: str) -> list[Event]:
        with self.stream(session_id, prompt) as stream:
            return stream.rest()

    def tool(self, session_id: str, tool: str, **given: Any) -> Any:
        """One call of a tool in a session, by way of the demo model: the `tool_call` that ended it."""
        answer = self.ask(session_id, f"use {tool} {json.dumps(given)}")
        assert len(answer["tool_calls"]) == 1, answer
        return answer["tool_calls"][0]

    def shell(self, session_id: str, command: str) -> str:
        """What a command wrote, both streams, as JSON text."""
        return json.dumps(self.tool(session_id, "bash", command=command))

    def messages(self, session_id: str) -> list[dict[str, Any]]:
        return self.get(f"/v1/sessions/{session_id}/messages?limit=200")["messages"]

    def texts(self, session_id: str) -> str:
        return json.dumps(self.messages(session_id))

    def execution(self, session_id: str, request_id: str) -> Any:
        return self.get(f"/v1/sessions/{session_id}/executions/{request_id}")

    def usage(self, group_by: str = "session") -> Any:
        return self.get(f"/v1/usage?group_by={group_by}&limit=200")

    def limit(self, name: str) -> Any:
        return next(one for one in self.get("/v1/limits")["limits"] if one["name"] == name)


@dataclass
class Server:
    """`amplifier-api-server serve` with a data folder of its own. `environment` are settings."""

    data_dir: Path
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    starts: int = 0
    key: str = ""
    operator_key: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        return self.data_dir.with_name(f"{self.data_dir.name}.{self.starts}.log")

    def start(self) -> "Server":
        self.starts += 1
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "ANTHROPIC_", "AMPLIFIER_"))}
        settings = {
            "AMPLIFIER_SANDBOX__WARM": "1",
            "AMPLIFIER_SANDBOX__MIN_FREE_DISK": "64MiB",
            "AMPLIFIER_SERVER__DRAIN_TIMEOUT": "1s",
            "PORT": "0",
            "DATA_DIR": str(self.data_dir),
            **self.environment,
        }
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, "serve"],
                cwd=self.data_dir.parent,
                env=kept | settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        found = eventually(lambda: self.process.poll() is not None or _BANNER.search(self.log), PATIENCE_SECONDS)
        assert found not in (None, True), f"it did not start:\n{self.log[-4000:]}"
        self.port = int(found[1])
        if keys := _KEYS.search(self.log):  # the first start's alone
            self.key, self.operator_key = keys.groups()
        return self

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def logged(self, level: str) -> list[dict[str, Any]]:
        """The structured lines of a level."""
        return [line for line in self.lines() if line.get("level") == level]

    def lines(self) -> list[dict[str, Any]]:
        lines = []
        for text in self.log.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(text))
        return [line for line in lines if isinstance(line, dict)]

    # Who calls.

    def caller(self, key: str | None = None, **more: Any) -> Caller:
        return Caller(self.port, key or self.key, **more)

    def operator(self) -> Caller:
        return Caller(self.port, self.operator_key)

    def tenant(self, name: str = "another", tier: str = "enterprise", **limits: Any) -> Caller:
        """The admin of a new tenant."""
        answer = self.operator().call("POST", "/v1/tenants", {"name": name, "tier": tier, "limits": limits})
        assert answer.status == 201, (answer.status, answer.body)
        return Caller(self.port, answer.json["admin_key"], tenant_id=answer.json["id"])

    # Its processes.

    def tree(self) -> list[int]:
        """Every process of the server, sandboxes and what runs in them included."""
        parents, sessions = {}, {}
        for pid in _pids():
            if (stat := _stat(pid)) is not None and stat[0] != "Z":
                parents[pid], sessions[pid] = int(stat[1]), int(stat[3])
        found = {pid for pid, session in sessions.items() if session == self.process.pid} & parents.keys()
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found)

    def sandboxed(self) -> list[int]:
        """Those inside of a sandbox: below a bubblewrap. By nothing that only root may read."""
        parents = {pid: int(stat[1]) for pid in self.tree() if (stat := _stat(pid)) is not None}
        outer = {pid for pid in parents if os.path.basename(command(pid).split(" ")[0]) == "bwrap"}
        return [pid for pid in parents if parents[pid] in outer or _has_ancestor(pid, outer, parents)]

    def runtimes(self) -> list[int]:
        """The Python processes that are runtimes, one for each sandbox; warm ones too."""
        return [pid for pid in self.sandboxed() if "amplifier_api_server.runtime'" in command(pid) and _is_python(pid)]

    def runtime_of(self, session_id: str) -> int:
        """The runtime that has a session's folder in its workspace."""
        found = [home for home in (self.data_dir / "runtimes").iterdir() if (home / "workspace" / session_id).is_dir()]
        assert len(found) == 1, (session_id, found)
        known = {pid for pid, _ in json.loads((found[0] / "processes.json").read_text())["processes"]}
        inside = [pid for pid in self.runtimes() if int((_stat(pid) or ["", "0"])[1]) in known]
        assert len(inside) == 1, (session_id, known, inside)
        return inside[0]

    def sandbox_of(self, pid: int) -> list[int]:
        """All processes of the sandbox that this one is in."""
        parents = {one: int(stat[1]) for one in self.sandboxed() if (stat := _stat(one)) is not None}
        top = pid
        while parents.get(top) in parents:
            top = parents[top]
        return [one for one in parents if one == top or _has_ancestor(one, {top}, parents)]

    def left(self) -> list[int]:
        """Processes of its sandboxes wherever they hang now: those that see a folder of its data folder mounted."""
        mark = "/".join(self.data_dir.parts[-4:]) + "/"  # another run of the tests has the same names at its end
        return alive([pid for pid in _pids() if mark in _text(f"/proc/{pid}/mountinfo")])

    def stop(self) -> None:
        """SIGTERM, and wait until all of its processes are gone. Fails when one is left."""
        members = self.tree()
        self.process.send_signal(signal.SIGTERM)
        gone = eventually(lambda: self.process.poll() is not None and not alive(members), PATIENCE_SECONDS)
        left = [(pid, _text(f"/proc/{pid}/cmdline")[:100]) for pid in alive(members)]
        if not gone:
            self.end()
        assert gone, f"left after SIGTERM: {left}\n{self.log[-3000:]}"
        assert self.process.returncode == 0, self.log[-3000:]

    def kill(self) -> list[int]:
        """SIGKILL to the server alone; what ran under it."""
        members = self.tree()
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)
        return members

    def end(self) -> None:
        """Whatever it takes, for a test that failed."""
        if self.process is not None:
            self._kill_all()
        eventually(self._has_no_groups, 5)

    def _has_no_groups(self) -> bool:
        """Removes the control groups of a server that was killed, as its next start would; there is none."""
        try:
            recorded = [Path(one) for one in json.loads((self.data_dir / "control_groups.json").read_text())]
        except (OSError, ValueError):
            return True
        for root in recorded:
            for folder, _, _ in os.walk(root, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
            with contextlib.suppress(OSError):
                (root.parent / "amplifier-server").rmdir()
        return not any(root.exists() for root in recorded)

    def _kill_all(self) -> None:
        members = self.tree()
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)


def eventually(
    check: Callable[[], Any], within_seconds: float = PATIENCE_SECONDS, *, every_seconds: float = 0.02
) -> Any:
    """The first true thing that `check` says; None when it says none in time."""
    until = time.monotonic() + within_seconds
    while True:
        if found := check():
            return found
        if time.monotonic() > until:
            return None
        time.sleep(every_seconds)


def at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    """What each gives, all begun together."""
    barrier = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> Any:
        barrier.wait(PATIENCE_SECONDS)
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [one.result() for one in [pool.submit(run, job) for job in jobs]]


def command(pid: int) -> str:
    return _text(f"/proc/{pid}/cmdline")


def alive(pids: list[int]) -> list[int]:
    """Those that still run."""
    return [pid for pid in pids if (stat := _stat(pid)) is not None and stat[0] != "Z"]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    text = _text(f"/proc/{pid}/stat")
    return text.rpartition(")")[2].split() if text else None


def _text(path: str) -> str:
    try:
        return Path(path).read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _has_ancestor(pid: int, wanted: set[int], parents: dict[int, int]) -> bool:
    while (pid := parents.get(pid, 0)) != 0:
        if pid in wanted:
            return True
    return False


def _is_python(pid: int) -> bool:
    return "python" in os.path.basename(_text(f"/proc/{pid}/cmdline").split(" ")[0])

"""`tool-bash`: a shell command in the session's folder, under a supervisor that lets nothing of it live on.

Invariant: when `execute` has returned or raised, no process that the command started is left, whatever it forked or
killed (call_groups.py says what holds that), and no descriptor of the runtime's was open in any. When it was cancelled
they are killed by then, and end a moment later.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from amplifier_core import ToolResult

from amplifier_api_server.runtime import call_groups, supervisor
from amplifier_api_server.runtime.call_groups import CallGroup
from amplifier_api_server.runtime.modules.tool_bash.capture import Capture
from amplifier_api_server.runtime.protocol import MAX_TOOL_OUTPUT_CHARS
from amplifier_api_server.runtime.turn_port import CAPABILITY, TurnPort

MAX_COMMAND_CHARS = 100_000  # below the kernel's 128 KiB for one argument (MAX_ARG_STRLEN)
STDOUT_BYTES = MAX_TOOL_OUTPUT_CHARS // 2  # so that it is not cut again when JSON has escaped it
STDERR_BYTES = MAX_TOOL_OUTPUT_CHARS // 8
END_SECONDS = 6.0  # the supervisor's own bound on killing, and a little
DEFAULT_TIMEOUT_SECONDS = 30.0
DEFAULT_CPU_SECONDS = 600


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:
    config = config or {}
    port = coordinator.get_capability(CAPABILITY)
    claim = port.services.claim if port is not None else None
    tool = BashTool(
        Path(coordinator.get_capability("session.working_dir") or Path.cwd()),
        port,
        timeout_seconds=float(config.get("timeout") or DEFAULT_TIMEOUT_SECONDS),
        max_timeout_seconds=claim.tool_timeout_seconds if claim else 120.0,
        cpu_seconds=claim.tool_cpu_seconds if claim else DEFAULT_CPU_SECONDS,
    )
    await coordinator.mount("tools", tool, name=tool.name)


class BashTool:
    name = "bash"
    description = (
        "Run a command in bash: gives standard output, standard error and exit code. It runs in the session's folder, "
        "which keeps its files between calls; there is no network. Standard input is empty. Long output is cut in the "
        "middle. When the command ends, or takes longer than `timeout` seconds, every process that it started is "
        "killed, background ones (&, nohup, setsid) included: nothing runs on between two calls."
    )
    input_schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "command": {"type": "string", "description": "The command, as for bash -c"},
            "timeout": {"type": "number", "description": "Seconds it may take"},
        },
        "required": ["command"],
    }

    def __init__(
        self,
        folder: Path,
        port: TurnPort | None = None,
        *,
        timeout_seconds: float,
        max_timeout_seconds: float,
        cpu_seconds: int,
    ) -> None:
        self._folder = folder
        self._port = port
        self._max_timeout_seconds = max_timeout_seconds
        self._timeout_seconds = min(timeout_seconds, max_timeout_seconds)
        self._cpu_seconds = cpu_seconds

    async def execute(self, input: dict[str, Any]) -> ToolResult:  # noqa: A002 - the protocol's name
        """Exit codes other than 0 are results, no failures. A timeout is one, with what was written until then."""
        command = input.get("command")
        if not isinstance(command, str) or not command.strip():
            return _wrong("command should be a text that is not empty")
        if len(command) > MAX_COMMAND_CHARS or "\0" in command:
            return _wrong(f"command should have at most {MAX_COMMAND_CHARS} characters, and no NUL")
        timeout = input.get("timeout")
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0):
            return _wrong(f"timeout is {timeout!r}; it should be a number of seconds above 0")
        return await self._run(command, min(float(timeout or self._timeout_seconds), self._max_timeout_seconds))

    async def _run(self, command: str, timeout_seconds: float) -> ToolResult:
        more = await self._port.sdk_environment() if self._port is not None else {}
        async with call_groups.ours().call() as group:
            running = _Running(command, self._folder, self._cpu_seconds, more, group)
            try:
                async with asyncio.timeout(timeout_seconds):
                    await running.ended()
                timed_out = False
            except TimeoutError:
                timed_out = True
            finally:
                group.kill()
                await running.end()
            killed = group.memory_kills()
        output = {"exit_code": running.exit_code, "stdout": running.stdout.text(), "stderr": running.stderr.text()}
        if killed:
            output["note"] = killed
        if timed_out:
            message = f"the command took longer than {timeout_seconds:g} s and was killed"
            return ToolResult(success=False, error={"message": message}, output={"error": message, **output})
        return ToolResult(output=output)


def _wrong(message: str) -> ToolResult:
    return ToolResult(success=False, error={"message": message})


class _Running:
    """A supervisor and its pipes. Popen and a pidfd: asyncio's child watcher takes a thread a child in 3.11."""

    def __init__(self, command: str, folder: Path, cpu_seconds: int, more: Mapping[str, str], group: CallGroup) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        arguments = [sys.executable, "-I", "-S", supervisor.__file__, "shell", str(cpu_seconds), command]
        self._process = subprocess.Popen(  # noqa: S603 - running commands is what this tool is for
            arguments,
            cwd=folder,
            env={**environment(folder), **more},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            close_fds=True,
            start_new_session=True,
        )
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stderr
        self._lifeline = self._process.stdin
        try:
            group.add(self._process.pid)
        except OSError:
            self._process.kill()  # it has started nothing
            self._process.communicate()
            raise
        with contextlib.suppress(BrokenPipeError):  # it was killed
            self._lifeline.write(b"\n")
            self._lifeline.flush()
        self.stdout = Capture(self._process.stdout, STDOUT_BYTES)
        self.stderr = Capture(self._process.stderr, STDERR_BYTES)
        self.exit_code: int | None = None
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[None] = self._loop.create_future()
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    async def ended(self) -> None:
        """Until the supervisor has ended and all output is read."""
        await asyncio.wait({self._exited})
        await asyncio.wait({self.stdout.ended, self.stderr.ended}, timeout=1)  # a survivor, if ever, may hold them open

    async def end(self) -> None:
        """Kill what still runs. Idempotent; also under cancellation, when it doesn't wait but cuts the lifeline."""
        self._lifeline.close()
        try:
            if not self._exited.done():
                await asyncio.wait({self._exited}, timeout=END_SECONDS)
            await asyncio.wait({self.stdout.ended, self.stderr.ended}, timeout=0.2)
        finally:
            if not self._exited.done():
                self._process.kill()
                self._process.wait()
                self._reap()
            self.stdout.close()
            self.stderr.close()

    def _reap(self) -> None:
        if self._process.poll() is None or self._exited.done():
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._process.returncode
        self.exit_code = code if code >= 0 else 128 - code
        self._exited.set_result(None)


def environment(folder: Path) -> dict[str, str]:
    """All that a command sees of an environment, but for where its session's SDKs find the gateway."""
    return {
        "PATH": os.environ.get("PATH") or os.defpath,
        "HOME": str(folder),
        "PWD": str(folder),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PAGER": "cat",
        "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
    }

"""Load by wrk, the same for every peer: its tool, connections and time; only the address and the headers differ."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine

_SCRIPT = """
local paths = {}
local headers = {}
local n = 0
function init(args)
  for line in io.lines(args[1]) do
    local path, key = line:match("^(%S+) (%S+)$")
    paths[#paths + 1] = path
    headers[#headers + 1] = {["X-API-Key"] = key}
  end
end
function request()
  n = n % #paths + 1
  return wrk.format("GET", paths[n], headers[n])
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('RESULT {"requests":%d,"micros":%d,"p50":%f,"p99":%f,"bad":%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk saw."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    bad: int  # no answer, or one that is not 2xx or 3xx

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


def run(
    address: str, targets: Sequence[tuple[str, str]], *, connections: int, seconds: int, core: int | None = None
) -> Load:
    """GET `targets` (path, API key) in turn, as fast as answers come, on one thread. Raises Missing."""
    program = machine.program("wrk", "wrk")
    with tempfile.TemporaryDirectory() as folder:
        script, list_of = Path(folder) / "load.lua", Path(folder) / "targets"
        script.write_text(_SCRIPT, encoding="utf-8")
        list_of.write_text("".join(f"{path} {key}\n" for path, key in targets), encoding="utf-8")
        command = [program, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script)]
        done = subprocess.run(
            [*command, address, "--", str(list_of)],
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds + 30,
            preexec_fn=(lambda: os.sched_setaffinity(0, {core})) if core is not None else None,
        )
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    found = json.loads(line.removeprefix("RESULT "))
    return Load(found["requests"], found["micros"] / 1e6, found["p50"] / 1e3, found["p99"] / 1e3, found["bad"])

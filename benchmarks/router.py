"""The router beside nginx and configurable-http-proxy: requests a second and CPU a request, before one upstream.

Ours does for each request what it always does: parse, match, authenticate, permit, admit, tell (two log lines and metrics),
find the running turn, forward, and watch for its client's leaving and its key's revocation. The peers only forward (and nginx
writes its access log). Runs are interleaved; the figures are medians of the runs.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from subprocess import Popen

from benchmarks import machine, peers, processes, servers, wrk
from benchmarks.rows import Row, median


def run(*, rounds: int = 5, seconds: int = 4, connections: int = 32) -> list[Row]:
    """Every proxy on one core and all the rest (wrk, upstream) on another, where there are two."""
    proxy_core, other_core = (0, 1) if machine.cores() > 1 else (None, None)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-router-")))
        upstream_port = stack.enter_context(peers.upstream(folder, other_core))
        ready, ours = stack.enter_context(servers.target(folder / "data", core=proxy_core, upstream_port=upstream_port))
        nginx_port, nginx = stack.enter_context(peers.nginx(folder, upstream_port, proxy_core))
        proxy_port, proxy = stack.enter_context(peers.http_proxy(folder, upstream_port, proxy_core))
        targets = [(path, key) for path, key in ready["turns"]]
        runners = {
            "router": (ready["port"], ours),
            "nginx": (nginx_port, nginx),
            "configurable-http-proxy": (proxy_port, proxy),
        }
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in runners}
        for number in range(rounds + 1):
            for name, (port, process) in runners.items():
                one = load(port, process, targets, seconds if number else 1, connections, other_core)
                if number:  # the first round warms up
                    found[name].append(one)
    return _rows(found)


def load(
    port: int, process: Popen[bytes], targets: list[tuple[str, str]], seconds: int, connections: int, core: int | None
) -> tuple[float, float, float]:
    """One run: requests a second, CPU microseconds a request, median latency in ms. Raises RuntimeError for failures."""
    before = processes.cpu_seconds(process.pid)
    done = wrk.run(f"http://127.0.0.1:{port}", targets, connections=connections, seconds=seconds, core=core)
    spent = processes.cpu_seconds(process.pid) - before
    if done.bad:
        raise RuntimeError(f"{done.bad} of {done.requests} requests failed at port {port}")
    return done.per_second, spent / done.requests * 1e6, done.p50_ms


def _rows(found: dict[str, list[tuple[float, float, float]]]) -> list[Row]:
    rates, costs, delays = (
        {name: median(run[index] for run in runs) for name, runs in found.items()} for index in range(3)
    )
    rows = []
    for peer, aim in (("nginx", 0.3), ("configurable-http-proxy", 1.0)):
        against = f"peer: {peer}, one process each"
        rows += [
            Row("router", f"requests a second, beside {peer}", rates["router"], "1/s", rates[peer], aim, "higher",
                "ratio", against),
            Row("router", f"requests a CPU second, beside {peer}", 1e6 / costs["router"], "1/s", 1e6 / costs[peer],
                aim, "higher", "ratio", against),
            Row("router", f"CPU a request, beside {peer}", costs["router"], "µs", costs[peer], note=against),
            Row("router", f"median latency under load, beside {peer}", delays["router"], "ms", delays[peer],
                note=against),
        ]  # fmt: skip
    return rows

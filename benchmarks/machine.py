"""What the benches need of the machine, brought here where it is lacking; and what the machine is.

Nothing is installed but by its own package manager, and nothing that is installed is left running. What can't be had is
told by `Missing`, which skips a bench and is printed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

CACHE = Path(__file__).parent / ".cache"
_PROXY = "configurable-http-proxy@5"
_INSTALL_SECONDS = 300


class Missing(Exception):
    """A bench can't run here; the message says what it lacks and how to bring it."""


def cores() -> int:
    return len(os.sched_getaffinity(0))


def load() -> float:
    """The load average of the last minute: figures taken above 0.5 or so are another program's too."""
    return round(os.getloadavg()[0], 2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def program(name: str, package: str) -> str:
    """The path of a program of Debian's, installed where it is not there. Raises Missing."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    found = shutil.which(name, path=path)
    if found is None:
        _apt(package)
        found = shutil.which(name, path=path)
    if found is None:
        raise Missing(f"{name} is not on this machine; install the package {package}")
    return found


def _apt(package: str) -> None:
    if shutil.which("apt-get") is None:
        raise Missing(f"there is no apt-get here; install {package} by hand")
    if os.geteuid() != 0:
        raise Missing(f"{package} is not installed; run: sudo apt-get install {package}")
    # Run level 1 is what keeps the package's service from being started (invoke-rc.d reads it).
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", package]):
        _run(["apt-get", *command], env, f"apt-get {' '.join(command)}")


def http_proxy() -> list[str]:
    """The command of configurable-http-proxy, kept in a folder of the benches' own. Raises Missing."""
    script = CACHE / "node_modules" / "configurable-http-proxy" / "bin" / "configurable-http-proxy"
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Missing("node and npm are not on this machine; configurable-http-proxy needs them")
    if not script.exists():
        CACHE.mkdir(exist_ok=True)
        command = [npm, "install", "--prefix", str(CACHE), "--no-audit", "--no-fund", "--silent", _PROXY]
        _run(command, dict(os.environ), "npm install " + _PROXY)
    return [node, str(script)]


def _run(command: list[str], env: dict[str, str], what: str) -> None:
    try:
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", b"") or b"").decode(errors="replace").strip()[-300:]
        raise Missing(f"`{what}` failed: {said or error}") from error

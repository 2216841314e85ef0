"""What `serve` says, and where: its log on standard output, to whoever started it on standard error."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

_KEY = re.compile(r"amp_live_\w{38}")
_MAIN = "from amplifier_api_server.control_plane.cli import app; app()"


def served_once(folder: Path, *, is_terminal: bool = False) -> tuple[str, str]:
    """Start, wait for the announcement, stop; standard output and standard error, which may be a terminal."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "ANTHROPIC_", "AMPLIFIER_"))}
    settings = {"DATA_DIR": str(folder / "data"), "PORT": "0", "AMPLIFIER_SANDBOX__MIN_FREE_DISK": "64MiB"}
    reading, writing = pty.openpty() if is_terminal else os.pipe()
    with (folder / "out").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-W", "always", "-c", _MAIN, "serve"],
            env=kept | settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=writing,
        )
    told = b""
    try:
        while b"echo hello" not in told and select.select([reading], [], [], 90)[0]:
            told += os.read(reading, 65536)
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
        os.close(reading)
        os.close(writing)
    return (folder / "out").read_text(), told.decode()


def test_keys_are_told_once_and_standard_output_is_json_alone(tmp_path: Path):
    output, error = served_once(tmp_path)
    assert [json.loads(line)["event"] for line in output.splitlines()][-1] == "stopped"
    assert len(set(_KEY.findall(error))) == 2
    assert error.count("Operator key: ") == 1
    assert _KEY.search(output) is None
    kept = json.loads((tmp_path / "data" / "keys.json").read_text())
    assert f"-H 'X-API-Key: {kept['tenant_key']}'" in error

    output, error = served_once(tmp_path)
    for line in output.splitlines():
        json.loads(line)
    assert _KEY.search(error) is None
    assert str(tmp_path / "data" / "keys.json") in error

    _, error = served_once(tmp_path, is_terminal=True)
    assert set(_KEY.findall(error)) == {kept["tenant_key"], kept["operator_key"]}

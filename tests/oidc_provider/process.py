"""The certified npm `oidc-provider` as a process of its own."""

import contextlib
import re
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests import installed

SECRET = "a secret: of a client & more"
_START_SECONDS = 90


@contextlib.contextmanager
def running() -> Iterator[str]:
    """Its issuer."""
    folder = installed.npm(Path(__file__).parent, "logins against a real OpenID Connect provider")
    with subprocess.Popen(
        ["node", "provider.mjs"],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
            issuer = process.stdout.readline().strip() if ready else ""
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", issuer), f"oidc-provider did not start: {issuer!r}"
            yield issuer
        finally:
            process.kill()

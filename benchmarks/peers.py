"""The peers of the router: nginx and configurable-http-proxy before one small upstream; and that upstream.

The upstream is an nginx of its own that answers every request with the same event stream. Each peer forwards everything to
it over kept connections, does not buffer, and has its own defaults besides; nginx has one worker and its usual access log.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

from benchmarks import machine, processes

BODY_EVENTS = 3

_COMMON = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
{user}
events {{ worker_connections 4096; }}
http {{
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  keepalive_requests 1000000000;
  {inside}
}}
"""
_UPSTREAM = """
  access_log off;
  server {{
    listen 127.0.0.1:{port};
    location / {{ default_type text/event-stream; return 200 "{body}"; }}
  }}
"""
_PROXY = """
  access_log {folder}/access.log;
  upstream small {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://small; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
"""


@contextlib.contextmanager
def upstream(folder: Path, core: int | None) -> Iterator[int]:
    """The small upstream; its port."""
    port = machine.free_port()
    event = 'id: req_0:{n}\\nevent: token\\ndata: {{\\"content\\":\\"word \\"}}\\n\\n'
    body = "".join(event.format(n=n + 1) for n in range(BODY_EVENTS))
    with _nginx(folder / "upstream", _UPSTREAM.format(port=port, body=body), port, core):
        yield port


@contextlib.contextmanager
def nginx(folder: Path, upstream_port: int, core: int | None) -> Iterator[tuple[int, Popen[bytes]]]:
    """nginx as a proxy: its port and its process."""
    port, here = machine.free_port(), folder / "nginx"
    with _nginx(here, _PROXY.format(folder=here, upstream=upstream_port, port=port), port, core) as process:
        yield port, process


@contextlib.contextmanager
def _nginx(folder: Path, inside: str, port: int, core: int | None) -> Iterator[Popen[bytes]]:
    folder.mkdir(parents=True)
    config = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # it reads and writes in our folder alone
    config.write_text(_COMMON.format(folder=folder, inside=inside, user=user), encoding="utf-8")
    command = [machine.program("nginx", "nginx-light"), "-c", str(config), "-e", str(folder / "error.log")]
    with processes.running(command, folder / "out.log", core=core) as process:
        answers(port)
        yield process


@contextlib.contextmanager
def http_proxy(folder: Path, upstream_port: int, core: int | None) -> Iterator[tuple[int, Popen[bytes]]]:
    """configurable-http-proxy with one default route: its port and its process."""
    port, api_port = machine.free_port(), machine.free_port()
    command = [
        *machine.http_proxy(),
        *("--ip", "127.0.0.1", "--port", str(port), "--api-ip", "127.0.0.1", "--api-port", str(api_port)),
        *("--default-target", f"http://127.0.0.1:{upstream_port}"),
    ]
    with processes.running(command, folder / "http-proxy.log", core=core) as process:
        answers(port)
        yield port, process


def answers(port: int, seconds: float = 20) -> None:
    """Wait until something answers there."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/")
            connection.getresponse().read()
            connection.close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return

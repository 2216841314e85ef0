"""A runtime's stand-in: answers GET /health, and runs what it is given.

It holds its descriptors and its memory as the real one does. POST /shell runs a script by sh, POST /python one by a Python
of its own, POST /exec one in this very process, as a collection's module would; each answers JSON.
"""

import contextlib
import ctypes
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingMixIn, UnixStreamServer

from amplifier_api_server.runtime import call_groups

GROUPS: list[int] = []
SECRET = "the-runtime-holds-this-" + "in-its-memory"
PR_SET_DUMPABLE = 4


def run(command: list[str], script: str) -> dict:
    """In the group of tools, but not ended with it: what a script leaves in the background stays, for tests of that."""
    # Into files: what a script leaves in the background may hold its output open for ever.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as error:
        done = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; exec env -u PWD -u OLDPWD "$@" < /dev/null', "sh", *command, script],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=error,
            start_new_session=True,
        )
        for group in GROUPS:
            os.write(group, str(done.pid).encode())
        done.communicate(b"\n")
        output.seek(0)
        error.seek(0)
        return {
            "status": done.returncode,
            "output": output.read().decode(errors="replace"),
            "error": error.read().decode(errors="replace"),
        }


def execute(script: str) -> dict:
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            exec(compile(script, "<module>", "exec"), {"__name__": "module"})
    except (Exception, SystemExit):  # noqa: BLE001 - whatever it was is the answer
        return {"status": 1, "output": output.getvalue(), "error": traceback.format_exc()}
    return {"status": 0, "output": output.getvalue(), "error": ""}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer({"protocol_version": 1})

    def do_POST(self) -> None:
        script = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path == "/shell":
            self.answer(run(["/bin/sh", "-c"], script))
        elif self.path == "/python":
            self.answer(run([sys.executable, "-c"], script))
        else:
            self.answer(execute(script))

    def answer(self, body: dict) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def address_string(self) -> str:
        return "the control plane"

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is nothing to speak of."""


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    listener = socket.socket(fileno=int(os.environ["AMPLIFIER_LISTEN_FD"]))
    os.set_inheritable(listener.fileno(), False)
    if "AMPLIFIER_GATEWAY_FD" in os.environ:
        os.set_inheritable(int(os.environ["AMPLIFIER_GATEWAY_FD"]), False)
    handed = call_groups.Handed.read(os.environ.get("AMPLIFIER_GROUPS", ""))
    for descriptor in handed.descriptors:
        os.set_inheritable(descriptor, False)
    GROUPS.extend([*handed.entries, *(procs for procs, _ in handed.calls[:1])])
    server = Server("unused", Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()

"""A package index of a test's own: a simple index (PEP 503) of wheels that are made here, over plain HTTP."""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def wheel(name: str, version: str, *, requires: tuple[str, ...] = (), files: dict[str, str] | None = None) -> bytes:
    stem = f"{name.replace('-', '_')}-{version}"
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as out:
        for path, text in (files or {f"{name.replace('-', '_')}.py": "x = 1\n"}).items():
            out.writestr(path, text)
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {one}" for one in requires]
        out.writestr(f"{stem}.dist-info/METADATA", "\n".join(lines) + "\n")
        out.writestr(
            f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        out.writestr(f"{stem}.dist-info/RECORD", "")
    return made.getvalue()


def sdist(name: str, version: str, setup: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as out:
        for path, text in {
            "setup.py": setup,
            "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        }.items():
            info = tarfile.TarInfo(f"{name}-{version}/{path}")
            info.size = len(text)
            out.addfile(info, io.BytesIO(text.encode()))
    return made.getvalue()


class WheelIndex:
    """The server. A context manager; `add` what it has."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}  # project: file name: content
        self.asked: list[str] = []
        self.is_silent = False
        self._ending = threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_) -> None:
                pass

            def do_GET(self) -> None:
                index.asked.append(self.path)
                if index.is_silent:
                    index._ending.wait(60)
                    return
                body, kind = index._answer(self.path)
                self.send_response(200 if body is not None else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_) -> None:
                """A client that was killed."""

        self._httpd = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._httpd.server_address[1]}/simple/"
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ending.set()
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join(60)

    def add(self, name: str, version: str, **how) -> bytes:
        content = wheel(name, version, **how)
        self.files.setdefault(name, {})[f"{name.replace('-', '_')}-{version}-py3-none-any.whl"] = content
        return content

    def _answer(self, path: str):
        parts = path.strip("/").split("/")
        if parts[0] == "files" and len(parts) == 3:
            return self.files.get(parts[1], {}).get(parts[2]), "application/octet-stream"
        held = self.files.get(parts[-1])
        if held is None:
            return None, "text/html"
        links = "".join(
            f'<a href="/files/{parts[-1]}/{name}#sha256={hashlib.sha256(content).hexdigest()}">{name}</a>\n'
            for name, content in held.items()
        )
        return f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), "text/html"

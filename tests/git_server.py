"""A real git server over HTTPS, for tests: `git http-backend` behind TLS, with a certificate authority of its own.

    with GitServer(tmp_path) as server:
        repository = server.repository("org/tools")            # bare, empty
        commit = repository.commit({"bundle.md": "...", "run.sh": ("#!/bin/sh", 0o755)})   # to main
        server.uri("org/tools", ref="main")                    # git+https://localhost:PORT/org/tools@main
        server.settings()                                      # Collections(...) that trusts and reaches it
        server.configuration()                                 # the same as plain values, for config.yaml

It serves zips and anything else too (`server.files`, `server.redirects`, `server.handlers`), counts what it was asked
(`server.asked`), and knows itself as localhost, 127.0.0.1, git.test and other.test; `server.resolve` is for
clients that take a resolver.
"""

import datetime as dt
import ipaddress
import os
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from amplifier_api_server.control_plane.settings import Collections

GIT_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "A Person",
    "GIT_AUTHOR_EMAIL": "person@example.org",
    "GIT_COMMITTER_NAME": "A Person",
    "GIT_COMMITTER_EMAIL": "person@example.org",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
}
NAMES = ("localhost", "git.test", "other.test")


class Repository:
    """A bare repository on disk. Whatever tree git can hold can be made of it, an evil one too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.git("init", "--quiet", "--bare", "--initial-branch=main", ".")
        # As forges do: commits by their id, and listings without files.
        self.git("config", "uploadpack.allowAnySHA1InWant", "true")
        self.git("config", "uploadpack.allowFilter", "true")

    def git(self, *arguments: str, given: bytes = b"") -> str:
        ran = subprocess.run(
            ["git", *arguments], cwd=self.folder, input=given, capture_output=True, env=GIT_ENVIRONMENT, check=False
        )
        assert ran.returncode == 0, ran.stderr.decode()
        return ran.stdout.decode().strip()

    def blob(self, content: str | bytes) -> str:
        raw = content if isinstance(content, bytes) else content.encode()
        return self.git("hash-object", "-w", "--stdin", given=raw)

    def tree(self, entries) -> str:
        """A tree object of (mode, kind, id, name): nothing is checked, and the order is what git wants."""
        lines = [f"{mode} {kind} {oid}\t{name}".encode() + b"\0" for mode, kind, oid, name in entries]
        return self.git("mktree", "-z", "--missing", given=b"".join(lines))

    def tree_of(self, files: dict) -> str:
        """Of paths to text, bytes, or (content, mode)."""
        entries, below = [], {}
        for path, content in files.items():
            first, _, rest = path.partition("/")
            if rest:
                below.setdefault(first, {})[rest] = content
                continue
            held, mode = content if isinstance(content, tuple) else (content, 0o644)
            entries.append((f"100{mode:o}", "blob", self.blob(held), first))
        entries += [("040000", "tree", self.tree_of(inner), name) for name, inner in below.items()]
        return self.tree(entries)

    def commit_tree(self, tree: str, *, branch: str = "main", parent: str | None = None) -> str:
        commit = self.git("commit-tree", tree, "-m", "a change", *(["-p", parent] if parent else []))
        self.git("update-ref", f"refs/heads/{branch}", commit)
        return commit

    def commit(self, files: dict, *, branch: str = "main", parent: str | None = None) -> str:
        return self.commit_tree(self.tree_of(files), branch=branch, parent=parent)

    def tag(self, name: str, commit: str, *, annotated: bool = False) -> None:
        self.git("tag", *(["-a", "-m", "a release"] if annotated else []), name, commit)


class GitServer:
    """The server, in threads of its own. A context manager."""

    def __init__(self, folder: Path, *, tls: bool = True) -> None:
        self.root = folder / "repositories"
        self.root.mkdir(parents=True)
        self.ca_file = folder / "ca.pem"
        self.files: dict[str, tuple[str, bytes]] = {}  # path: content type, body
        self.redirects: dict[str, str] = {}  # path's beginning: where to, the rest and the query added
        self.handlers: dict[str, object] = {}  # path's beginning: called with the request's handler
        self.asked: list[str] = []  # paths with their queries
        self._httpd = _Httpd(("127.0.0.1", 0), _Handler)
        self._httpd.server = self
        self.scheme = "https" if tls else "http"
        if tls:
            self._httpd.context = _certificates(folder, self.ca_file)
        self.port = self._httpd.server_address[1]
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._httpd.is_ending.set()
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join(60)

    def repository(self, name: str) -> Repository:
        return Repository(self.root / f"{name}.git")

    def url(self, name: str, *, host: str = "localhost") -> str:
        return f"{self.scheme}://{host}:{self.port}/{name}"

    def uri(self, name: str, *, ref: str = "main", subdirectory: str = "", host: str = "localhost") -> str:
        fragment = f"#subdirectory={subdirectory}" if subdirectory else ""
        return f"git+{self.url(name, host=host)}{f'@{ref}' if ref else ''}{fragment}"

    def configuration(self, **more) -> dict:
        """Of the section `collections`: it is at a private address, and its authority is nobody's."""
        hosts = [f"{name}:{self.port}" for name in ("localhost", "127.0.0.1", "git.test")]
        return {"private_hosts": hosts, "ca_file": str(self.ca_file), **more}

    def settings(self, **more) -> Collections:
        return Collections.model_validate(self.configuration(**more))

    async def resolve(self, host: str, port: int) -> list[str]:
        if host.endswith(".test") or host == "localhost":
            return ["127.0.0.1"]
        raise OSError(f"no such host: {host}")


class _Httpd(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    server: GitServer
    context: ssl.SSLContext | None = None

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.is_ending = threading.Event()

    def finish_request(self, request, client_address) -> None:
        """The handshake in the request's own thread: a client that refuses the certificate stops nobody else."""
        request.settimeout(30)
        if self.context is not None:
            try:
                request = self.context.wrap_socket(request, server_side=True)
            except OSError:
                return
        with request:
            super().finish_request(request, client_address)

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is no error of a test's."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server = self.server.server
        server.asked.append(self.path)
        self.close_connection = True
        for beginning, handle in server.handlers.items():
            if self.path.startswith(beginning):
                return handle(self)
        for beginning, target in server.redirects.items():
            if self.path.startswith(beginning):
                return self.answer(302, b"", location=target + self.path[len(beginning) :])
        path = urlsplit(self.path).path
        if path in server.files:
            kind, body = server.files[path]
            return self.answer(200, body, content_type=kind)
        return self._git(server.root)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _git(self, root: Path) -> None:
        parts = urlsplit(self.path)
        name = parts.path.partition("/info/refs")[0].partition("/git-upload-pack")[0]
        path = parts.path
        if not name.endswith(".git"):  # forges serve both
            path = path.replace(name, name + ".git", 1)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        environment = {
            **GIT_ENVIRONMENT,
            "GIT_PROJECT_ROOT": str(root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": parts.query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": "127.0.0.1",
            "REMOTE_USER": "",
        }
        ran = subprocess.run(["git", "http-backend"], input=body, capture_output=True, env=environment, check=False)
        head, _, content = ran.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        status = int(headers.pop("Status", "200" if ran.returncode == 0 else "500").split()[0])
        headers.pop("Content-Length", None)
        self.answer(status, content, **headers)


def _certificates(folder: Path, ca_file: Path) -> ssl.SSLContext:
    now = dt.datetime.now(dt.UTC)

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def certificate(subject, key, issuer, issuer_key, *extensions):
        made = (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=2))
        )
        for extension, critical in extensions:
            made = made.add_extension(extension, critical)
        return made.sign(issuer_key, hashes.SHA256())

    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = certificate(
        "Tests", authority_key, "Tests", authority_key, (x509.BasicConstraints(ca=True, path_length=0), True)
    )
    names = [x509.DNSName(name) for name in NAMES]

    names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    leaf = certificate("git.test", key, "Tests", authority_key, (x509.SubjectAlternativeName(names), False))
    ca_file.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    chain = folder / "server.pem"
    chain.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + leaf.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context

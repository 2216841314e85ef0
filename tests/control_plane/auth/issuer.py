"""An identity provider for tests: a real HTTP server with discovery and keys, and whatever tokens a test wants."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

AUDIENCE = "amplifier-api"


@cache
def rsa(name: str = "one", bits: int = 2048) -> RSAKey:
    """A key of this name: the same at every call, because making one takes long."""
    return RSAKey.generate_key(bits)


@cache
def ec(curve: str = "P-256") -> ECKey:
    return ECKey.generate_key(curve)


@cache
def ed() -> OKPKey:
    return OKPKey.generate_key("Ed25519")


def published(key: Key, kid: str | None, **more: Any) -> dict[str, Any]:
    """A key as a JWKS document lists it."""
    return {**key.as_dict(private=False), **({"kid": kid} if kid is not None else {}), **more}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: dict[str, Any], payload: bytes, key: Key) -> str:
    """A token with any header at all, signed by what its `alg` says."""
    head = f"{b64(json.dumps(header).encode())}.{b64(payload)}"
    model = jws.JWSRegistry.algorithms[header["alg"]]
    return f"{head}.{b64(model.sign(head.encode(), key))}"


@dataclass
class Issuer:
    port: int
    keys: list[dict[str, Any]] = field(default_factory=lambda: [published(rsa(), "k1", use="sig")])
    is_down: bool = False
    answers: dict[str, bytes] = field(default_factory=dict)  # by path, instead of the right ones
    says_issuer: str | None = None
    asked: list[str] = field(default_factory=list)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def claims(self, now: datetime, **claims: Any) -> dict[str, Any]:
        at = int(now.timestamp())
        usual = {"iss": self.url, "aud": AUDIENCE, "sub": "user-1", "iat": at, "exp": at + 600, "roles": ["developer"]}
        return {name: value for name, value in (usual | claims).items() if value is not None}

    def token(
        self, now: datetime, *, key: Key | None = None, header: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        """A token that is right but for what a test says; None leaves a claim or a header out."""
        head = {"alg": "RS256", "kid": "k1", "typ": "at+jwt"} | (header or {})
        head = {name: value for name, value in head.items() if value is not None}
        return signed(head, json.dumps(self.claims(now, **claims)).encode(), key or rsa())

    def _body(self, path: str) -> bytes | None:
        if path in self.answers:
            return self.answers[path]
        if path == "/.well-known/openid-configuration":
            document = {"issuer": self.says_issuer or self.url, "jwks_uri": self.url + "/jwks"}
            return json.dumps(document).encode()
        return json.dumps({"keys": self.keys}).encode() if path == "/jwks" else None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split()[1].decode()
            self.asked.append(path)
            await self.may_answer.wait()
            body = self._body(path)
            status = b"503 Down" if self.is_down else b"200 OK" if body is not None else b"404 None"
            body = b"" if self.is_down else body or b""
            writer.write(
                b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(body), body)
            )
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def issuing() -> AsyncIterator[Issuer]:
    issuer = Issuer(0)
    issuer.may_answer.set()
    server = await asyncio.start_server(issuer.serve, "127.0.0.1", 0)
    issuer.port = server.sockets[0].getsockname()[1]
    try:
        yield issuer
    finally:
        issuer.may_answer.set()
        server.close()
        await server.wait_closed()

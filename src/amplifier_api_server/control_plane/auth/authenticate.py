"""From a request's headers to a principal, in microseconds for a credential that was seen lately.

Owns which credential a request carries, and which kind it is. What each is good for is its kind's own (`known_keys`,
`tokens`, a `LoginVerifier`). Verdicts are remembered for `auth.cache_ttl`: that is how late a revocation made by another
process can be noticed; one made here is noticed at once (`forget`). Invariant: a request with two different credentials has
no caller.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

from amplifier_api_server.control_plane.auth.headers import (
    TWO,
    Carried,
    Headers,
    carried_in,
    misplaced_token,
    nothing,
    well_formed,
)
from amplifier_api_server.control_plane.auth.jwt import looks_like_a_token
from amplifier_api_server.control_plane.auth.known_keys import KnownKeys
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.auth.tokens import Tokens
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.origin import set_caller
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants import api_keys
from amplifier_api_server.tenants.errors import Unauthenticated
from amplifier_api_server.tenants.ids import CredentialId, KeyId, MemberId, TenantId

_MAX_HANDLES = 20_000


class LoginVerifier(Protocol):
    """Browsers' sessions: a cookie that a login gave.

    A cookie is sent by the browser, not by the page: whoever lets a request in by one checks besides, by the request's
    method, that the page is ours (`Principal.method` is "login").
    """

    def carried_in(self, headers: Headers) -> bytes | None:
        """The login cookie's value, whatever it looks like; None where there is none."""

    async def principal_of(self, given: bytes) -> Principal:
        """Whose it is. `proof` is what `still` needs to look it up again. Raises Unauthenticated, Forbidden, Unavailable."""

    async def still(self, principals: Sequence[Principal]) -> list[Principal | None]:
        """Each as it would be let in now, in the same order; None for one that would not. Raises what the database raises."""

    def forget(self, is_meant: Callable[[Principal], bool]) -> None:
        """Call after the commit that changed what these may do."""

    async def close(self) -> None: ...


class Authenticator:
    """Who is calling. One a process; `run` beside the server, `close` at its end."""

    def __init__(self, database: Database, settings: Settings, pepper: bytes, clock: Clock) -> None:
        self._pepper = pepper
        self._clock = clock
        self._headers = {one.header.lower().encode("latin-1"): None for one in settings.auth.keys}
        self._takes_tokens = bool(settings.auth.bearers)
        self._keys = KnownKeys(database, settings, clock)
        self._tokens = Tokens(database, settings, clock)
        self.logins: LoginVerifier | None = None
        self._digests: dict[bytes, bytes] = {}  # of keys that worked, by a hash that only this process can make
        self._handle_key = secrets.token_bytes(32)

    async def authenticate(self, headers: Sequence[tuple[bytes, bytes]]) -> Principal:
        """Who sent these headers (names in lower case), from here on the work's caller.

        Raises Unauthenticated; Forbidden for a suspended tenant.
        """
        principal = await self._sender(headers)
        set_caller(principal.tenant_id)
        return principal

    async def _sender(self, headers: Sequence[tuple[bytes, bytes]]) -> Principal:
        carried = carried_in(headers, self._headers)
        cookie = self.logins.carried_in(headers) if self.logins is not None else None
        if carried.given is not None:
            if cookie is not None:
                raise Unauthenticated(TWO)
            return await self._principal_of(carried.given, may_be_token=carried.is_bearer)
        if cookie is None or self.logins is None:
            raise self._nothing(carried)
        return await self.logins.principal_of(cookie)

    async def authenticate_token(self, text: str) -> Principal:
        """Whose bare key or token this is: what comes in a message instead of a header. The same as `authenticate`."""
        try:
            given = text.strip().encode("ascii")
        except UnicodeEncodeError as error:
            raise Unauthenticated("the token is neither an API key nor a JWT") from error
        principal = await self._principal_of(given, may_be_token=True)
        set_caller(principal.tenant_id)
        return principal

    async def principal_of(self, text: str) -> Principal:
        """Whose well-formed key this is. Raises Unauthenticated, Forbidden, Unavailable."""
        return await self._keys.principal_of(self.digest(text))

    async def still(self, principals: Sequence[Principal]) -> list[Principal | None]:
        """Each as it would be let in now by the same credential, in the same order; None for one that would not.

        Asks the database, whatever is remembered. Raises what that raises.
        """
        now = self._clock.now().timestamp()
        found: dict[int, Principal | None] = {}
        verdicts = await self._keys.verdicts.again(
            list({one.proof for one in principals if one.method == "api_key" and isinstance(one.proof, bytes)})
        )
        for one in principals:
            if one.method == "api_key" and isinstance(one.proof, bytes):
                verdict = verdicts[one.proof]
                is_over = verdict.expires_at is not None and verdict.expires_at <= now
                found[id(one)] = None if is_over else verdict.principal
        tokens = [one for one in principals if one.method == "bearer"]
        found |= {id(one): now_is for one, now_is in zip(tokens, await self._tokens.still(tokens), strict=True)}
        logins = [one for one in principals if one.method == "login"]
        if self.logins is not None:
            found |= {id(one): is_now for one, is_now in zip(logins, await self.logins.still(logins), strict=True)}
        return [found.get(id(one)) for one in principals]

    def digest(self, text: str) -> bytes:
        """What is stored of a well-formed key."""
        return api_keys.digest(self._pepper, text)

    def forget(self, key_id: KeyId) -> None:
        """Call after the commit that revoked or changed the key: the next request with it is looked up again."""
        self.forget_credential(CredentialId(key_id))

    def forget_credential(self, credential_id: CredentialId) -> None:
        """The same, of a credential of any kind."""
        self._forget(lambda principal: principal.credential_id == credential_id)

    def forget_member(self, tenant_id: TenantId, member_id: MemberId) -> None:
        """The same, of all that a member has."""
        self._forget(lambda principal: principal.tenant_id == tenant_id and principal.member_id == member_id)

    def forget_tenant(self, tenant_id: TenantId) -> None:
        """The same, of all that the tenant's members have."""
        self._forget(lambda principal: principal.tenant_id == tenant_id)

    async def run(self) -> None:
        """Write down, about once a minute and for ever, when keys were used last."""
        await self._keys.run()

    async def write_last_used(self) -> None:
        """Write down what was used since the last time. A failure costs that, is logged, and stops nothing."""
        await self._keys.write_last_used()

    async def close(self) -> None:
        """Let go of what is waiting, and write down what is left to write."""
        await self._tokens.close()
        if self.logins is not None:
            await self.logins.close()
        await self._keys.close()

    async def _principal_of(self, given: bytes, *, may_be_token: bool) -> Principal:
        # What worked lately is known again by a short keyed hash: a key's form and digest take seven times as long, a
        # token's signature thirty times.
        handle = hashlib.blake2b(given, digest_size=16, key=self._handle_key).digest()
        digest = self._digests.get(handle)
        if digest is not None:
            return await self._keys.principal_of(digest)
        if looks_like_a_token(given):
            if may_be_token:
                return await self._tokens.principal_of(given, handle)
            if self._takes_tokens:
                raise misplaced_token()
        digest = self.digest(well_formed(given))
        principal = await self._keys.principal_of(digest)
        if len(self._digests) >= _MAX_HANDLES:
            self._digests.clear()
        self._digests[handle] = digest
        return principal

    def _nothing(self, carried: Carried) -> Unauthenticated:
        return nothing(list(self._headers), takes_tokens=self._takes_tokens, has_other_scheme=carried.has_other_scheme)

    def _forget(self, is_meant: Callable[[Principal], bool]) -> None:
        self._keys.verdicts.forget(is_meant)
        self._tokens.verdicts.forget(is_meant)
        if self.logins is not None:
            self.logins.forget(is_meant)

"""JWTs of the issuers that the operator named: verified once, and then known again until they expire.

Owns what was verified: a hash of each token with what it proved. Refuses to know rows (`token_members`) and documents
(`issuers`). Invariants: a token whose signature was not checked with a key that its issuer still publishes is nobody's; one
that has expired is nobody's at that moment, however it was remembered.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import structlog
from sqlalchemy.exc import SQLAlchemyError

from amplifier_api_server.control_plane.auth.claims import Claimed, Subject, claimed_by
from amplifier_api_server.control_plane.auth.credentials import Verdict
from amplifier_api_server.control_plane.auth.issuers import IssuerKeys
from amplifier_api_server.control_plane.auth.jwt import check_claims, check_header, invalid, taken_apart
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.auth.token_members import NO_MEMBER, TokenMembers
from amplifier_api_server.control_plane.auth.verdicts import Verdicts
from amplifier_api_server.control_plane.auth_settings import BearerAuth
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.egress.addresses import HostRules
from amplifier_api_server.control_plane.egress.certificates import context_of
from amplifier_api_server.control_plane.egress.client import Client
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import Unauthenticated, Unavailable

log = structlog.get_logger(__name__)

_MAX_TOKENS = 20_000  # that were verified: about 30 MB
_MAX_KEYS_TRIED = 4  # of one kid: an issuer that names several alike is odd, one that names a hundred is an attack
_TAKE_IN_SECONDS = 10.0


class _Proof(NamedTuple):
    """What a principal of a token is looked up by again."""

    subject: Subject
    thumbprint: str


@dataclass(slots=True)
class _Verified:
    """A token that was genuine. Its text is kept nowhere."""

    issuer: IssuerKeys
    thumbprint: str
    claimed: Claimed
    ends_at: float
    is_listed: bool = False  # the member's row was compared with it
    verdict: Verdict | None = None
    principal: Principal | None = None  # the verdict's, that ends with the token


class Tokens:
    """One a process; `close` at its end."""

    def __init__(self, database: Database, settings: Settings, clock: Clock) -> None:
        auth = settings.auth
        self._clock = clock
        self._methods = {one.issuer: one for one in auth.bearers}
        client = Client(HostRules(private=auth.named_hosts), partial(context_of, auth.ca_file))
        self._issuers = {
            one.issuer: IssuerKeys(one, client, clock, private_hosts=auth.private_hosts) for one in auth.bearers
        }
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()  # by a hash that only this process can make
        self._members = TokenMembers(database, settings, clock)
        self._taking_in = asyncio.Lock()
        self.verdicts: Verdicts[Subject] = Verdicts(
            self._members.read, clock, ttl_seconds=auth.cache_ttl.total_seconds()
        )

    async def principal_of(self, given: bytes, handle: bytes) -> Principal:
        """Whose token it is; `handle` is its hash. Raises Unauthenticated, Forbidden, Unavailable."""
        now = self._clock.now().timestamp()
        verified = self._verified.get(handle)
        if verified is None or verified.ends_at <= now or not verified.issuer.holds(verified.thumbprint):
            self._verified.pop(handle, None)
            verified = await self._verify(given)
            self._remember(handle, verified)
        verdict = self.verdicts.remembered(verified.claimed.subject)
        if verdict is None or verdict is NO_MEMBER or not verified.is_listed:
            verdict = await self._verdict_of(verified)
        if verdict is not verified.verdict or verified.principal is None:
            proof = _Proof(verified.claimed.subject, verified.thumbprint)
            verified.principal = replace(verdict.admit(now), expires_at=verified.ends_at, proof=proof)
            verified.verdict = verdict
        return verified.principal

    async def still(self, principals: Sequence[Principal]) -> list[Principal | None]:
        """Each as its token would be let in now; None for one that would not."""
        now = self._clock.now().timestamp()
        wanted = {one.proof.subject for one in principals if isinstance(one.proof, _Proof)}
        verdicts = await self.verdicts.again(list(wanted))
        found: list[Principal | None] = []
        for one in principals:
            proof = one.proof
            if not isinstance(proof, _Proof) or (one.expires_at is not None and one.expires_at <= now):
                found.append(None)
                continue
            issuer = self._issuers.get(proof.subject.issuer)
            is_good = issuer is not None and issuer.holds(proof.thumbprint)
            found.append(verdicts[proof.subject].principal if is_good else None)
        return found

    async def close(self) -> None:
        await asyncio.gather(*(one.close() for one in self._issuers.values()))
        await self.verdicts.close()

    async def _verify(self, given: bytes) -> _Verified:
        """What a token proves. Raises Unauthenticated, Unavailable; Forbidden where it leads to no tenant."""
        if not self._methods:
            raise Unauthenticated("this server takes no tokens of an identity provider; send an API key")
        token = taken_apart(given)
        method, issuer = self._methods.get(token.issuer), self._issuers.get(token.issuer)
        if method is None or issuer is None:
            raise invalid("its issuer (iss) is not one that is known here")
        check_header(token, method)
        keys = await issuer.fitting(token.kid, token.algorithm)
        if not keys:
            raise invalid("its issuer has no key that it could be signed with (kid, alg)")
        signer = next(
            (one for one in keys[:_MAX_KEYS_TRIED] if one.proves(token.algorithm, token.signed, token.signature)), None
        )
        if signer is None:
            raise invalid("its signature is not its issuer's")
        ends_at = check_claims(token, method, self._clock.now().timestamp())
        return _Verified(issuer, signer.thumbprint, claimed_by(token.claims, method), ends_at)

    async def _verdict_of(self, verified: _Verified) -> Verdict:
        """What it is good for; somebody who is no member yet becomes one, where that is how it is configured."""
        claimed = verified.claimed
        verdict = await self.verdicts.of(claimed.subject)
        if verdict is NO_MEMBER and self._method_of(claimed).provision:
            async with self._taking_in:  # writers queue anyhow; and who comes twice finds themselves there
                verdict = await self._taken_in(claimed)
        if verdict.principal is not None and not verified.is_listed:
            verified.is_listed = True
            await self._keep_listed(claimed, verdict.principal)
        return verdict

    async def _taken_in(self, claimed: Claimed) -> Verdict:
        """Raises Unavailable."""
        try:
            async with asyncio.timeout(_TAKE_IN_SECONDS):
                verdict = (await self.verdicts.again([claimed.subject]))[claimed.subject]
                if verdict is not NO_MEMBER:
                    return verdict
                await self._members.take_in(claimed)
                return (await self.verdicts.again([claimed.subject]))[claimed.subject]
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.exception("a token's subject could not be made a member", tenant=claimed.subject.tenant_id)
            raise Unavailable("the database does not answer; try again", retry_after_seconds=1) from error

    async def _keep_listed(self, claimed: Claimed, principal: Principal) -> None:
        """Once a token: what the members' list says is what the token does. A failure is logged, and refuses nobody."""
        try:
            async with asyncio.timeout(_TAKE_IN_SECONDS):
                if not await self._members.is_as_listed(claimed, principal):
                    await self._members.bring_up_to_date(claimed, principal)
        except (SQLAlchemyError, Unavailable, OSError, TimeoutError):
            log.exception("a member could not be brought up to date", member=principal.member_id)

    def _method_of(self, claimed: Claimed) -> BearerAuth:
        return self._methods[claimed.subject.issuer]

    def _remember(self, handle: bytes, verified: _Verified) -> None:
        self._verified[handle] = verified
        while len(self._verified) > _MAX_TOKENS:
            self._verified.popitem(last=False)

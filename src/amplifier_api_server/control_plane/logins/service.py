"""Logins: from a provider's word to a browser's session, and what a person does with that.

Invariants: a login begins and ends in the same browser; a person is found by (provider, subject) alone, never by an e-mail
address; a new login has a new secret, which leaves here once, in its cookie; nobody acts as a member that they are not.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

import structlog

from amplifier_api_server.control_plane.audit.recording import record
from amplifier_api_server.control_plane.auth.headers import Headers
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.invitations import service as invitations_service
from amplifier_api_server.control_plane.logins import begun as begun_logins
from amplifier_api_server.control_plane.logins import cookies, csrf
from amplifier_api_server.control_plane.logins.begun import Begun
from amplifier_api_server.control_plane.logins.identifying import logged_in, principal_of, registered
from amplifier_api_server.control_plane.logins.known_logins import KnownLogins, counts, digest_of, judge
from amplifier_api_server.control_plane.logins.places import HOME, checked_next, is_secure, own_origin
from amplifier_api_server.control_plane.logins.profiles import Answered, Profile
from amplifier_api_server.control_plane.logins.providers import Providers
from amplifier_api_server.control_plane.logins.sweeping import LoginSweep
from amplifier_api_server.control_plane.logins.throttle import Throttles
from amplifier_api_server.control_plane.logins.used_states import UsedStates
from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.control_plane.origin import current_origin
from amplifier_api_server.control_plane.secrets import Vault
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import Forbidden, NotFound, Unauthenticated
from amplifier_api_server.tenants.ids import LoginId, MemberId, PersonId, TenantId
from amplifier_api_server.tenants.models import Identity, Member, Person
from amplifier_api_server.tenants.repository import logins, people
from amplifier_api_server.tenants.repository.logins import LoginFacts
from amplifier_api_server.tenants.repository.people import Membership

log = structlog.get_logger(__name__)


class LoginDesk:
    """What logins need of the process. `run` beside the server, `sweep` now and then, `close` at the end."""

    def __init__(self, settings: Settings, database: Database, pepper: bytes, clock: Clock) -> None:
        self.pepper = pepper
        self.known = KnownLogins(database, settings, pepper, clock)
        self._sweep = LoginSweep(database, clock)
        self.providers = Providers(settings, clock)
        self.throttles = Throttles(clock)
        self.used_states = UsedStates(clock)
        # A key of its own: what is sealed here opens nothing of a tenant's.
        self.vault = Vault(hmac.digest(pepper, b"begun logins and waiting devices", "sha256"))

    async def run(self) -> None:
        """For ever."""
        await self.known.run()

    async def sweep(self) -> None:
        await self._sweep.sweep()

    async def close(self) -> None:
        """The authenticator closes what is known of logins."""
        await self.providers.close()


class LoginServices(Management, Protocol):
    """What logins need of the application."""

    @property
    def logins(self) -> LoginDesk: ...

    async def on_login_changed(self, login_id: LoginId) -> None:
        """It is over, or acts as another member: forget what was known of it, end what it has open."""


@dataclass(frozen=True, slots=True)
class Started:
    """Where the browser goes, and what it keeps meanwhile."""

    location: str
    cookies: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Finished:
    next: str
    cookies: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Current:
    """Who is logged in by this request's cookie."""

    facts: LoginFacts
    secret: bytes
    person: Person

    @property
    def login_id(self) -> LoginId:
        return LoginId(self.facts.login_id)

    @property
    def csrf_token(self) -> str:
        return csrf.token_of(self.secret)


@dataclass(frozen=True, slots=True)
class LoginInfo:
    """What GET /auth/session tells."""

    current: Current
    memberships: Sequence[Membership]
    identities: Sequence[Identity]


async def current(services: LoginServices, headers: Headers) -> Current:
    """Who is logged in, a member of a tenant or not. Raises Unauthenticated (`not_logged_in`)."""
    found = await find_current(services, headers)
    if found is None:
        raise Unauthenticated("nobody is logged in here; GET /auth/methods lists the ways in", code="not_logged_in")
    return found


async def find_current(services: LoginServices, headers: Headers) -> Current | None:
    secret = csrf.login_cookie(services.settings, headers)
    if secret is None:
        return None
    digest = digest_of(services.logins.pepper, secret)
    async with services.database.read() as db:
        facts = (await logins.find_by_digest_of_all_tenants(db, [digest])).get(digest)
        if facts is None or not counts(facts, services.settings, services.clock.now()):
            return None
        person = await people.find_of_all_tenants(db, PersonId(facts.person_id))
    if person is None:
        return None
    services.logins.known.was_used(facts.login_id)
    return Current(facts, secret, person)


async def start(
    services: LoginServices, name: str, headers: Headers, *, following: str | None, link: bool, csrf_token: str
) -> Started:
    """Begin a login by the method `name`, or (`link`) add another identity to who is logged in.

    Raises NotFound, Invalid, Unavailable; Forbidden (`csrf_failed`) for a link that no page of ours asked for.
    """
    services.logins.providers.method(name)
    link_login = ""
    if link:
        mine = await current(services, headers)
        # A GET that is followed, so its token stands in the address: whoever sees that lacks the cookie still.
        csrf.require_token(mine.secret, csrf_token)
        link_login = mine.login_id
    origin = own_origin(services.settings, headers)
    begun = begun_logins.begin(name, checked_next(following), link_login, services.clock.now())
    location = await services.logins.providers.authorize_url(begun, _redirect_uri(origin, name))
    vault, secure = services.logins.vault, is_secure(origin)
    kept = cookies.begun_in(headers, secure=secure)
    forget = [cookies.clearing(kind, secure=secure) for kind in begun_logins.surplus(vault, kept)]
    kind, value = cookies.begun(begun.state), begun_logins.sealed(vault, begun)
    return Started(location, [*forget, cookies.setting(kind, value, begun_logins.LIFETIME, secure=secure)])


def forgetting(services: LoginServices, headers: Headers, state: str) -> tuple[str, str]:
    """The header that takes the cookie of the login away that was begun with this state."""
    return cookies.clearing(cookies.begun(state), secure=is_secure(own_origin(services.settings, headers)))


def clearing_login(services: LoginServices, headers: Headers) -> tuple[str, str]:
    """The same for a login's own cookie."""
    return cookies.clearing(cookies.LOGIN, secure=is_secure(own_origin(services.settings, headers)))


async def finish(services: LoginServices, name: str, headers: Headers, query: Mapping[str, str]) -> Finished:
    """End what was begun in this browser. Commits. Whoever is logged in already is led on by an answer that was taken before,
    as going back in the browser sends it. Raises Forbidden (`login_not_begun`, `login_expired`, `login_state`,
    `login_denied`, `login_failed`), Conflict (`identity_taken`), NotFound, Refused, Unavailable.
    """
    method = services.logins.providers.method(name)
    origin = own_origin(services.settings, headers)
    secure = is_secure(origin)
    try:
        begun = _begun(services, name, headers, query.get("state", ""), secure=secure)
    except Forbidden:
        if await find_current(services, headers) is None:
            raise
        return Finished(HOME, [])
    forget = cookies.clearing(cookies.begun(begun.state), secure=secure)
    answered = _answered(query, begun, method.label or name)
    try:
        profile = await _profile(services, answered, begun, _redirect_uri(origin, name))
    except _UsedAlreadyError:
        mine = await find_current(services, headers)
        if mine is None or begun.link_login not in ("", mine.login_id):
            raise
        return Finished(begun.next, [forget])
    mine = await find_current(services, headers)
    if begun.link_login:
        if mine is None or mine.login_id != begun.link_login:
            raise Forbidden(
                "who wanted to add this identity is logged in no more; log in again, then add it", code="login_state"
            )
        await registered(services, method, profile, link=mine.facts)
        return Finished(begun.next, [forget])
    secret = secrets.token_urlsafe(32)
    digest = digest_of(services.logins.pepper, secret.encode())
    ended = await logged_in(services, method, profile, digest, replaces=mine.login_id if mine is not None else None)
    for login_id in ended:
        await services.on_login_changed(LoginId(login_id))
    lifetime = services.settings.auth.login.max_duration
    return Finished(begun.next, [forget, cookies.setting(cookies.LOGIN, secret, lifetime, secure=secure)])


class _UsedAlreadyError(Forbidden):
    """A begun login whose provider's answer was taken before."""


def _begun(services: LoginServices, name: str, headers: Headers, state: str, *, secure: bool) -> Begun:
    """What an answer with this state ends. Raises Forbidden (`login_not_begun`, `login_expired`, `login_state`)."""
    kind, kept = cookies.begun(state), cookies.begun_in(headers, secure=secure)
    if kept and kind not in kept:
        raise Forbidden(
            "this answer belongs to no login that was begun in this browser; begin again", code="login_state"
        )
    return begun_logins.opened(services.logins.vault, kept.get(kind), name, services.clock.now())


async def _profile(services: LoginServices, answered: Answered, begun: Begun, redirect_uri: str) -> Profile:
    """Who logged in, by asking the provider. Anybody can send an answer, so a network has a share of the places, and only so
    many that come to nothing; and what was begun is asked about once. Raises Refused, Unavailable, Forbidden.
    """
    desk, network = services.logins, current_origin().network
    counted_as = f"{begun.provider} {network}"
    with desk.providers.place(begun.provider, network):
        desk.throttles.callbacks.take(counted_as)
        if not desk.used_states.use(begun.state, network):
            raise _UsedAlreadyError("this login's answer was used already; begin again", code="login_failed")
        profile = await desk.providers.profile(answered, begun, redirect_uri)
    desk.throttles.callbacks.give_back(counted_as)
    return profile


def _answered(query: Mapping[str, str], begun: Begun, label: str) -> Answered:
    """What the provider's redirect says, once it is certain which login it is about."""
    if not hmac.compare_digest(query.get("state", "").encode(), begun.state.encode()):
        raise Forbidden(
            "this answer belongs to another login than the one that was begun; begin again", code="login_state"
        )
    if (error := query.get("error")) is not None:
        log.info("a provider refused a login", provider=begun.provider, error=error[:100])
        detail = f"{label} did not log you in: {_plain(query.get('error_description') or error)}"
        raise Forbidden(detail, code="login_denied")
    code = query.get("code", "")
    if not code:
        raise Forbidden("the provider's answer has no code; begin again", code="login_failed")
    return Answered(code, query.get("iss"))


def _plain(text: str) -> str:
    """Somebody else's words (RFC 6749 says which characters there can be), cut."""
    return "".join(char for char in text[:200] if char.isprintable())


def _redirect_uri(origin: str, name: str) -> str:
    """One for each method: an answer can't be taken for another provider's (RFC 9700, 4.4)."""
    return f"{origin}/auth/callback/{quote(name)}"


async def info(services: LoginServices, found: Current) -> LoginInfo:
    async with services.database.read() as db:
        person_id = PersonId(found.person.id)
        memberships = await people.memberships_of_all_tenants(db, person_id)
        identities = await people.identities_of_all_tenants(db, person_id)
    return LoginInfo(found, memberships, identities)


async def select_tenant(services: LoginServices, found: Current, tenant_id: TenantId) -> None:
    """Act as a member of this tenant from now on. Commits. Raises NotFound where they are none."""
    async with services.database.write() as db:
        memberships = await people.memberships_of_all_tenants(db, PersonId(found.person.id))
        chosen = next((one for one in memberships if one.tenant_id == tenant_id), None)
        if chosen is None:
            raise NotFound(f"you are no member of a tenant {tenant_id[:64]}", code="tenant_not_found")
        await logins.act_as_of_all_tenants(db, found.login_id, tenant_id=chosen.tenant_id, member_id=chosen.member_id)
    await services.on_login_changed(found.login_id)


async def log_out(services: LoginServices, found: Current) -> None:
    """End the login. Commits; doing it again changes nothing."""
    by = principal_of(services, found.facts)
    async with services.database.write() as db:
        was_there = await logins.revoke_of_all_tenants(db, found.login_id, services.clock.now())
        if was_there and by is not None:
            await record(db, services.clock, by, "logOut", target=found.login_id)
    await services.on_login_changed(found.login_id)


async def accept_invitation(services: LoginServices, found: Current, token: str) -> Member:
    """Become a member, and act as it. Commits. Raises what `invitations.service.accept` raises."""
    member = await invitations_service.accept(services, found.person, token)
    async with services.database.write() as db:
        await logins.act_as_of_all_tenants(
            db, found.login_id, tenant_id=TenantId(member.tenant_id), member_id=MemberId(member.id)
        )
    await services.on_login_changed(found.login_id)
    return member


def acting(services: LoginServices, found: Current) -> Principal | None:
    """The member that they act as; None where there is none that may."""
    return principal_of(services, found.facts)


def require_acting(services: LoginServices, found: Current) -> Principal:
    """The same. Raises Forbidden (`no_membership`, `member_disabled`, `tenant_suspended`)."""
    return judge(found.facts, services.settings, services.clock.now()).admit(services.clock.now().timestamp())

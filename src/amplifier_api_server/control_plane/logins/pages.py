"""The few pages that a person sees: who is logged in, what went wrong, and the device that asks to be let in.

They work without a script and by keyboard. Owns escaping. Refuses to decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final
from urllib.parse import quote

from amplifier_api_server.control_plane.auth_settings import OAuth2Auth
from amplifier_api_server.control_plane.html_page import page
from amplifier_api_server.control_plane.invitations.service import Offer
from amplifier_api_server.control_plane.logins.service import LoginInfo
from amplifier_api_server.tenants.errors import DomainError
from amplifier_api_server.tenants.models import DeviceGrant

DEVICE: Final = "/auth/device"
INVITATION: Final = "/auth/invitation"


def problem_page(error: DomainError) -> str:
    body = (
        f'<p class="wrong" role="alert">{escape(error.detail)}</p>\n'
        f'<p>Code: <a href="/errors/{quote(error.stable_code)}"><code>{escape(error.stable_code)}</code></a></p>\n'
        '<p><a href="/auth/session">Who is logged in?</a></p>'
    )
    return page("That did not work", body)


def session_page(info: LoginInfo) -> str:
    """Who is logged in, and as what."""
    rows = "".join(
        f"<li>{escape(one.tenant_name)} <code>{escape(one.tenant_id)}</code> as {escape(one.role)}"
        + (" (chosen)" if one.tenant_id == info.current.facts.tenant_id else "")
        + (f" ({escape(one.status)})" if one.status != "active" else "")
        + "</li>"
        for one in info.memberships
    )
    told = f"<p>You are a member of:</p><ul>{rows}</ul>" if rows else _NO_MEMBER
    ways = ", ".join(escape(one.name or one.subject) + f" by {escape(one.provider)}" for one in info.identities)
    return page("You are logged in", f"{_who(info)}{told}<p>You log in as: {ways}</p>")


_NO_WAY: Final = (
    '<p class="wrong">This server has no way to log in by a browser. '
    "Whoever runs it can add one (auth.methods, oauth2).</p>"
)


def nobody_page(methods: Sequence[OAuth2Auth]) -> str:
    return page("Nobody is logged in", _ways_in(methods, "/auth/session") or _NO_WAY)


_NO_MEMBER: Final = (
    '<p class="wrong">You are a member of no tenant yet. Ask an admin of one for an invitation, and open its link.</p>'
)


def code_page(info: LoginInfo, *, wrong: str = "") -> str:
    """Where somebody who is logged in types the code that their device shows."""
    form = (
        f'<form method="get" action="{DEVICE}">{_code_field("")}<button type="submit">Continue</button></form>'
        if info.current.facts.member_id
        else _NO_MEMBER
    )
    return page("Let a device in", f"{_alert(wrong)}{_who(info)}{form}")


def confirm_page(info: LoginInfo, grant: DeviceGrant, code: str) -> str:
    """The device, and the question; for somebody who is logged in."""
    role = next((one for one in info.memberships if one.member_id == info.current.facts.member_id), None)
    gets = f"It gets an API key of yours, with your role{f' ({escape(role.role)})' if role is not None else ''}." + (
        f" It works in the tenant {escape(role.tenant_name)}." if role is not None else ""
    )
    fields = _hidden("csrf_token", info.current.csrf_token) + _hidden("user_code", code)
    return page("Let this device in?", f"{_who(info)}{_device(grant, code, gets)}{_question(fields)}")


def stranger_page(methods: Sequence[OAuth2Auth], code: str, *, takes_keys: bool, wrong: str = "") -> str:
    """For somebody who is not logged in: the ways to say who they are."""
    back = DEVICE + (f"?user_code={quote(code)}" if code else "")
    ways = _ways_in(methods, back)
    by_key = (
        f'<form method="post" action="{DEVICE}/decide"><fieldset><legend>'
        f"{'Or show' if ways else 'Show'} an API key of yours. The device gets this very key.</legend>{_code_field(code)}"
        '<label for="api_key">API key</label>'
        '<input id="api_key" name="api_key" type="password" autocomplete="off" required maxlength="200">'
        '<button type="submit" name="decision" value="look">Continue</button></fieldset></form>'
        if takes_keys
        else ""
    )
    return page(
        "Let a device in", f"{_alert(wrong)}<p>A device asks to be let in. First say who you are.</p>{ways}{by_key}"
    )


def confirm_key_page(grant: DeviceGrant, code: str, key: str, ticket: str) -> str:
    """The same question, for somebody who showed a key; `ticket` is what says so."""
    who = f"<p>With the API key that ends in <code>{escape(key[-4:])}</code></p>"
    gets = "It gets this very key, and may do what the key may."
    return page("Let this device in?", f"{who}{_device(grant, code, gets)}{_question(_hidden('ticket', ticket))}")


def decided_page(grant: DeviceGrant, *, approved: bool) -> str:
    name = escape(grant.name)
    if approved:
        return page("The device is let in", f"<p>{name} gets its key now. You can close this page.</p>")
    return page("The device is not let in", f"<p>{name} gets nothing. You can close this page.</p>")


def invited_page(methods: Sequence[OAuth2Auth], token: str) -> str:
    """For somebody who was invited and is not logged in."""
    ways = _ways_in(methods, f"{INVITATION}?token={quote(token)}") or _NO_WAY
    return page(
        "You are invited", f"<p>First say who you are, by an account with the address you were invited by.</p>{ways}"
    )


def join_page(info: LoginInfo, offer: Offer, token: str) -> str:
    """The question, for somebody who is logged in."""
    fields = _hidden("csrf_token", info.current.csrf_token) + _hidden("token", token)
    told = f"<p>You are invited to <strong>{escape(offer.tenant_name)}</strong>, as {escape(offer.role)}.</p>"
    form = f'<form method="post" action="{INVITATION}">{fields}<button type="submit" class="yes">Join</button></form>'
    return page("Join?", f"{_who(info)}{told}{form}")


def _device(grant: DeviceGrant, code: str, gets: str) -> str:
    return (
        "<p>Only go on if you have just started this yourself, and the code is the one that your device shows.</p>"
        f"<dl><dt>Device</dt><dd>{escape(grant.name)}</dd><dt>Code</dt><dd><code>{escape(code)}</code></dd>"
        f"<dt>It asks from</dt><dd>{escape(grant.address or 'an address that is not known')}</dd>"
        f"<dt>Since</dt><dd>{escape(grant.created_at.strftime('%Y-%m-%d %H:%M:%S UTC'))}</dd></dl><p>{gets}</p>"
    )


def _question(fields: str) -> str:
    return (
        f'<form method="post" action="{DEVICE}/decide">{fields}'
        '<button type="submit" class="yes" name="decision" value="approve">Let it in</button>'
        '<button type="submit" name="decision" value="deny">No</button></form>'
    )


def _who(info: LoginInfo) -> str:
    person = info.current.person
    email = f" ({escape(person.email)})" if person.email else ""
    return f"<p>You are logged in as <strong>{escape(person.name)}</strong>{email}.</p>"


def _ways_in(methods: Sequence[OAuth2Auth], following: str) -> str:
    links = "".join(
        f'<a class="button" href="/auth/login/{quote(one.name)}?next={quote(following, safe="")}">'
        f"Log in with {escape(one.label or one.name)}</a>"
        for one in methods
    )
    return f"<p>{links}</p>" if links else ""


def _code_field(code: str) -> str:
    return (
        '<label for="user_code">Code that your device shows</label>'
        f'<input id="user_code" name="user_code" value="{escape(code)}" autocomplete="off" autocapitalize="characters" '
        'spellcheck="false" required maxlength="20" placeholder="XXXX-XXXX">'
    )


def _hidden(name: str, value: str) -> str:
    return f'<input type="hidden" name="{name}" value="{escape(value)}">'


def _alert(wrong: str) -> str:
    return f'<p class="wrong" role="alert">{escape(wrong)}</p>' if wrong else ""

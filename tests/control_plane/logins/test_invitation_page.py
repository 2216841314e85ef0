"""The page that an invitation's link opens: who follows it logs in, is asked, and joins."""

import re
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit

from amplifier_api_server.control_plane.invitations import service as invitations
from amplifier_api_server.control_plane.invitations.schemas import LINK
from amplifier_api_server.tenants.ids import TenantId
from tests.control_plane.logins.browser import HTML
from tests.control_plane.logins.conftest import House

PATH = "/auth/invitation"


async def invited(house: House, email: str = "ada@example.com", **tenant: Any) -> tuple[str, str]:
    """The link, and the token in it."""
    made = await house.embedded.tenant(**tenant)
    wish = invitations.Wish(email, "developer")
    sent = await invitations.create(house.embedded, TenantId(made.id), "cli", wish)
    return LINK.format(token=sent.token), sent.token


def form_of(text: str) -> dict[str, str]:
    assert re.search(rf'<form method="post" action="{PATH}">', text), text
    return dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', text))


async def test_who_follows_the_link_logs_in_and_joins(house):
    link, _ = await invited(house, name="Rooks & <b>Crows</b>")
    browser = house.browser()
    stranger = await browser.get(link, headers=HTML)
    assert stranger.status_code == 401
    assert "Rooks" not in stranger.text  # whose it is, is for who is invited
    way_in = unescape(re.search(r'href="(/auth/login/company[^"]*)"', stranger.text)[1])
    assert parse_qs(urlsplit(way_in).query)["next"] == [link]
    back = await browser.log_in("ada", following="?" + urlsplit(way_in).query)
    assert (back.status_code, back.headers["location"]) == (303, link)
    asked = await browser.get(link, headers=HTML)
    assert asked.status_code == 200
    assert "Rooks &amp; &lt;b&gt;Crows&lt;/b&gt;" in asked.text
    assert (await browser.session())["memberships"] == []  # to look is not to join
    joined = await browser.client.post(browser.home + PATH, data=form_of(asked.text), headers={"Origin": browser.home})
    assert (joined.status_code, joined.headers["location"]) == (303, "/auth/session")
    (membership,) = (await browser.session())["memberships"]
    assert membership["role"] == "developer"
    again = await browser.get(link, headers=HTML)
    assert again.status_code == 409
    assert "invitation_used" in again.text


async def test_another_site_makes_nobody_join(house):
    link, token = await invited(house)
    browser = house.browser()
    await browser.log_in("ada")
    form = form_of((await browser.get(link, headers=HTML)).text)
    for data, headers in (
        (form, {"Origin": "https://evil.example"}),
        (form, {}),
        ({"token": token, "csrf_token": ""}, {"Origin": browser.home}),
        ({"token": token, "csrf_token": "é" * 43}, {"Origin": browser.home}),
    ):
        refused = await browser.client.post(browser.home + PATH, data=data, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "csrf_failed")
    assert (await browser.session())["memberships"] == []


async def test_an_invitation_of_somebody_else_shows_nothing(house):
    link, _ = await invited(house, "eve@example.com", name="Rooks")
    browser = house.browser()
    await browser.log_in("ada")
    refused = await browser.get(link, headers=HTML)
    assert refused.status_code == 403
    assert "Rooks" not in refused.text
    for token in ("", "amp_inv_" + "0" * 40, "<script>", "x" * 201):
        answer = await browser.get(PATH, params={"token": token}, headers=HTML)
        assert answer.status_code in (404, 422)
        assert "<script>" not in answer.text

"""Logging in by a real OpenID Connect provider, and what is refused on the way."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from amplifier_api_server.control_plane.logins import begun as begun_logins
from amplifier_api_server.tenants.repository import subjects
from tests.control_plane.logins.browser import HTML
from tests.control_plane.logins.conftest import company, house_in


def query_of(address: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}


def with_query(address: str, **changes: str | None) -> str:
    query = {**query_of(address), **changes}
    kept = {name: value for name, value in query.items() if value is not None}
    return urlsplit(address)._replace(query=urlencode(kept)).geturl()


async def called_back(house, browser, who="ada") -> str:
    return await browser.until_callback(await browser.begin("/auth/login/company"), who)


async def refused(browser, address: str, status: int, code: str) -> None:
    """It ends with this problem, and nobody is logged in."""
    answer = await browser.get(address)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert not [one for one in answer.headers.get_list("set-cookie") if "Max-Age=0" not in one], "nothing is set"
    assert (await browser.get("/auth/session")).json()["code"] == "not_logged_in"


async def test_a_member_logs_in_and_acts_by_the_cookie(house):
    member = await house.member("ada")
    browser = house.browser()
    answer = await browser.log_in("ada", following="?next=/docs")
    assert (answer.status_code, answer.headers["location"]) == (303, "/docs")
    session = await browser.session()
    assert session["person"]["email"] == "ada@example.com"
    assert (session["tenant_id"], session["member_id"]) == (member.tenant_id, member.id)
    assert [one["role"] for one in session["memberships"]] == ["admin"]
    keys = await browser.get("/v1/keys")
    assert keys.status_code == 200
    me = (await browser.get("/v1/me")).json()
    assert (me["method"], me["member"]["id"]) == ("login", member.id)


async def test_the_provider_is_asked_with_pkce_state_and_nonce(house):
    query = query_of(await house.browser().begin("/auth/login/company"))
    assert query["code_challenge_method"] == "S256"
    assert len(query["code_challenge"]) == 43
    assert len(query["state"]) >= 43
    assert len(query["nonce"]) >= 43
    assert query["redirect_uri"] == "http://127.0.0.1:8000/auth/callback/company"
    again = query_of(await house.browser().begin("/auth/login/company"))
    assert not {query[name] for name in ("state", "nonce", "code_challenge")} & set(again.values())


async def test_an_answer_without_the_browser_that_began_is_refused(house):
    address = await called_back(house, house.browser())
    await refused(house.browser(), address, 403, "login_not_begun")


@pytest.mark.parametrize("state", ["", "another", None])
async def test_an_answer_with_another_state_is_refused(house, state):
    browser = house.browser()
    address = await called_back(house, browser)
    await refused(browser, with_query(address, state=state), 403, "login_state")
    assert (await browser.get(address)).status_code == 303, "who disturbs a login does not end it"


async def test_an_answer_of_another_issuer_or_of_none_is_refused(house):
    for issuer in ("https://elsewhere.example", None):
        browser = house.browser()
        await refused(browser, with_query(await called_back(house, browser), iss=issuer), 403, "login_failed")


async def test_logins_that_were_begun_in_two_tabs_both_end_in_whichever_order(house):
    for order in ((0, 1), (1, 0)):
        browser = house.browser()
        tabs = [await called_back(house, browser), await called_back(house, browser)]
        for tab in order:
            assert (await browser.get(tabs[tab])).headers["location"] == "/auth/session"
        assert browser.begun() == []


async def test_of_many_begun_logins_the_oldest_goes(house):
    browser, tabs = house.browser(), []
    for _ in range(begun_logins.MAX_BEGUN + 2):
        tabs.append(await browser.begin("/auth/login/company"))
        house.embedded.clock.advance(1)
    assert len(browser.begun()) == begun_logins.MAX_BEGUN
    await refused(browser, await browser.until_callback(tabs[1]), 403, "login_state")
    assert (await browser.get(await browser.until_callback(tabs[2]))).status_code == 303


async def test_whoever_goes_back_to_an_answer_that_was_taken_is_led_on(house):
    browser = house.browser()
    address = await browser.until_callback(await browser.begin("/auth/login/company?next=/docs"))
    ((name, cookie),) = browser.begun()
    assert (await browser.get(address)).headers["location"] == "/docs"
    session = await browser.session()
    again = await browser.get(address)
    assert (again.status_code, again.headers["location"]) == (303, "/auth/session")
    browser.client.cookies.set(name, cookie, domain="127.0.0.1", path="/")  # sent twice before the answer came
    again = await browser.get(address)
    assert (again.status_code, again.headers["location"]) == (303, "/docs")
    assert await browser.session() == session
    await browser.post("/auth/logout")
    await refused(browser, address, 403, "login_not_begun")


async def test_an_id_token_with_another_nonce_is_refused(house):
    browser = house.browser()
    address = await called_back(house, browser)
    ((_name, cookie),) = browser.begun()
    begun = begun_logins.opened(house.desk.vault, cookie.encode(), "company", house.embedded.clock.now())
    forged = begun_logins.sealed(house.desk.vault, replace(begun, nonce="another"))
    browser.replace_begun(forged)
    await refused(browser, address, 403, "login_failed")


async def test_a_code_without_its_verifier_is_refused_by_the_provider(house):
    browser = house.browser()
    address = await called_back(house, browser)
    ((_name, cookie),) = browser.begun()
    begun = begun_logins.opened(house.desk.vault, cookie.encode(), "company", house.embedded.clock.now())
    forged = begun_logins.sealed(house.desk.vault, replace(begun, verifier="x" * 64))
    browser.replace_begun(forged)
    await refused(browser, address, 403, "login_failed")


async def test_an_answer_counts_once(house):
    browser = house.browser()
    address = await called_back(house, browser)
    ((name, cookie),) = browser.begun()
    assert (await browser.get(address)).status_code == 303
    other = house.browser()
    await refused(other, address, 403, "login_not_begun")
    other.client.cookies.set(name, cookie, domain="127.0.0.1", path="/")
    await refused(other, address, 403, "login_failed")


async def test_a_login_that_was_begun_long_ago_is_refused(house):
    browser = house.browser()
    address = await called_back(house, browser)
    house.embedded.clock.advance(begun_logins.LIFETIME.total_seconds() + 1)
    await refused(browser, address, 403, "login_expired")


async def test_a_cookie_of_another_method_or_a_spoiled_one_is_refused(house):
    browser = house.browser()
    address = await called_back(house, browser)
    ((name, cookie),) = browser.begun()
    for spoiled in (cookie[:-4], cookie[:-4] + "AAAA", "x", "\x7f"):
        browser.client.cookies.clear()
        browser.client.cookies.set(name, spoiled, domain="127.0.0.1", path="/")
        await refused(browser, address, 403, "login_not_begun")


async def test_somebody_who_says_no_at_the_provider_is_told_so(house):
    browser = house.browser()
    location = await browser.begin("/auth/login/company")
    address = await browser.until_callback(location, consents=False)
    page = await browser.get(address, headers=HTML)
    assert page.status_code == 403
    assert "login_denied" in page.text
    assert page.headers["content-type"].startswith("text/html")
    assert (await browser.get("/auth/session")).status_code == 401


async def test_a_provider_that_is_down_is_told(tmp_path, issuer):
    gone = company("http://127.0.0.1:9")
    async with house_in(tmp_path, gone, issuer=issuer) as house:
        answer = await house.browser().get("/auth/login/company")
        assert (answer.status_code, answer.json()["code"]) == (503, "login_provider_unavailable")
        page = await house.browser().get("/auth/login/company", headers=HTML)
        assert (page.status_code, page.headers["retry-after"]) == (503, "10")


@pytest.mark.parametrize(
    "following",
    ["https://evil.example", "//evil.example", "/\\evil.example", "/\t/evil.example", "evil", "/" + "a" * 1100],
)
async def test_next_leads_nowhere_else(house, following):
    answer = await house.browser().get("/auth/login/company", params={"next": following})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_there_is_no_other_method(house):
    for path in ("/auth/login/github", "/auth/callback/github"):
        answer = await house.browser().get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_login_method")


async def test_a_field_that_is_there_twice_is_refused(house):
    browser = house.browser()
    address = await called_back(house, browser)
    await refused(browser, address + "&state=x", 422, "invalid_request")


async def test_somebody_new_is_told_that_they_need_an_invitation_and_takes_it(house):
    browser = house.browser()
    await browser.log_in("grace")
    assert (await browser.session())["memberships"] == []
    page = await browser.get("/auth/session", headers=HTML)
    assert "member of no tenant" in page.text
    assert (await browser.get("/v1/keys")).json()["code"] == "no_membership"
    made = await house.doors.admin.post("/v1/invitations", json={"email": "grace@example.com", "role": "developer"})
    assert made.status_code == 201, made.text
    answer = await browser.post("/auth/invitations/accept", json={"token": made.json()["token"]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["tenant_id"] == answer.json()["memberships"][0]["tenant_id"]
    assert (await browser.get("/v1/me")).json()["role"] == "developer"
    again = await browser.post("/auth/invitations/accept", json={"token": made.json()["token"]})
    assert again.json()["code"] == "invitation_used"


async def test_an_invitation_is_not_for_an_address_that_nobody_verified(house):
    browser = house.browser()
    await browser.log_in("unverified-eve")
    assert (await browser.session())["person"]["email"] is None
    made = await house.doors.admin.post(
        "/v1/invitations", json={"email": "unverified-eve@example.com", "role": "developer"}
    )
    answer = await browser.post("/auth/invitations/accept", json={"token": made.json()["token"]})
    assert (answer.status_code, answer.json()["code"]) == (403, "invitation_other_email")


async def test_who_signs_up_gets_a_tenant_once(tmp_path, issuer):
    method = company(issuer, signup="tenant", signup_tier="free")
    async with house_in(tmp_path, method, issuer=issuer) as house:
        first, second = house.browser(), house.browser()
        await asyncio.gather(first.log_in("linus"), second.log_in("linus"))
        one, other = await first.session(), await second.session()
        assert one["memberships"] == other["memberships"]
        assert [(it["role"], it["tenant_name"]) for it in one["memberships"]] == [("admin", "linus of the company")]
        assert (await first.get("/v1/me")).json()["tier"] == "free"
        entries = await house.audit(one["tenant_id"])
        assert {"createTenant", "finishLogin"} <= {entry.action for entry in entries}


async def test_nobody_is_found_by_an_e_mail_address(house):
    tenant = await house.embedded.tenant()
    await house.embedded.member(tenant, email="ada@example.com")
    browser = house.browser()
    await browser.log_in("ada")
    assert (await browser.session())["memberships"] == []


async def test_the_same_person_is_known_again(house):
    for _ in range(2):
        browser = house.browser()
        await browser.log_in("ada")
        found = (await browser.session())["person"]["id"]
    async with house.embedded.database.read() as db:
        identity = await subjects.identity_of_all_tenants(db, house.issuer, "ada")
    assert identity is not None
    assert identity.person_id == found


async def test_a_public_client_logs_in_by_pkce_alone(tmp_path, issuer):
    method = {"type": "oauth2", "provider": "oidc", "name": "public", "issuer": issuer, "client_id": "public"}
    async with house_in(tmp_path, {**method, "token_auth": "none"}, issuer=issuer) as house:
        browser = house.browser()
        assert (await browser.log_in("ada", method="public")).status_code == 303
        assert (await browser.session())["person"]["name"] == "ada of the company"


async def test_the_log_says_who_logged_in_from_where(house):
    member = await house.member("ada")
    browser = house.browser()
    await browser.log_in("ada")
    await browser.post("/auth/logout")
    entries = await house.audit(member.tenant_id)
    found = {one.action: one for one in entries}
    assert found["finishLogin"].actor == member.id
    assert found["finishLogin"].address == "192.0.2.7"
    assert found["logOut"].credential_id == found["finishLogin"].target
    assert "ada@example.com" not in json.dumps([one.changes for one in entries])
    assert timedelta(0) <= house.embedded.clock.now() - found["logOut"].at < timedelta(seconds=1)

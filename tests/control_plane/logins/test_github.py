"""Logging in by GitHub, against a stand-in that follows its published API; and one person with two ways in."""

import pytest

from tests.control_plane.logins.conftest import company, house_in
from tests.control_plane.logins.fake_github import running


@pytest.fixture
def github():
    with running() as fake:
        yield fake


@pytest.fixture
async def both(tmp_path, issuer, github):
    async with house_in(tmp_path, company(issuer), github.method(), issuer=issuer) as made:
        yield made


async def test_a_person_is_known_by_the_number_of_their_account(both, github):
    browser = both.browser()
    assert (await browser.log_in(method="github")).status_code == 303
    before = (await browser.session())["person"]
    assert (before["name"], before["email"]) == ("The Octocat", "octocat@example.com")
    github.user |= {"login": "renamed"}
    github.emails[1]["email"] = "new@example.com"
    other = both.browser()
    await other.log_in(method="github")
    after = (await other.session())["person"]
    assert (after["id"], after["email"]) == (before["id"], "new@example.com")
    github.user |= {"id": 583232, "login": "octocat"}
    stranger = both.browser()
    await stranger.log_in(method="github")
    assert (await stranger.session())["person"]["id"] != before["id"], "a name that changed hands is somebody else"
    assert all(agent.startswith("amplifier-api-server/") for agent in github.agents)


@pytest.mark.parametrize(
    "emails",
    [
        [{"email": "a@example.com", "primary": True, "verified": False}],
        [{"email": "a@example.com", "primary": False, "verified": True}],
        [],
        "nonsense",
    ],
)
async def test_only_a_verified_primary_address_counts(both, github, emails):
    github.emails = emails
    browser = both.browser()
    await browser.log_in(method="github")
    assert (await browser.session())["person"]["email"] is None


async def test_who_keeps_their_addresses_to_themselves_logs_in_without(tmp_path, issuer, github):
    async with house_in(tmp_path, github.method(scopes=["read:user"]), issuer=issuer) as house:
        browser = house.browser()
        await browser.log_in(method="github")
        assert (await browser.session())["person"]["email"] is None


@pytest.mark.parametrize("user", [{"login": "x"}, {"id": "583231"}, {"id": True}, {"id": -1}, [], "x"])
async def test_an_account_without_a_number_is_nobody(both, github, user):
    github.user = user
    answer = await both.browser().log_in(method="github")
    assert (answer.status_code, answer.json()["code"]) == (403, "login_failed")


async def test_a_code_of_another_login_is_refused(both, github):
    browser, other = both.browser(), both.browser()
    location = await browser.until_callback(await browser.begin("/auth/login/github"))
    theirs = await other.until_callback(await other.begin("/auth/login/github"))
    code, state = theirs.partition("code=")[2].partition("&")[0], location.partition("state=")[2]
    answer = await browser.get(f"/auth/callback/github?code={code}&state={state}")
    assert (answer.status_code, answer.json()["code"]) == (403, "login_failed")


# Linking.


async def test_who_is_logged_in_adds_another_way_in(both):
    await both.member("ada")
    browser = both.browser()
    await browser.log_in("ada")
    before = await browser.session()
    answer = await browser.log_in(method="github", following=f"?link=true&csrf_token={before['csrf_token']}&next=/docs")
    assert (answer.status_code, answer.headers["location"]) == (303, "/docs")
    after = await browser.session()
    assert sorted(one["name"] for one in after["identities"]) == ["The Octocat", "ada of the company"]
    assert after["person"]["id"] == before["person"]["id"]
    assert after["person"]["email"] == "ada@example.com", "the address is the login's, not the added one's"
    other = both.browser()
    await other.log_in(method="github")
    assert (await other.session())["member_id"] == before["member_id"]


async def test_nothing_is_added_without_the_token_or_without_a_login(both):
    await both.member("ada")
    browser = both.browser()
    answer = await browser.get("/auth/login/github?link=true&csrf_token=x")
    assert (answer.status_code, answer.json()["code"]) == (401, "not_logged_in")
    await browser.log_in("ada")
    for token in ("", "&csrf_token=", "&csrf_token=x"):
        answer = await browser.get(f"/auth/login/github?link=true{token}")
        assert (answer.status_code, answer.json()["code"]) == (403, "csrf_failed")


async def test_what_is_somebody_elses_is_not_added(both):
    await both.member("ada")
    stranger, browser = both.browser(), both.browser()
    await stranger.log_in(method="github")
    await browser.log_in("ada")
    token = (await browser.session())["csrf_token"]
    answer = await browser.log_in(method="github", following=f"?link=true&csrf_token={token}")
    assert (answer.status_code, answer.json()["code"]) == (409, "identity_taken")
    assert len((await browser.session())["identities"]) == 1


async def test_nothing_is_added_to_a_login_that_has_ended_or_is_another_persons(both):
    await both.member("ada")
    browser = both.browser()
    await browser.log_in("ada")
    token = (await browser.session())["csrf_token"]
    location = await browser.until_callback(await browser.begin(f"/auth/login/github?link=true&csrf_token={token}"))
    ((name, begun),) = browser.begun()
    await browser.post("/auth/logout")
    assert (await browser.get(location)).json()["code"] == "login_state"
    other = both.browser()
    await other.log_in("grace")
    other.client.cookies.set(name, begun, domain="127.0.0.1", path="/")
    assert (await other.get(location)).status_code in (403, 409)
    assert len((await other.session())["identities"]) == 1

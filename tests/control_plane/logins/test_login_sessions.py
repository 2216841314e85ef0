"""What a login's cookie is, what it lets in, and how it ends."""

import asyncio
import re
from urllib.parse import urlsplit

import pytest

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.sessions.stream_rights import StreamRights
from amplifier_api_server.tenants.errors import DomainError
from tests.control_plane.logins.browser import HOME, HTML
from tests.control_plane.logins.conftest import company, house_in

HOUR = 3600


def cookies_set(answer) -> dict[str, set[str]]:
    """Attributes, by the cookies' names."""
    found = {}
    for line in answer.headers.get_list("set-cookie"):
        pair, *attributes = line.split("; ")
        name = re.sub(r"-[0-9a-f]{16}$", "-STATE", pair.partition("=")[0])
        found[name] = set(attributes)
    return found


async def test_on_this_machine_the_cookies_are_for_scripts_and_other_sites_unseen(house):
    browser = house.browser()
    begun = await browser.get("/auth/login/company")
    assert cookies_set(begun) == {"amplifier-login-STATE": {"Path=/", "Max-Age=600", "HttpOnly", "SameSite=Lax"}}
    answer = await browser.get(await browser.until_callback(begun.headers["location"]))
    assert cookies_set(answer) == {
        "amplifier-login-STATE": {"Path=/", "Max-Age=0", "HttpOnly", "SameSite=Lax"},
        "amplifier": {"Path=/", f"Max-Age={7 * 24 * HOUR}", "HttpOnly", "SameSite=Lax"},
    }


async def test_at_a_public_address_they_are_secure_and_of_this_host_alone(tmp_path, issuer):
    async with house_in(
        tmp_path, company(issuer), issuer=issuer, login={"public_url": "https://api.example.com"}
    ) as house:
        answer = await house.browser().get("/auth/login/company")
        assert cookies_set(answer) == {
            "__Host-amplifier-login-STATE": {"Path=/", "Max-Age=600", "HttpOnly", "SameSite=Lax", "Secure"}
        }
        assert "redirect_uri=https%3A%2F%2Fapi.example.com%2Fauth%2Fcallback%2Fcompany" in answer.headers["location"]
        plain = await house.browser().get("/auth/session", headers={"Cookie": "amplifier=" + "x" * 43})
        assert plain.json()["code"] == "not_logged_in"


@pytest.mark.parametrize("host", ["evil.example:8000", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "", "[::1"])
async def test_without_a_public_address_other_names_than_this_machines_own_are_not_believed(house, host):
    answer = await house.browser().get("/auth/login/company", headers={"Host": host})
    assert (answer.status_code, answer.json()["code"]) == (503, "public_url_missing")


async def test_every_login_has_a_secret_of_its_own_and_replaces_the_one_before_it(house):
    await house.member("ada")
    browser = house.browser()
    await browser.log_in()
    old = browser.client.cookies["amplifier"]
    await browser.log_in()
    new = browser.client.cookies["amplifier"]
    assert len(new) == 43
    assert new != old
    before = await house.browser().get("/auth/session", headers={"Cookie": f"amplifier={old}"})
    assert before.status_code == 401
    assert (await browser.session())["person"]["name"] == "ada"


async def test_the_cookie_is_stored_nowhere(house):
    await house.member("ada")
    browser = house.browser()
    await browser.log_in()
    secret = browser.client.cookies["amplifier"].encode()
    found = [path for path in house.embedded.settings.server.data_dir.rglob("*") if path.is_file()]
    assert found
    assert not [path for path in found if secret in path.read_bytes()]


async def test_a_login_ends_when_it_is_left_alone_and_goes_on_while_it_is_used(house):
    await house.member("ada")
    browser, clock = house.browser(), house.embedded.clock
    await browser.log_in()
    for _ in range(3):
        clock.advance(11 * HOUR)
        assert (await browser.get("/v1/me")).status_code == 200
        await house.desk.known.write_last_used()
    clock.advance(12 * HOUR + 1)
    answer = await browser.get("/v1/me")
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert (await browser.get("/auth/session")).json()["code"] == "not_logged_in"


async def test_no_login_lasts_longer_than_it_may(house):
    await house.member("ada")
    browser, clock = house.browser(), house.embedded.clock
    await browser.log_in()
    for _ in range(16):
        clock.advance(10 * HOUR)
        assert (await browser.get("/v1/me")).status_code == 200
        await house.desk.known.write_last_used()
    clock.advance(8 * HOUR + 1)
    assert (await browser.get("/v1/me")).status_code == 401


async def test_who_logs_out_is_out(house):
    await house.member("ada")
    browser = house.browser()
    await browser.log_in()
    secret = browser.client.cookies["amplifier"]
    answer = await browser.post("/auth/logout")
    assert answer.status_code == 204
    assert "Max-Age=0" in cookies_set(answer)["amplifier"]
    other = house.browser()
    again = await other.get("/v1/me", headers={"Cookie": f"amplifier={secret}"})
    assert (again.status_code, again.json()["code"]) == (401, "unauthenticated")


async def streaming(house, browser) -> asyncio.Event:
    """A stream that is open by the browser's login; set once it has ended."""
    headers = [(b"cookie", f"amplifier={browser.client.cookies['amplifier']}".encode())]
    principal = await house.embedded.authenticator.authenticate(headers)
    assert isinstance(principal, Principal)
    ended = asyncio.Event()
    house.embedded.streams.add(principal, ended.set)
    return ended


async def test_streams_end_with_the_login_and_with_the_choice_of_another_tenant(house):
    await house.member("ada")
    house.embedded.clock.advance(1)
    second = await house.member("ada")
    browser = house.browser()
    await browser.log_in()
    ended = await streaming(house, browser)
    chosen = await browser.post("/auth/tenant", json={"tenant_id": second.tenant_id})
    assert chosen.status_code == 200, chosen.text
    assert ended.is_set()
    assert chosen.json()["member_id"] == second.id
    ended = await streaming(house, browser)
    await browser.post("/auth/logout")
    assert ended.is_set()


async def test_streams_end_when_another_process_ends_the_login(house):
    member = await house.member("ada", role="developer")
    browser = house.browser()
    await browser.log_in()
    ended = await streaming(house, browser)
    rights = StreamRights(
        streams=house.embedded.streams, authenticator=house.embedded.authenticator, clock=house.embedded.clock
    )
    await rights.look()
    assert not ended.is_set()
    from amplifier_api_server.tenants.repository import members

    async with house.embedded.database.write() as db:
        await members.end_logins(db, member.tenant_id, member.id, house.embedded.clock.now())
    await rights.look()
    assert ended.is_set()


async def test_a_member_who_is_disabled_is_out(house):
    member = await house.member("ada", role="developer")
    browser = house.browser()
    await browser.log_in()
    from amplifier_api_server.tenants.repository import members

    async with house.embedded.database.write() as db:
        await members.change(db, member.tenant_id, member.id, status="disabled")
    house.embedded.authenticator.forget_tenant(member.tenant_id)
    assert (await browser.get("/v1/me")).json()["code"] == "member_disabled"


async def test_a_member_of_two_tenants_chooses_and_is_there_again_at_the_next_login(house):
    await house.member("ada", role="admin")
    house.embedded.clock.advance(1)
    second = await house.member("ada", role="readonly")
    browser = house.browser()
    await browser.log_in()
    assert (await browser.get("/v1/keys")).status_code == 200
    await browser.post("/auth/tenant", json={"tenant_id": second.tenant_id})
    assert (await browser.get("/v1/keys")).status_code == 403
    assert (await browser.get("/v1/me")).json()["tenant"]["id"] == second.tenant_id
    await browser.log_in()
    assert (await browser.session())["tenant_id"] == second.tenant_id


async def test_nobody_chooses_a_tenant_that_is_not_theirs(house):
    await house.member("ada")
    other = await house.embedded.tenant()
    browser = house.browser()
    await browser.log_in()
    for tenant_id in (other.id, "ten_none"):
        answer = await browser.post("/auth/tenant", json={"tenant_id": tenant_id})
        assert (answer.status_code, answer.json()["code"]) == (404, "tenant_not_found")


async def test_a_custom_role_holds_what_its_row_says(house):
    member = await house.member("ada", role="auditor")
    from amplifier_api_server.tenants.models import Role
    from amplifier_api_server.tenants.repository import roles

    now = house.embedded.clock.now()
    row = Role(
        id="role_x",
        tenant_id=member.tenant_id,
        name="auditor",
        permissions=["keys:read"],
        created_at=now,
        updated_at=now,
        created_by="x",
    )
    async with house.embedded.database.write() as db:
        await roles.add(db, member.tenant_id, row)
    browser = house.browser()
    await browser.log_in()
    assert (await browser.get("/v1/keys")).status_code == 200
    assert (await browser.post("/v1/keys", json={"name": "x", "role": "readonly"})).json()["code"] == "forbidden"


async def test_a_method_that_is_taken_away_takes_its_logins_along(house, issuer):
    await house.member("ada")
    browser = house.browser()
    await browser.log_in()
    headers = [(b"cookie", f"amplifier={browser.client.cookies['amplifier']}".encode())]
    from amplifier_api_server.control_plane.logins.known_logins import KnownLogins
    from amplifier_api_server.control_plane.settings import Auth
    from tests.tenants.embedded import PEPPER

    other = Auth.model_validate({"methods": [company(issuer, name="other")]})
    settings = house.embedded.settings.model_copy(update={"auth": other})
    known = KnownLogins(house.embedded.database, settings, PEPPER, house.embedded.clock)
    with pytest.raises(DomainError, match="over"):
        await known.principal_of(known.carried_in(headers))
    await known.close()


# CSRF.


async def logged_in(house, who="ada"):
    await house.member(who)
    browser = house.browser()
    await browser.log_in(who)
    return browser, (await browser.session())["csrf_token"]


OURS = {"Origin": HOME, "Sec-Fetch-Site": "same-origin"}
UNSAFE = [
    ("POST", "/v1/keys", {"name": "x", "role": "readonly"}),
    ("DELETE", "/v1/keys/key_x", None),
    ("PUT", "/v1/web-policy", {"allow": [], "deny": []}),
    ("POST", "/auth/logout", None),
    ("POST", "/auth/tenant", {"tenant_id": "ten_x"}),
    ("POST", "/auth/invitations/accept", {"token": "x"}),
]


@pytest.mark.parametrize(("method", "path", "body"), UNSAFE)
async def test_what_changes_something_needs_the_token_and_our_own_page(house, method, path, body):
    browser, token = await logged_in(house)
    _, others = await logged_in(house, "grace")
    headers = {
        "no token": OURS,
        "another login's token": {**OURS, "X-CSRF-Token": others},
        "an empty token": {**OURS, "X-CSRF-Token": ""},
        "two tokens": [*OURS.items(), ("X-CSRF-Token", token), ("X-CSRF-Token", "x")],
        "another site": {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", "X-CSRF-Token": token},
        "another port": {"Origin": "http://127.0.0.1:8001", "X-CSRF-Token": token},
        "a sibling": {"Origin": HOME, "Sec-Fetch-Site": "same-site", "X-CSRF-Token": token},
        "a sandboxed frame": {"Origin": "null", "Sec-Fetch-Site": "same-origin", "X-CSRF-Token": token},
        "who says nothing of itself": {"X-CSRF-Token": token},
    }
    for what, sent in headers.items():
        answer = await browser.client.request(method, HOME + path, json=body, headers=sent)
        assert (answer.status_code, answer.json()["code"]) == (403, "csrf_failed"), what
    answer = await browser.client.request(method, HOME + path, json=body, headers={**OURS, "X-CSRF-Token": token})
    assert answer.status_code != 403, answer.text


async def test_reading_needs_no_token(house):
    browser, _ = await logged_in(house)
    assert (await browser.get("/v1/keys", headers={"Sec-Fetch-Site": "cross-site"})).status_code == 200


async def test_a_key_beside_the_cookie_is_refused(house):
    browser, _ = await logged_in(house)
    answer = await browser.get("/v1/me", headers={"X-API-Key": house.doors.first.tenant_key})
    assert answer.status_code == 401


async def test_the_session_page_shows_names_as_text(house):
    await house.member("ada", tenant=await house.embedded.tenant(name="<script>alert(1)</script>"))
    browser = house.browser()
    await browser.log_in()
    page = await browser.get("/auth/session", headers=HTML)
    assert "<script" not in page.text
    assert "&lt;script&gt;" in page.text
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "script-src" not in policy
    assert urlsplit(HOME).scheme == "http"
    assert "strict-transport-security" not in page.headers


async def test_a_person_has_so_many_logins_and_the_oldest_ends(house, monkeypatch):
    from amplifier_api_server.control_plane.logins import identifying

    monkeypatch.setattr(identifying, "MAX_LOGINS", 2)
    await house.member("ada")
    browsers = [house.browser() for _ in range(3)]
    for browser in browsers:
        house.embedded.clock.advance(1)
        await browser.log_in()
    statuses = [(await browser.get("/v1/me")).status_code for browser in browsers]
    assert statuses == [401, 200, 200]

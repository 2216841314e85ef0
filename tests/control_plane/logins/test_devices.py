"""Device logins (RFC 8628): from a code to a key, by a login or by a key, and nobody's guess."""

import asyncio
import re
from html import unescape
from typing import Any
from urllib.parse import urlencode

import pytest

from amplifier_api_server.control_plane.logins import devices, throttle, user_codes
from amplifier_api_server.tenants.models import DeviceGrant
from amplifier_api_server.tenants.repository import members
from tests.control_plane.logins.browser import HOME, HTML
from tests.control_plane.logins.conftest import company, house_in

GRANT = "urn:ietf:params:oauth:grant-type:device_code"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
OURS = {**HTML, **FORM, "Origin": HOME, "Sec-Fetch-Site": "same-origin"}


async def begun(house, name="a laptop", **more) -> dict[str, Any]:
    answer = await house.browser(**more).client.post(f"{HOME}/auth/device/code", data={"client_name": name})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def polled(house, device_code: str, **more: str):
    form = {"grant_type": GRANT, "device_code": device_code, **more}
    return await house.browser().client.post(f"{HOME}/auth/device/token", data=form)


async def refused(house, device_code: str) -> str:
    answer = await polled(house, device_code)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert found["error_description"] == found["detail"]
    assert found["code"]
    return found["error"]


def fields(page) -> dict[str, str]:
    found = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page.text)
    return {name: unescape(value) for name, value in found}


async def sent(browser, form: dict[str, str], **headers: str):
    """As a browser posts a form."""
    return await browser.client.post(f"{HOME}/auth/device/decide", content=urlencode(form), headers={**OURS, **headers})


async def logged_in(house, who="ada", **values):
    member = await house.member(who, **values)
    browser = house.browser()
    await browser.log_in(who)
    return browser, member


async def test_a_device_gets_a_key_of_the_member_who_lets_it_in(house):
    browser, member = await logged_in(house, role="developer")
    device = await begun(house, "ada's <laptop>")
    assert re.fullmatch(r"[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}", device["user_code"])
    assert device["verification_uri_complete"] == f"{HOME}/auth/device?user_code={device['user_code']}"
    assert await refused(house, device["device_code"]) == "authorization_pending"
    page = await browser.get(f"/auth/device?user_code={device['user_code'].lower().replace('-', ' ')}", headers=HTML)
    assert page.status_code == 200
    assert "ada&#x27;s &lt;laptop&gt;" in page.text
    assert "192.0.2.7" in page.text
    assert device["user_code"] in page.text
    answer = await sent(browser, {**fields(page), "decision": "approve"})
    assert answer.status_code == 200
    assert "is let in" in answer.text
    got = (await polled(house, device["device_code"])).json()
    assert (got["token_type"], got["is_new"], got["tenant_id"]) == ("Bearer", True, member.tenant_id)
    assert 89 * 86_400 < got["expires_in"] <= 90 * 86_400
    me = (await house.doors.caller(got["access_token"]).get("/v1/me")).json()
    assert (me["member"]["id"], me["role"], me["credential_id"]) == (member.id, "developer", got["key_id"])
    actions = [one.action for one in await house.audit(member.tenant_id)]
    assert {"decideDeviceLogin", "createKey"} <= set(actions)
    assert await refused(house, device["device_code"]) == "invalid_grant"


async def test_of_many_polls_at_once_one_gets_the_key(house):
    browser, _member = await logged_in(house)
    device = await begun(house)
    page = await browser.get(f"/auth/device?user_code={device['user_code']}")
    await sent(browser, {**fields(page), "decision": "approve"})
    answers = await asyncio.gather(*(polled(house, device["device_code"]) for _ in range(8)))
    assert sorted(one.status_code for one in answers) == [200] + [400] * 7
    assert len((await browser.get("/v1/keys")).json()["keys"]) == 1


async def test_a_device_that_is_denied_or_late_is_told_so(house):
    browser, _ = await logged_in(house)
    denied, late = await begun(house), await begun(house)
    page = await browser.get(f"/auth/device?user_code={denied['user_code']}")
    assert "not let in" in (await sent(browser, {**fields(page), "decision": "deny"})).text
    assert await refused(house, denied["device_code"]) == "access_denied"
    house.embedded.clock.advance(601)
    assert await refused(house, late["device_code"]) == "expired_token"
    assert await refused(house, "x") == "invalid_grant"
    page = await browser.get(f"/auth/device?user_code={late['user_code']}", headers=HTML)
    assert page.status_code == 404
    assert "No device waits" not in page.text
    assert "has expired" in page.text


async def test_invented_device_codes_take_no_turn_among_the_writers(house):
    async with house.embedded.database.write():
        async with asyncio.timeout(60):
            assert await refused(house, "x" * 43) == "invalid_grant"


async def test_a_device_that_waits_takes_no_turn_among_the_writers(house):
    device = await begun(house)
    async with house.embedded.database.write():
        async with asyncio.timeout(60):
            answers = [await refused(house, device["device_code"]) for _ in range(3)]
    assert answers == ["authorization_pending", "slow_down", "slow_down"]


async def test_of_devices_that_asked_a_bounded_number_is_remembered(house, monkeypatch):
    monkeypatch.setattr(throttle, "_MAX_KNOWN", 2)
    waiting = [(await begun(house))["device_code"] for _ in range(3)]
    assert [await refused(house, one) for one in waiting] == ["authorization_pending"] * 3
    assert await refused(house, waiting[2]) == "slow_down"
    assert await refused(house, waiting[0]) == "authorization_pending", "the longest unheard of is forgotten"


async def test_a_device_that_asks_too_often_is_slowed_down(house):
    device = await begun(house)
    assert await refused(house, device["device_code"]) == "authorization_pending"
    assert await refused(house, device["device_code"]) == "slow_down"
    house.embedded.clock.advance(device["interval"])
    assert await refused(house, device["device_code"]) == "authorization_pending"


async def test_another_grant_type_and_a_wrong_body_are_refused(house):
    answer = await polled(house, "x", grant_type="password")
    assert (answer.status_code, answer.json()["error"]) == (400, "unsupported_grant_type")
    client = house.browser().client
    for body, media_type in ((b"{", "application/json"), (b"a=1&a=2", FORM["Content-Type"]), (b"x", "text/plain")):
        answer = await client.post(f"{HOME}/auth/device/token", content=body, headers={"Content-Type": media_type})
        assert answer.status_code in (400, 415, 422), answer.text
    assert (await client.post(f"{HOME}/auth/device/code", content=b"a" * 20_000, headers=FORM)).status_code == 413
    started = await client.post(f"{HOME}/auth/device/code", json={"client_name": "by JSON"})
    assert started.status_code == 200


async def test_a_stranger_sees_ways_in_and_nothing_of_the_device(house):
    device = await begun(house, "a secret project")
    page = await house.browser().get(f"/auth/device?user_code={device['user_code']}", headers=HTML)
    assert page.status_code == 200
    assert "secret project" not in page.text
    assert f"/auth/login/company?next=%2Fauth%2Fdevice%3Fuser_code%3D{device['user_code']}" in page.text
    browser = house.browser()
    await house.member("ada")
    back = await browser.log_in("ada", following=f"?next=%2Fauth%2Fdevice%3Fuser_code%3D{device['user_code']}")
    page = await browser.get(back.headers["location"])
    assert "a secret project" in page.text


async def test_who_has_no_login_lets_a_device_in_by_a_key(tmp_path, issuer):
    async with house_in(tmp_path, issuer=issuer) as house:
        device, browser, key = await begun(house), house.browser(), house.doors.first.tenant_key
        page = await browser.get(f"/auth/device?user_code={device['user_code']}", headers=HTML)
        assert 'name="api_key" type="password"' in page.text
        look = await sent(browser, {"user_code": device["user_code"], "api_key": key, "decision": "look"})
        assert look.status_code == 200
        assert "a laptop" in look.text
        assert key not in look.text
        answer = await sent(browser, {**fields(look), "decision": "approve"})
        assert answer.status_code == 200, answer.text
        async with house.embedded.database.read() as db:
            from amplifier_api_server.tenants.repository import device_grants

            digest = user_codes.digest_of(house.desk.pepper, "user", device["user_code"])
            row = await device_grants.find_by_user_digest_of_all_tenants(db, digest)
        assert isinstance(row, DeviceGrant)
        assert row.sealed_key
        assert key.encode() not in row.sealed_key
        got = (await polled(house, device["device_code"])).json()
        assert (got["access_token"], got["is_new"]) == (key, False)
        assert "expires_in" not in got, "clients refuse null (RFC 6749, 5.1)"
        assert "set-cookie" not in answer.headers


async def test_whoever_mistyped_a_key_or_a_code_has_the_form_again(house):
    device, browser = await begun(house), house.browser()
    for key, code, status in (
        ("amp_live_mistyped", device["user_code"], 401),
        (house.doors.first.tenant_key, "BBBB-BBBB", 404),
    ):
        answer = await sent(browser, {"user_code": code, "api_key": key, "decision": "look"})
        assert answer.status_code == status
        assert 'role="alert"' in answer.text
        assert 'name="api_key" type="password"' in answer.text
        assert f'value="{code}"' in answer.text
        assert key not in answer.text


async def test_a_key_that_was_revoked_meanwhile_is_not_given(house):
    made = (await house.doors.admin.post("/v1/keys", json={"name": "x", "role": "developer"})).json()
    device, browser = await begun(house), house.browser()
    look = await sent(browser, {"user_code": device["user_code"], "api_key": made["key"], "decision": "look"})
    await sent(browser, {**fields(look), "decision": "approve"})
    await house.doors.admin.delete(f"/v1/keys/{made['id']}")
    assert await refused(house, device["device_code"]) == "access_denied"


async def test_a_member_who_was_removed_meanwhile_lets_nothing_in(house):
    browser, member = await logged_in(house, role="developer")
    device = await begun(house)
    page = await browser.get(f"/auth/device?user_code={device['user_code']}")
    await sent(browser, {**fields(page), "decision": "approve"})
    await changed(house, member, status="removed")
    assert await refused(house, device["device_code"]) == "access_denied"


async def approved(house, **values):
    """A device that was let in by a login, and has not asked yet."""
    browser, member = await logged_in(house, **values)
    device = await begun(house)
    page = await browser.get(f"/auth/device?user_code={device['user_code']}")
    assert "is let in" in (await sent(browser, {**fields(page), "decision": "approve"})).text
    return browser, member, device


async def changed(house, member, **values):
    async with house.embedded.database.write() as db:
        await members.change(db, member.tenant_id, member.id, **values)


async def test_a_login_that_was_ended_meanwhile_lets_nothing_in(house):
    browser, _, device = await approved(house, role="admin")
    assert (await browser.post("/auth/logout")).status_code == 204
    await browser.log_in("ada")  # another login is another word
    assert await refused(house, device["device_code"]) == "access_denied"
    assert (await browser.get("/v1/keys")).json()["keys"] == []


async def test_a_login_that_was_left_alone_meanwhile_lets_nothing_in(tmp_path, issuer):
    async with house_in(tmp_path, company(issuer), issuer=issuer, login={"idle_timeout": "5m"}) as house:
        _, _, device = await approved(house)
        house.embedded.clock.advance(301)
        assert await refused(house, device["device_code"]) == "access_denied"


@pytest.mark.parametrize("values", [{"role": "readonly"}, {"role": "admin"}, {"status": "disabled"}])
async def test_a_member_who_was_changed_meanwhile_lets_nothing_in(house, values):
    """A larger role neither: what the person read when they let it in was another one."""
    _, member, device = await approved(house, role="developer")
    await changed(house, member, **values)
    assert await refused(house, device["device_code"]) == "access_denied"


async def test_who_may_make_no_keys_lets_a_device_in_that_may_do_what_they_may(house):
    browser, member, device = await approved(house, role="readonly")
    assert (await browser.post("/v1/keys", json={"name": "x", "role": "readonly"})).status_code == 403
    got = (await polled(house, device["device_code"])).json()
    caller = house.doors.caller(got["access_token"])
    me = (await caller.get("/v1/me")).json()
    assert (me["member"]["id"], me["role"]) == (member.id, "readonly")
    assert (await caller.post("/v1/keys", json={"name": "x", "role": "readonly"})).status_code == 403
    await changed(house, member, status="disabled")
    house.embedded.clock.advance(2)
    assert (await caller.get("/v1/me")).status_code == 403


async def test_when_too_many_wait_the_fullest_network_makes_room(house, monkeypatch):
    monkeypatch.setattr(devices, "_MAX_WAITING", 20)
    mine = await begun(house, address="198.51.100.1")
    theirs = []
    for number in range(30):
        theirs.append((await begun(house, address=f"2001:db8:0:1::{number:x}"))["device_code"])
        house.embedded.clock.advance(0.1)
    for number in range(3):
        await begun(house, address=f"203.0.113.{number}")
    waits = [await refused(house, one) for one in theirs]
    assert waits == ["invalid_grant"] * 14 + ["authorization_pending"] * 16
    assert await refused(house, mine["device_code"]) == "authorization_pending"


async def test_who_has_been_let_in_is_not_forgotten_to_make_room(house, monkeypatch):
    monkeypatch.setattr(devices, "_MAX_WAITING", 2)
    _, _, device = await approved(house)
    for _ in range(5):
        await begun(house)
    assert (await polled(house, device["device_code"])).status_code == 200


async def test_a_network_is_counted_as_one_whatever_addresses_it_has(house):
    statuses = []
    for number in range(61):
        browser = house.browser(address=f"2001:db8:0:1::{number:x}")
        statuses.append((await browser.client.post(f"{HOME}/auth/device/code", data={})).status_code)
    assert statuses == [200] * 60 + [429]
    other = house.browser(address="2001:db8:0:2::1")
    assert (await other.client.post(f"{HOME}/auth/device/code", data={})).status_code == 200


async def test_guesses_that_are_sent_at_once_are_counted_before_they_are_looked_at(house):
    browser, _ = await logged_in(house)
    answers = await asyncio.gather(*(browser.get(f"/auth/device?user_code=BBBB-BBB{one}") for one in "BCDFGHJKLM"))
    assert sorted(one.status_code for one in answers) == [404] * 5 + [429] * 5


async def test_a_decision_needs_our_page_and_its_token(house):
    browser, _ = await logged_in(house)
    other, _ = await logged_in(house, "grace")
    device = await begun(house)
    form = fields(await browser.get(f"/auth/device?user_code={device['user_code']}")) | {"decision": "approve"}
    others = fields(await other.get(f"/auth/device?user_code={device['user_code']}"))
    wrong = [
        (form | {"csrf_token": ""}, {}),
        (form | {"csrf_token": others["csrf_token"]}, {}),
        (form, {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}),
        (form, {"Origin": "null"}),
        (form, {"Sec-Fetch-Site": "same-site"}),
    ]
    for given, headers in wrong:
        answer = await sent(browser, given, **headers)
        assert answer.status_code == 403
        assert "csrf_failed" in answer.text
    for ticket in ("x", "AAAA", "\x7f"):
        answer = await sent(house.browser(), {"ticket": ticket, "decision": "approve"})
        assert answer.status_code == 403
        assert "ticket_expired" in answer.text
    assert await refused(house, device["device_code"]) == "authorization_pending"
    assert (await sent(browser, form)).status_code == 200
    assert "no_such_device_code" in (await sent(other, {**others, "decision": "deny"})).text, "once is enough"


async def test_the_page_takes_no_script_no_frame_and_no_other_site(house):
    for path in ("/auth/device", "/auth/device?user_code=%22%3E%3Cscript%3E"):
        page = await house.browser().get(path, headers=HTML)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "form-action 'self'" in policy
        assert "unsafe" not in policy
        assert "script-src" not in policy
        assert page.headers["x-frame-options"] == "DENY"
        assert page.headers["cache-control"] == "no-store"
        assert "<script" not in page.text


async def test_codes_are_not_guessed(house):
    browser, _ = await logged_in(house)
    device = await begun(house)
    for _ in range(5):
        assert (await browser.get("/auth/device?user_code=BBBB-BBBB")).status_code == 404
    answer = await browser.get(f"/auth/device?user_code={device['user_code']}")
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_attempts")
    assert int(answer.headers["retry-after"]) > 500
    house.embedded.clock.advance(601)
    device = await begun(house)
    assert (await browser.get(f"/auth/device?user_code={device['user_code']}")).status_code == 200


async def test_an_address_does_not_guess_with_many_logins_or_keys(house):
    browser = house.browser()
    for _ in range(50):
        await sent(browser, {"user_code": "BBBB-BBBB", "api_key": "amp_live_nonsense", "decision": "look"})
    key = house.doors.first.tenant_key
    answer = await sent(browser, {"user_code": "BBBB-BBBB", "api_key": key, "decision": "look"})
    assert answer.status_code == 429
    assert "too_many_attempts" in answer.text


async def test_an_address_does_not_begin_without_end(house):
    client = house.browser().client
    statuses = [(await client.post(f"{HOME}/auth/device/code", data={})).status_code for _ in range(61)]
    assert statuses == [200] * 60 + [429]


async def test_codes_are_stored_as_digests_and_swept(house):
    device = await begun(house)
    files = [path for path in house.embedded.settings.server.data_dir.rglob("*") if path.is_file()]
    held = b"".join(path.read_bytes() for path in files)
    assert device["device_code"].encode() not in held
    assert device["user_code"].encode() not in held
    house.embedded.clock.advance(3600)
    await house.desk.sweep()
    assert await refused(house, device["device_code"]) == "invalid_grant"


async def test_a_server_without_api_keys_lets_no_device_in(tmp_path, issuer):
    async with house_in(tmp_path, company(issuer), issuer=issuer) as house:
        object.__setattr__(house.embedded.settings.auth, "methods", house.embedded.settings.auth.logins)
        answer = await house.browser().client.post(f"{HOME}/auth/device/code", data={})
        assert (answer.status_code, answer.json()["code"]) == (403, "device_login_off")
        assert (await house.browser().get("/auth/methods")).json()["device_login"] is False


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("wdjbmjht", "WDJB-MJHT"),
        (" WDJB mjht ", "WDJB-MJHT"),
        ("WDJB-MJH", None),
        ("AAAA-AAAA", None),
        ("", None),
        ("W" * 99, None),
    ],
)
def test_how_a_code_is_typed_does_not_matter(typed, code):
    assert user_codes.normal(typed) == code

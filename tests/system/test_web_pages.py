"""A tool in a sandbox fetches pages by way of the server, and reaches nothing that the server must not reach for it."""

import pytest
import yaml

from tests.git_server import GitServer


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    with GitServer(tmp_path_factory.mktemp("web")) as running:
        running.files["/page"] = (
            "text/html; charset=utf-8",
            b"<html><body><h1>Birds</h1><p>They sing.</p></body></html>",
        )
        running.redirects["/inwards"] = "https://127.0.0.1:8443/"
        yield running


@pytest.fixture(scope="module")
def settings(web, tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "config.yaml"
    configured = {
        "web": {"private_hosts": [f"localhost:{web.port}"]},
        "collections": {"ca_file": str(web.ca_file)},
    }
    path.write_text(yaml.safe_dump(configured))
    return {"AMPLIFIER_CONFIG": str(path)}


@pytest.fixture
def session(me):
    return me.session("foundation:researcher")


def test_a_page_is_read_by_a_tool(me, session, web):
    call = me.tool(session, "web_fetch", url=web.url("page"))
    assert call["status"] == "completed"
    assert "They sing." in call["output"]["content"]
    assert call["output"]["url"] == web.url("page")


def test_the_servers_own_network_is_not_reached(me, session, web):
    before = len(web.asked)
    for url in (web.url("page", host="127.0.0.1"), "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd"):
        assert me.tool(session, "web_fetch", url=url)["status"] == "failed"
    assert len(web.asked) == before
    assert me.tool(session, "web_fetch", url=web.url("inwards"))["status"] == "failed"


def test_a_tenants_own_list_holds_for_its_tools_at_once(me, session, web):
    assert me.call("PUT", "/v1/web-policy", {"deny": ["localhost"]}).status == 200
    call = me.tool(session, "web_fetch", url=web.url("page"))
    assert call["status"] == "failed"
    assert "your tenant's lists" in str(call)
    assert me.call("PUT", "/v1/web-policy", {}).status == 200
    assert me.tool(session, "web_fetch", url=web.url("page"))["status"] == "completed"

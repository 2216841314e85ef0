"""What the server says about itself needs nothing from anybody else's server, and leads to all of it."""

import gzip
import re

import httpx2
import pytest
from fastapi import FastAPI

from amplifier_api_server.control_plane import documentation, kept_answers
from amplifier_api_server.control_plane.framework import openapi_document
from amplifier_api_server.control_plane.problem_codes import CODES
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.written_docs import NAMES
from amplifier_api_server.tenants.errors import NotFound

STATIC = [
    "/",
    "/openapi.json",
    "/docs",
    "/docs/errors",
    "/errors",
    "/errors/key_not_found",
    "/docs/assets/swagger-ui.css",
]
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
async def client():
    app = FastAPI(docs_url=None, openapi_url=None)
    app.include_router(documentation.router)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as one:
        one.headers["accept-encoding"] = "identity"
        yield one


async def test_the_page_names_only_files_that_are_served_here(client):
    page = await client.get("/docs")
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert not [one for one in named if re.match(r"(?:https?:)?//", one)]
    for path in named:
        if not path.startswith("data:"):
            answer = await client.get(path)
            assert answer.status_code == 200
            assert len(answer.content) > 10_000


async def test_its_policy_lets_it_ask_nobody_else(client):
    policy = (await client.get("/docs")).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy


@pytest.mark.parametrize("path", ["/docs/assets/redoc.standalone.js", "/docs/nothing", "/errors/nothing"])
async def test_nothing_else_is_served(client, path):
    with pytest.raises(NotFound) as caught:
        await client.get(path)
    assert caught.value.stable_code == "no_such_path"


async def test_every_code_has_a_page(client):
    for code, meanings in CODES.items():
        page = await client.get(f"/errors/{code}")
        assert page.status_code == 200
        assert f"<h1>{code}</h1>" in page.text
        for one in meanings:
            assert all(str(status) in page.text for status in one.statuses)
            assert "<dt>When</dt><dd>" in page.text or not one.when
    assert len(CODES) > 150


async def test_links_of_all_pages_lead_to_pages_and_places_that_are_there(client):
    anchors, links = {}, set()
    for path in [f"/docs/{name}" for name in NAMES] + [f"/errors/{code}" for code in CODES] + ["/errors"]:
        text = (await client.get(path)).text
        anchors[path] = set(re.findall(r'id="([^"]+)"', text))
        for target in re.findall(r'href="([^"]+)"', text):
            if target.startswith(("/docs/", "/errors", "#")):
                place, _, anchor = target.partition("#")
                links.add((place or path, anchor, path))
    broken = [one for one in links if one[0] not in anchors or (one[1] and one[1] not in anchors[one[0]])]
    assert broken == []


async def test_the_first_page_leads_on_for_people_and_for_programs(client):
    links = (await client.get("/")).json()
    assert {"documentation_url", "errors_url", "graphql_url", "health_url", "openapi_url"} <= links.keys()
    page = (await client.get("/", headers=HTML)).text
    for path in (one for name, one in links.items() if name.endswith("_url")):
        assert f'href="{path}"' in page


def test_the_reference_begins_with_the_introduction():
    told = openapi_document(Settings())["info"]["description"]
    for about in ("calling", "Errors", "Pages", "Limits", "Asking again", "Streams", "Versions"):
        assert re.search(rf"(?m)^## .*{about}", told), about
    assert "](/docs/compatibility)" in told
    assert ".md" not in told


# Answers that are kept.


@pytest.mark.parametrize("path", STATIC)
async def test_who_has_it_already_is_told_so(client, path):
    first = await client.get(path)
    assert first.headers["cache-control"].startswith("public")
    name = first.headers["etag"]
    for had in (name, f"W/{name}", f'"other", {name}', "*", name.rstrip('"') + '-gzip"'):
        again = await client.get(path, headers={"If-None-Match": had})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == name
        assert "content-length" not in again.headers
    assert (await client.get(path, headers={"If-None-Match": '"other"'})).content == first.content


@pytest.mark.parametrize("path", STATIC)
async def test_it_is_compressed_for_who_takes_that(client, path):
    plain = await client.get(path)
    for taken in ("gzip", "br, GZIP;q=0.5", "*", "deflate, gzip;q=1.0, *;q=0"):
        async with client.stream("GET", path, headers={"Accept-Encoding": taken}) as answer:
            raw = b"".join([one async for one in answer.aiter_raw()])
        assert "accept-encoding" in answer.headers["vary"]
        if len(plain.content) > 1024:
            assert answer.headers["content-encoding"] == "gzip"
            assert answer.headers["etag"] != plain.headers["etag"]
            assert gzip.decompress(raw) == plain.content
    for taken in ("identity", "gzip;q=0", "gzip; q=0.000, *", "br", ""):
        answer = await client.get(path, headers={"Accept-Encoding": taken})
        assert "content-encoding" not in answer.headers, taken


async def test_each_is_made_once(client, monkeypatch):
    made = []
    original = kept_answers.KeptAnswer.__init__
    monkeypatch.setattr(
        kept_answers.KeptAnswer,
        "__init__",
        lambda self, *given, **more: made.append(1) or original(self, *given, **more),
    )
    for _ in range(3):
        await client.get("/openapi.json")
        await client.get("/", headers=HTML)
    assert len(made) == 2


async def test_one_that_could_not_be_made_is_tried_again():
    tries = []

    def make():
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("not now")
        return kept_answers.KeptAnswer(b"x", "text/plain")

    kept = kept_answers.KeptAnswers()
    with pytest.raises(ValueError, match="not now"):
        await kept.get("x", make)
    assert (await kept.get("x", make)).body == b"x"

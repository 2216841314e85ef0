"""The documentation's page needs nothing from anybody else's server."""

import re

import httpx2
import pytest
from fastapi import FastAPI

from amplifier_api_server.control_plane import documentation
from amplifier_api_server.tenants.errors import NotFound


@pytest.fixture
async def client():
    app = FastAPI(docs_url=None)
    app.include_router(documentation.router)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as one:
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


async def test_no_other_file_is_served(client):
    with pytest.raises(NotFound):
        await client.get("/docs/assets/redoc.standalone.js")

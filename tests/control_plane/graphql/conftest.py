"""A control plane whose runtimes are the test's, and callers of its GraphQL door."""

from dataclasses import dataclass
from typing import Any

import pytest

from tests.hostile_runtime import Attacked, attacked
from tests.tenants.embedded import GITHUB

METHODS = [{"type": "api_key"}, GITHUB]


@dataclass
class Door:
    plane: Attacked
    key: str

    async def post(self, query: str, variables: dict[str, Any] | None = None, **headers: str) -> Any:
        """The answer to a document, as it came."""
        async with self.plane.client(self.key) as client:
            body = {"query": query, "variables": variables or {}}
            return await client.post(
                "/graphql", json=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
            )

    async def ask(self, query: str, **variables: Any) -> Any:
        """The `data` of a document that was carried out without an error."""
        answer = await self.post(query, variables)
        assert answer.status_code == 200, answer.text
        assert "errors" not in answer.json(), answer.text
        return answer.json()["data"]

    async def codes(self, query: str, **variables: Any) -> list[str]:
        """The codes of a document's errors."""
        answer = await self.post(query, variables)
        return [one["extensions"]["code"] for one in answer.json().get("errors", [])]

    async def session(self) -> str:
        made = await self.ask('mutation { createSession(profile: "foundation:base") { id } }')
        return made["createSession"]["id"]

    async def key_of(self, role: str) -> "Door":
        """Another caller of the same tenant."""
        made = await self.ask('mutation($r: String!) { createKey(name: "k", role: $r) { key } }', r=role)
        return Door(self.plane, made["createKey"]["key"])

    async def another_tenant(self) -> "Door":
        operator = Door(self.plane, self.plane.operator_key)
        made = await operator.ask('mutation { createTenant(name: "B", tier: "enterprise") { adminKey } }')
        return Door(self.plane, made["createTenant"]["adminKey"])


@pytest.fixture
async def door(tmp_path):
    async with attacked(tmp_path, auth={"methods": METHODS}) as plane:
        yield Door(plane, plane.key)

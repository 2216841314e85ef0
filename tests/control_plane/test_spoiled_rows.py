"""What a table holds that is no JSON, or of another shape, fails itself alone: at a start, in sweeps, lists and batches."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlmodel import SQLModel, col, select

from amplifier_api_server.tenants import models
from amplifier_api_server.tenants.json_columns import Json, JsonText, is_spoiled, spoiled_in
from tests.hostile_runtime import Attacked, attacked

COLUMNS = [
    (table.name, column.name)
    for table in SQLModel.metadata.sorted_tables
    for column in table.columns
    if isinstance(column.type, Json)
]
TEXTS = ['{"a": ', "5", '"x"', "null", "", "[[1], 2", '{"a": {}}', "[5]"]
AUDIT = "audit_entry"  # append-only: no column of it can be spoiled by an UPDATE of ours


def image() -> dict[str, Any]:
    return {"name": "birds", "root": {"uri": "https://a.test/x", "tree": "a" * 64}}


def a_collection(tenant_id: str) -> list[SQLModel]:
    now = datetime.now(UTC)
    source, ident = "git+https://a.test/x@main", tenant_id.removeprefix("ten_")
    return [
        models.Collection(
            id=f"col_{ident}",
            tenant_id=tenant_id,
            name="birds",
            version="1",
            description="",
            source=source,
            content_hash="b" * 64,
            image=image(),
            manifest={"name": "birds", "profiles": [{"name": "birds:one", "description": "", "version": "1"}]},
            installed_at=now,
            installed_by="key_1",
        ),
        models.Installation(
            id=f"inst_{ident}",
            tenant_id=tenant_id,
            member_id="mem_1",
            source=source,
            status="installed",
            warnings=["x"],
            failure=None,
            created_at=now,
        ),
    ]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A data folder in which two tenants have a row in every table; and the other one's key."""
    folder = tmp_path_factory.mktemp("template")
    return folder / "data", asyncio.run(_made(folder))


async def _made(folder: Path) -> dict[str, str]:
    async with attacked(folder) as plane:
        async with plane.client(plane.operator_key) as operator:
            other = (await operator.post("/v1/tenants", json={"name": "other", "limits": {"sandboxes": 9}})).json()
        async with plane.client() as me, plane.client(other["admin_key"]) as them:
            kept = {"other": other["admin_key"]}
            for name, client in (("mine", me), ("theirs", them)):
                kept[name] = await _rows_of(plane, client)
        async with plane.app.services.database.write() as db:
            tenants = (await db.execute(select(models.Tenant.id))).scalars().all()
            for tenant_id in tenants:
                db.add_all(a_collection(tenant_id))
            for row in (await db.execute(select(models.Session))).scalars().all():
                body = {"content": "x"}
                for seq, role in enumerate(("user", "assistant")):
                    db.add(
                        models.Message(
                            session_id=row.id,
                            seq=seq,
                            tenant_id=row.tenant_id,
                            turn_id="",
                            role=role,
                            body=body | {"role": role},
                            created_at=row.created_at,
                        )
                    )
    return kept


async def _rows_of(plane: Attacked, client: httpx2.AsyncClient) -> str:
    """A session with an execution, one that still runs, and one of everything else."""
    made = await client.post("/v1/sessions", json={"profile": "foundation:base"})
    session = str(made.json()["session_id"])
    assert (await client.post(f"/v1/sessions/{session}/execute", json={"prompt": "x"})).status_code == 200
    assert (await client.post(f"/v1/sessions/{session}/fork", json={"files": False})).status_code == 201
    assert (await client.post("/v1/roles", json={"name": "own", "permissions": ["keys:read"]})).status_code == 201
    assert (await client.post("/v1/members", json={"name": "m", "role": "own"})).status_code == 201
    assert (await client.put("/v1/web-policy", json={"allow": ["a.test"], "deny": []})).status_code == 200
    return session


def spoil(data: Path, table: str, column: str, text: str, sessions: dict[str, str]) -> None:
    """In every row of the first tenant; its execution, and the other's, are left as running."""
    with sqlite3.connect(data / "amplifier.db") as db:
        db.execute("UPDATE turn SET status = 'running', finished_at = NULL")
        db.execute("DELETE FROM turn_events")
        (tenant,) = db.execute("SELECT tenant_id FROM session WHERE id = ?", [sessions["mine"]]).fetchone()
        whose = "id" if table == "tenant" else "tenant_id"
        done = db.execute(f"UPDATE {table} SET {column} = ? WHERE {whose} = ?", [text, tenant])
        assert done.rowcount > 0, "a table without a row shows nothing"
    db.close()


READ = [
    "/v1/sessions",
    "/v1/sessions/{}",
    "/v1/sessions/{}/messages",
    "/v1/sessions/{}/executions",
    "/v1/sessions/{}/export",
    "/v1/members",
    "/v1/keys",
    "/v1/roles",
    "/v1/collections",
    "/v1/profiles",
    "/v1/limits",
    "/v1/usage",
    "/v1/audit",
    "/v1/web-policy",
    "/v1/me",
]


async def statuses(client: httpx2.AsyncClient, session: str) -> dict[str, int]:
    found = {path: (await client.get(path.format(session))).status_code for path in READ}
    for path, body in (("execute", {"prompt": "x"}), ("fork", {"files": False})):
        found[path] = (await client.post(f"/v1/sessions/{session}/{path}", json=body)).status_code
    listed = "{ sessions { edges { node { sessionId messages { role } } } } members { edges { node { id } } } }"
    asked = await client.post("/graphql", json={"query": listed})
    found["graphql"] = asked.status_code
    return found


@pytest.mark.parametrize(("table", "column"), [one for one in COLUMNS if one[0] != AUDIT])
async def test_a_spoiled_row_fails_itself_alone(
    tmp_path: Path, template: tuple[Path, dict[str, str]], table: str, column: str
):
    text = TEXTS[COLUMNS.index((table, column)) % len(TEXTS)]
    data, kept = template
    shutil.copytree(data, tmp_path / "data")
    spoil(tmp_path / "data", table, column, text, kept)
    async with attacked(tmp_path) as plane:
        reconciler = plane.app.services.reconciler
        for sweep in reconciler._sweeps:
            await sweep()
        async with plane.client(plane.operator_key) as operator:
            listed = await operator.get("/v1/tenants")
            assert listed.status_code == 200, listed.text
            broken = [one["broken"] for one in listed.json()["tenants"]]
            assert sorted(broken) == ([[], [column]] if table == "tenant" and column == "limits" else sorted(broken))
            assert len(broken) == 2
        async with plane.client(kept["other"]) as them:
            theirs = await statuses(them, kept["theirs"])
        async with plane.client() as me:
            mine = await statuses(me, kept["mine"])
    assert set(theirs.values()) <= {200, 201}, theirs
    assert not [one for one in mine.values() if one >= 500 or one == 401], mine


async def test_what_is_spoiled_is_named_and_reads_as_empty(tmp_path: Path, template: tuple[Path, dict[str, str]]):
    data, kept = template
    shutil.copytree(data, tmp_path / "data")
    spoil(tmp_path / "data", "session", "state", "{", kept)
    spoil(tmp_path / "data", "role", "permissions", "5", kept)
    async with attacked(tmp_path) as plane:
        async with plane.client() as me:
            assert (await me.get(f"/v1/sessions/{kept['mine']}")).json()["broken"] == ["state"]
            own = next(one for one in (await me.get("/v1/roles")).json()["roles"] if one["name"] == "own")
            assert (own["permissions"], own["broken"]) == ([], ["permissions"])
            refused = await me.post(f"/v1/sessions/{kept['mine']}/execute", json={"prompt": "x"})
            assert (refused.status_code, refused.json()["code"]) == (409, "record_unreadable")
            assert "state" in refused.json()["detail"]
        async with plane.app.services.database.read() as db:
            row = (await db.execute(select(models.Session).where(col(models.Session.id) == kept["mine"]))).scalar_one()
            assert (spoiled_in(row), is_spoiled(row.state), row.state) == (["state"], True, {})


@pytest.mark.parametrize(
    ("shape", "of", "stored", "read"),
    [
        (dict, object, '{"a":1}', {"a": 1}),
        (dict, object, None, None),
        (list, str, '["a"]', ["a"]),
        (list, dict, "[]", []),
        (dict, object, 5, None),
        (dict, object, "[1]", None),
        (list, str, "[1]", None),
        (list, dict, '{"a":1}', None),
        (dict, object, "{", None),
        (dict, object, b"\xff", None),
        (dict, object, "null", None),
    ],
)
def test_a_value_of_another_shape_is_empty_and_says_so(shape: Any, of: Any, stored: Any, read: Any):
    found = Json(shape, of)._read(stored)
    assert (found, is_spoiled(found)) == ((read, False) if read is not None or stored is None else (shape(), True))


def test_what_can_not_be_read_is_written_back_as_it_was():
    column = Json()
    write = column.bind_processor(None)  # type: ignore[arg-type]
    assert write(column._read('{"a": ')) == '{"a": '
    assert write(JsonText('{"a":1}')) == '{"a":1}'
    assert write({"a": 2**70}) == '{"a": 1180591620717411303424}'
    assert write(None) is None


LISTED = {  # by table: the list that shows its rows, and where they are in it
    "session": ("/v1/sessions", "sessions"),
    "turn": ("/v1/sessions/{}/executions", "executions"),
    "message": ("/v1/sessions/{}/messages", "messages"),
    "member": ("/v1/members", "members"),
    "api_key": ("/v1/keys", "keys"),
    "role": ("/v1/roles", "roles"),
    "invitation": ("/v1/invitations", "invitations"),
    "collection": ("/v1/collections", "collections"),
    "installation": ("/v1/collections/installations", "installations"),
    "profile": ("/v1/profiles", "profiles"),
    "provider_key": ("/v1/provider-keys", "provider_keys"),
    "tenant": ("/v1/tenants", "tenants"),
}
TIMES = {"session": "created_at", "collection": "installed_at", "member": "created_at", "api_key": "created_at"}
CONNECTIONS = "{ sessions { id } collections { name } roles { name } members { nodes { id } } keys { nodes { id } } }"


def spoilt_values(table: str) -> list[tuple[str, Any]]:
    """What no version of ours would write, for a column of each kind, none of them a key."""
    found: list[tuple[str, Any]] = []
    kinds = set[type]()
    for column in SQLModel.metadata.tables[table].columns:
        if column.primary_key or column.foreign_keys or column.name in ("tenant_id", "digest", "name"):
            continue
        if type(column.type) in kinds and not isinstance(column.type, Json):
            continue
        kinds.add(type(column.type))
        shapes = ['{"a": [1]}', '[{"b": 1}]'] if isinstance(column.type, Json) else []
        found += [(column.name, text) for text in (shapes or ["yesterday \N{SNOWMAN}"])]
    return found


@contextlib.contextmanager
def beside(data: Path) -> Iterator[Callable[..., Coroutine[Any, Any, Any]]]:
    """Runs SQL beside a server that runs here: in a thread, since both wait for one another's transactions."""
    db = sqlite3.connect(data / "amplifier.db", isolation_level=None, timeout=20, check_same_thread=False)

    async def run(sql: str, *values: Any) -> Any:
        return await asyncio.to_thread(lambda: db.execute(sql, values).fetchone())

    with contextlib.closing(db):
        yield run


async def test_one_bad_row_of_a_list_fails_itself_alone(tmp_path: Path, template: tuple[Path, dict[str, str]]):
    data, kept = template
    shutil.copytree(data, tmp_path / "data")
    wrong, tried = [], 0
    async with attacked(tmp_path) as plane, plane.client() as me, plane.client(plane.operator_key) as operator:
        with beside(tmp_path / "data") as run:
            for table, (path, name) in LISTED.items():
                client = operator if table == "tenant" else me
                before = len((await client.get(path.format(kept["mine"]))).json()[name])
                row = await run(f'SELECT rowid FROM "{table}" ORDER BY rowid DESC LIMIT 1') or ()
                if row and table in TIMES:
                    (was,) = await run(f'SELECT "{TIMES[table]}" FROM "{table}" WHERE rowid = ?', *row)
                    await run(f'UPDATE "{table}" SET "{TIMES[table]}" = ? WHERE rowid = ?', "yesterday", *row)
                    connections = await me.post("/graphql", json={"query": CONNECTIONS})
                    await run(f'UPDATE "{table}" SET "{TIMES[table]}" = ? WHERE rowid = ?', was, *row)
                    wrong += [(table, one["message"]) for one in connections.json().get("errors", ())]
                for column, text in spoilt_values(table) if row else ():
                    (was,) = await run(f'SELECT "{column}" FROM "{table}" WHERE rowid = ?', *row)
                    try:
                        await run(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', text, *row)
                    except sqlite3.IntegrityError:
                        continue
                    tried += 1
                    answer = await client.get(path.format(kept["mine"]))
                    await run(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', was, *row)
                    if answer.status_code != 200 or len(answer.json()[name]) < before - 1:
                        wrong.append((table, column, text, answer.text[:200]))
    assert wrong == []
    assert tried > 40


async def test_a_server_starts_whatever_its_rows_hold(tmp_path: Path, template: tuple[Path, dict[str, str]]):
    data, kept = template
    shutil.copytree(data, tmp_path / "data")
    with sqlite3.connect(tmp_path / "data" / "amplifier.db") as db:
        for table in LISTED:
            (tenant,) = db.execute("SELECT tenant_id FROM session WHERE id = ?", [kept["mine"]]).fetchone()
            whose = "id" if table == "tenant" else "tenant_id"
            for column in SQLModel.metadata.tables[table].columns:
                if str(column.type) == "DATETIME" and column.name != "expires_at":
                    db.execute(f'UPDATE "{table}" SET "{column.name}" = ? WHERE {whose} = ?', ("yesterday", tenant))
    db.close()
    async with attacked(tmp_path) as plane:
        for sweep in plane.app.services.reconciler._sweeps:
            await sweep()
        async with plane.client(kept["other"]) as them:
            assert set((await statuses(them, kept["theirs"])).values()) <= {200, 201}
        async with plane.client(plane.operator_key) as operator:
            assert len((await operator.get("/v1/tenants")).json()["tenants"]) == 2

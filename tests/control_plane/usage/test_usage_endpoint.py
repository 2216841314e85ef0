from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.models import Usage
from amplifier_api_server.tenants.repository import usage
from tests.control_plane.accounts.doors import Doors
from tests.tenants.embedded import NOON, Embedded

MEASURES = (
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "turns",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)
NOTHING = dict.fromkeys(MEASURES, 0) | {"cost_usd": "0.000000", "own_key_cost_usd": "0.000000", "unpriced_tokens": 0}


def expected_of(rows: list[Usage]) -> dict[str, int]:
    """The sums that a report should say, added up in plain Python."""
    found = {name: sum(getattr(one, name) for one in rows) for name in MEASURES}
    for name, is_own in (("cost_microdollars", False), ("own_key_cost_microdollars", True)):
        found[name] = sum(one.cost_microdollars or 0 for one in rows if one.own_key is is_own)
    found["unpriced_tokens"] = sum(one.total_tokens for one in rows if one.cost_microdollars is None)
    return found


def row(tenant_id: str, source: str, **values: Any) -> Usage:
    at: datetime = values.pop("at", NOON)
    given = {"member_id": "mem_1", "session_id": "sess_1", "turn_id": "req_1", "model": "m", **values}
    prompt, completion = given.pop("prompt", 3), given.pop("completion", 4)
    return Usage(
        source=source,
        tenant_id=tenant_id,
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        day=at.astimezone(UTC).date(),
        recorded_at=at,
        **given,
    )


async def append(embedded: Embedded, tenant_id: str, *rows: Usage) -> int:
    async with embedded.database.write() as db:
        return await usage.append(db, TenantId(tenant_id), rows)


async def report(doors: Doors, **query: Any) -> Any:
    answer = await doors.admin.get("/v1/usage", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_row_is_counted_once_however_often_it_is_written(doors: Doors):
    tenant = doors.first.tenant_id
    assert (
        await append(
            doors.embedded, tenant, row(tenant, "call:1"), row(tenant, "turn:1", prompt=0, completion=0, turns=1)
        )
        == 2
    )
    assert await append(doors.embedded, tenant, row(tenant, "call:1", prompt=999), row(tenant, "call:2")) == 1
    assert await append(doors.embedded, tenant) == 0
    found = await report(doors, group_by="session")
    assert found["totals"] == NOTHING | {
        "prompt_tokens": 6,
        "completion_tokens": 8,
        "total_tokens": 14,
        "turns": 1,
        "unpriced_tokens": 14,
    }
    assert found["usage"] == [{"key": "sess_1", **found["totals"]}]
    assert found["next_cursor"] is None


async def test_rows_of_another_tenant_are_refused_and_not_seen(doors: Doors):
    other = await doors.embedded.tenant()
    with pytest.raises(ValueError, match="another tenant"):
        await append(doors.embedded, doors.first.tenant_id, row(other.id, "call:1"))
    await append(doors.embedded, other.id, row(other.id, "call:1"))
    assert (await report(doors))["totals"]["total_tokens"] == 0


async def test_an_empty_ledger_is_a_report_too(doors: Doors):
    found = await report(doors, group_by="model")
    assert found == {"totals": NOTHING, "usage": [], "data": [], "next_cursor": None}


ROWS = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.integers(0, 10**6),
        st.integers(0, 1),
        st.sampled_from(["sess_a", "sess_b", "sess_c"]),
        st.sampled_from(["m", "provider/model", ""]),
        st.sampled_from(["mem_a", "mem_b"]),
        st.integers(0, 10 * 24 * 60),
        st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)),
        st.none() | st.integers(0, 2**52),
        st.booleans(),
    ),
    max_size=25,
)


async def test_every_grouping_adds_up_to_the_same_totals(tmp_path_factory):
    """A property, over ledgers that hypothesis makes up; each in a database of its own."""
    import asyncio

    from tests.tenants.embedded import embedded_in

    async def check(rows: list[Any]) -> None:
        async with embedded_in(tmp_path_factory.mktemp("ledger")) as embedded:
            tenant = await embedded.tenant()
            made = [
                row(
                    tenant.id,
                    f"call:{number}",
                    prompt=prompt,
                    completion=completion,
                    turns=turns,
                    session_id=session,
                    model=model,
                    member_id=member,
                    at=NOON + timedelta(minutes=minutes),
                    cached_tokens=apart[0],
                    cache_write_tokens=apart[1],
                    reasoning_tokens=apart[2],
                    cost_microdollars=cost,
                    own_key=own,
                )
                for number, (prompt, completion, turns, session, model, member, minutes, apart, cost, own) in enumerate(
                    rows
                )
            ]
            await append(embedded, tenant.id, *made)
            async with embedded.database.read() as db:
                expected = expected_of(made)
                for group_by in ("session", "day", "model", "member"):
                    groups, after = [], None
                    while True:
                        page = await usage.report(db, TenantId(tenant.id), group_by, usage.Span(), after=after, limit=2)
                        assert {name: getattr(page.totals, name) for name in expected} == expected
                        groups += page.groups
                        after = page.next_key
                        if after is None:
                            break
                    assert {name: sum(getattr(one, name) for one in groups) for name in expected} == expected
                    assert [one.key for one in groups] == sorted({one.key for one in groups})

    def run(rows: list[Any]) -> None:
        asyncio.run(check(rows))

    checked = settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))(given(ROWS)(run))
    await asyncio.to_thread(checked)


async def test_what_the_tenants_own_keys_paid_is_told_apart_and_what_has_no_price_is_named(doors: Doors):
    tenant = doors.first.tenant_id
    await append(
        doors.embedded,
        tenant,
        row(tenant, "call:1", cost_microdollars=1_234_567, cached_tokens=2, cache_write_tokens=1, reasoning_tokens=3),
        row(tenant, "call:2", cost_microdollars=5, own_key=True),
        row(tenant, "call:3"),
        row(tenant, "call:4", own_key=True),
    )
    found = await report(doors, group_by="model")
    assert found["totals"]["cost_usd"] == "1.234567"
    assert found["totals"]["own_key_cost_usd"] == "0.000005"
    assert found["totals"]["unpriced_tokens"] == 14
    apart = [found["totals"][name] for name in ("cached_tokens", "cache_write_tokens", "reasoning_tokens")]
    assert apart == [2, 1, 3]
    assert found["usage"] == [{"key": "m", **found["totals"]}]


async def test_spans_begin_inclusive_and_end_exclusive(doors: Doors):
    tenant = doors.first.tenant_id
    for number, at in enumerate([NOON - timedelta(days=1), NOON, NOON + timedelta(hours=6), NOON + timedelta(days=1)]):
        await append(doors.embedded, tenant, row(tenant, f"call:{number}", at=at))
    for query, days in (
        ({}, 4),
        ({"from": "2026-03-10"}, 3),
        ({"to": "2026-03-10"}, 1),
        ({"from": "2026-03-10", "to": "2026-03-11"}, 2),
        ({"from": "2026-03-10", "to": "2026-03-10"}, 0),
        ({"from": "2026-03-10T12:00:00Z", "to": "2026-03-10T18:00:00Z"}, 1),
        ({"from": "2026-03-10T13:00:00+01:00"}, 3),
        ({"from": "2026-03-10t12:00:00z", "to": "2026-03-10t18:00:00.0z"}, 1),
        ({"from": "2026-03-10T12:00:00.000001Z", "to": "2026-03-11"}, 1),
    ):
        assert (await report(doors, **query))["totals"]["total_tokens"] == 7 * days, query


async def test_pages_go_on_where_they_ended(doors: Doors):
    tenant = doors.first.tenant_id
    await append(doors.embedded, tenant, *(row(tenant, f"call:{n}", session_id=f"sess_{n}") for n in range(5)))
    seen, cursor = [], None
    while True:
        found = await report(doors, group_by="session", limit=2, **({"cursor": cursor} if cursor else {}))
        assert found["totals"]["total_tokens"] == 35
        seen += [one["key"] for one in found["usage"]]
        cursor = found["next_cursor"]
        if cursor is None:
            break
    assert seen == [f"sess_{n}" for n in range(5)]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"group_by": "tenant"}, "group_by"),
        ({"from": "yesterday"}, "from"),
        ({"from": "2026-13-01"}, "from"),
        ({"to": "2026-03-10T12:00:00"}, "to"),
        ({"to": "0001-01-01T00:00:00+23:59"}, "to"),
        ({"from": "2026-03-11", "to": "2026-03-10"}, "from"),
        ({"limit": 0}, "limit"),
        ({"cursor": "nonsense"}, "cursor"),
        ({"from": "x" * 100}, "from"),
    ],
)
async def test_a_wrong_query_is_422_and_names_the_field(doors: Doors, query: Any, field: str):
    answer = await doors.admin.get("/v1/usage", params=query)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"].removeprefix("query.") == field

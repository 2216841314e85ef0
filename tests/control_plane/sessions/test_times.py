"""Times are in UTC with a Z wherever they are shown, and a message has the time when it was said."""

import re

from tests.hostile_runtime import attacked

ZULU = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
ANY_ZONE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)?")


async def answered(request):
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    answer = await request.runtime.hand_over(request, response="hello", messages=said)
    await request.reply(200, answer.json()["result"])


async def test_a_users_message_has_the_time_when_it_was_sent_on_every_door_and_all_times_are_zulu(tmp_path):
    async with attacked(tmp_path) as plane, plane.client() as me:
        plane.fleet.answers["POST", "turn"] = answered
        session = await plane.session()
        assert (await me.post(f"/v1/sessions/{session}/execute", json={"prompt": "hi"})).status_code == 200
        expires = {"name": "k", "role": "readonly", "expires_at": "2099-01-01T02:00:00+02:00"}
        assert (await me.post("/v1/keys", json=expires)).status_code == 201
        (ran,) = (await me.get(f"/v1/sessions/{session}/executions")).json()["executions"]
        asked, said = (await me.get(f"/v1/sessions/{session}/messages")).json()["messages"]
        assert (asked["created_at"], said["created_at"]) == (ran["started_at"], ran["finished_at"])
        query = f'{{ messages(sessionId: "{session}") {{ nodes {{ createdAt }} }} }}'
        nodes = (await me.post("/graphql", json={"query": query})).json()["data"]["messages"]["nodes"]
        assert [one["createdAt"] for one in nodes] == [asked["created_at"], said["created_at"]]
        paths = ("/v1/sessions/{0}/export", "/v1/audit", "/v1/audit/export", "/v1/keys", "/v1/members", "/v1/me")
        texts = [nodes, ran, asked, said, *[(await me.get(path.format(session))).text for path in paths]]
        found = ANY_ZONE.findall(str(texts))
        assert len(found) > 15
        assert [one for one in found if not ZULU.fullmatch(one)] == []
        assert "2099-01-01T00:00:00Z" in str(texts)

"""A tenant keeps no more than its share of the disk, whichever way it comes in, and whatever is kept where."""

import io
import json
import zipfile

import pytest

from tests.system.server import FREE, eventually

MIB = 1024 * 1024
EXPECTED_ERRORS = ("disk_quota_exceeded",)


@pytest.fixture
def small(server):
    return server.tenant("small", **FREE, disk_bytes=12 * MIB, disk_files=400)


def kept(me, name="disk_bytes"):
    return me.limit(name)["used"]


def write(me, session, mib):
    return me.shell(session, f"head -c {mib * MIB} /dev/urandom > f$(date +%N)")


def rest(me, session):
    """Have a session suspended: a fork with its files wants it at rest."""
    answer = me.call("POST", f"/v1/sessions/{session}/fork", {})
    assert answer.status == 201, answer.body
    assert me.call("DELETE", f"/v1/sessions/{answer.json['session_id']}").status == 204


def test_what_lies_at_rest_and_what_is_open_count_together_and_closing_frees(small):
    one, two = small.session(), small.session()
    write(small, one, 2)
    rest(small, one)
    write(small, two, 3)
    assert eventually(lambda: 5 * MIB <= kept(small) <= 6 * MIB)
    assert small.call("DELETE", f"/v1/sessions/{one}").status == 204
    assert eventually(lambda: 3 * MIB <= kept(small) <= 4 * MIB)
    assert small.limit("disk_bytes")["scope"] == "tenant"
    assert small.limit("disk_files")["limit"] == 400


def test_a_copy_counts_before_it_is_made(small, server):
    session = small.session()
    write(small, session, 7)
    refused = small.call("POST", f"/v1/sessions/{session}/fork", {})
    assert (refused.status, refused.code) == (507, "disk_quota_exceeded")
    assert refused.json["limit"] == "disk_bytes"
    assert refused.json["limit_value"] == 12 * MIB
    assert "sessions at rest" in refused.json["detail"]
    assert len([*(server.data_dir / "workspaces" / small.tenant_id).iterdir()]) == 1, "nothing was begun"
    fork = f"/v1/sessions/{session}/fork"
    # Where the sandbox of a session that came to rest was last measured, its files count there too for a moment.
    assert eventually(lambda: small.call("POST", fork, {"files": False}).status == 201)


def test_whoever_writes_over_the_share_is_ended_and_every_way_in_is_shut(server):
    small = server.tenant("filler", **FREE, disk_bytes=24 * MIB)
    sessions = [small.session() for _ in range(2)]
    slowly = "for n in $(seq 200); do head -c 200000 /dev/urandom > f$n; sleep 0.1; done; rm f1; ls | wc -l"
    write(small, sessions[0], 18)
    rest_of = small.tool(sessions[1], "bash", command=slowly)
    assert "199" not in json.dumps(rest_of), "its processes were killed before they had written all"
    assert eventually(lambda: kept(small) >= 24 * MIB)
    assert kept(small) < 26 * MIB
    document = {"format": "amplifier-session", "version": 1}
    for path, body in [
        ("/v1/sessions", {"profile": "foundation:base"}),
        ("/v1/sessions/import", document),
        (f"/v1/sessions/{sessions[0]}/fork", {"files": False}),
        ("/v1/tools/bash/execute", {"input": {"command": "true"}}),
        ("/v1/profiles", {"name": "one", "content": "x"}),
    ]:
        answer = small.call("POST", path, body)
        assert (answer.status, answer.code) == (507, "disk_quota_exceeded"), (path, answer.body[:300])
    small.ask(sessions[1], f"use bash {json.dumps({'command': 'rm -f f*'})}")
    assert eventually(lambda: kept(small) < 20 * MIB), "what is a little over its share can still delete"
    assert small.session()


def test_files_count_as_well_as_bytes(small):
    session = small.session()
    made = small.shell(
        session, "for n in $(seq 60); do mkdir d$n; touch d$n/a d$n/b d$n/c d$n/d; done; echo all of them"
    )
    assert "all of them" in made
    assert eventually(lambda: 300 <= kept(small, "disk_files") <= 310)
    refused = small.call("POST", f"/v1/sessions/{session}/fork", {})
    assert (refused.status, refused.json["limit"]) == (507, "disk_files")


def zipped(files):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as out:
        for name, content in files:
            out.writestr(name, content)
    return made.getvalue()


def test_a_collection_counts_before_it_is_unpacked_and_its_tree_once(server):
    me = server.tenant("collector", **FREE, disk_bytes=3 * MIB, disk_files=300)
    bundle = ("bundle.md", "---\nbundle:\n  name: mine\n  version: 1.0.0\n---\nx\n")
    headers = {"Content-Type": "application/zip"}
    many = zipped([bundle, *((f"d{n}/f", "") for n in range(200))])
    refused = me.call("POST", "/v1/collections", many, headers)
    assert (refused.status, refused.code) == (507, "disk_quota_exceeded"), refused.body
    assert refused.json["limit"] == "disk_files"
    large = me.call("POST", "/v1/collections", zipped([bundle, ("data", "x" * 2 * MIB)]), headers)
    assert (large.status, large.code) == (507, "disk_quota_exceeded"), "the upload, and what it unpacks to"
    fits = me.call("POST", "/v1/collections", zipped([bundle, ("data", "x" * MIB)]), headers)
    assert fits.status == 201, fits.body
    assert eventually(lambda: MIB <= kept(me) < 1.2 * MIB)
    assert me.limit("disk_bytes")["reserved"] == 0
    session = me.session()
    assert kept(me) < 1.3 * MIB, "a session of it keeps the same tree"
    assert me.call("DELETE", f"/v1/sessions/{session}").status == 204


def test_sizes_at_rest_are_known_again_after_a_crash(make_server):
    server = make_server()
    server.start()
    me = server.tenant("crashed", **FREE)
    session = me.session()
    write(me, session, 3)
    assert eventually(lambda: kept(me) >= 3 * MIB)
    server.kill()
    server.start()
    again = server.caller(me.key)
    assert eventually(lambda: 3 * MIB <= kept(again) <= 4 * MIB)
    assert again.status(session) == "suspended"


def test_an_import_counts_before_it_is_kept(server):
    me = server.tenant("importer", **FREE, disk_bytes=2 * MIB)
    session = me.session()
    me.ask(session, "hello")
    document = me.get(f"/v1/sessions/{session}/export")
    document["messages"][0]["content"] = "x" * 1_900_000
    refused = me.call("POST", "/v1/sessions/import", document)
    assert refused.status == 201, refused.body
    again = me.call("POST", "/v1/sessions/import", document)
    assert (again.status, again.code) == (507, "disk_quota_exceeded")

"""A backup of a server that works, brought back elsewhere: everything is there and goes on."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.system.server import FREE, Caller, Server

_MAIN = "from amplifier_api_server.control_plane.cli import app; app()"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _MAIN, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def collection() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as files:
        about = '[project]\nname = "birds"\nversion = "1.0.0"\ndescription = "Birds"\n[tool.amplifier.collection]\nauthor = "x"\n'
        files.writestr("pyproject.toml", about)
        profile = "---\nprofile:\n  name: watch\n  version: 1.0.0\n  description: Watching\n  extends: foundation:base\n---\nYou watch.\n"
        files.writestr("profiles/watch.md", profile)
    return file.getvalue()


def test_everything_comes_back_and_goes_on(make_server, tmp_path: Path):
    server = make_server().start()
    me = server.tenant(**FREE)
    answer = me.call("POST", "/v1/collections", collection(), {"Content-Type": "application/zip"})
    assert answer.status == 201, answer.body
    quiet, busy = me.session("birds:watch"), me.session()
    me.ask(quiet, "remember the word plover")
    me.shell(quiet, "echo heron > bird; mkdir nest; ln -s ../bird nest/link")
    me.shell(busy, "echo egret > bird")
    member = me.call("POST", "/v1/members", {"name": "bot", "role": "developer"})
    assert member.status == 201, member.body
    key = me.call("POST", "/v1/keys", {"name": "look", "role": "readonly"}).json["key"]
    used = me.usage()["usage"]
    with me.stream(busy, "stream 2000 at 40/s") as stream:
        stream.take(5)
        second = command("restore", str(tmp_path / "nothing"), "--data-dir", str(server.data_dir))
        done = command("backup", str(tmp_path / "b.tar.gz"), "--data-dir", str(server.data_dir), "--json")
        assert done.returncode == 0, done.stderr
        stream.take(5)  # it runs on
    assert second.returncode == 1
    assert json.loads(done.stdout)["sessions"] == 2
    server.kill()

    target = tmp_path / "elsewhere"
    assert command("restore", str(tmp_path / "b.tar.gz"), "--data-dir", str(target)).returncode == 0
    again = Server(target).start()
    try:
        you = Caller(again.port, me.key)
        assert again.key == ""  # no keys were made or told
        assert "plover" in you.texts(quiet)
        assert "heron" in you.shell(quiet, "cat nest/link")
        assert "egret" in you.shell(busy, "cat bird")
        executions = you.get(f"/v1/sessions/{busy}/executions")["executions"]
        assert {one["status"] for one in executions} == {"completed", "failed"}
        rows = {row["key"]: row["total_tokens"] for row in you.usage()["usage"]}
        assert all(rows[row["key"]] >= row["total_tokens"] for row in used)
        assert member.json["id"] in json.dumps(you.get("/v1/members"))
        assert Caller(again.port, key).call("GET", "/v1/sessions").status == 200
        assert Caller(again.port, server.operator_key).call("GET", "/v1/tenants").status == 200
        you.ask(you.session("birds:watch"), "hello")
        refused = command("restore", str(tmp_path / "b.tar.gz"), "--data-dir", str(target))
        assert refused.returncode == 1
        assert "not empty" in refused.stderr
        again.stop()
    finally:
        again.end()

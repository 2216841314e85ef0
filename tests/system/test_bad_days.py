"""Bad days of an operator: what a server says and does when what it stands on fails, and when that is mended."""

import os
import signal
import sys

from tests.system.server import FREE, Caller, Server, eventually


def ready(server: Server):
    return Caller(server.port).call("GET", "/ready")


def failing(server: Server, part: str) -> dict:
    return ready(server).json["parts"].get(part, {"status": "ok"})


def test_starts_that_fail_are_told_once_and_tried_ever_more_rarely(make_server):
    server = make_server().start()
    me = server.tenant(**FREE)
    assert eventually(lambda: ready(server).json["status"] == "ready")
    folder = server.data_dir / "runtimes"
    kept = folder.rename(server.data_dir / "kept")
    for pid in server.runtimes():
        os.kill(pid, 9)
    assert eventually(lambda: failing(server, "sandboxes").get("failures", 0) >= 3)
    told = ready(server)
    assert told.status == 503
    assert told.json["parts"]["sandboxes"]["is_blocking"]
    assert str(folder) in told.json["parts"]["sandboxes"]["cause"]
    refused = me.call("POST", "/v1/tools/bash/execute", {"input": {"command": "true"}})
    assert refused.status == 503
    assert refused.code == "no_runtime"
    assert int(refused.headers["retry-after"]) >= 1
    assert str(folder) not in refused.body.decode()
    told = [line["cause"] for line in server.logged("error") if line.get("part") == "sandboxes"]
    killed_as_it_began = [cause for cause in told if cause.startswith("the runtime did not answer")]
    assert len(told) - len(killed_as_it_began) == 1
    metrics = Caller(server.port).call("GET", "/metrics").body.decode()
    assert 'amplifier_failing{part="sandboxes"} 1.0' in metrics
    assert "amplifier_sandboxes_up 0.0" in metrics
    kept.rename(folder)
    assert eventually(lambda: ready(server).status == 200)
    assert me.call("POST", "/v1/tools/bash/execute", {"input": {"command": "true"}}).status == 200
    over = [line for line in server.lines() if line["event"] == "a part of the server works again"]
    assert "sandboxes" in [line["part"] for line in over]
    server.stop()


def test_metrics_have_figures_of_the_process_and_the_build(server):
    metrics = Caller(server.port).call("GET", "/metrics").body.decode()
    for name in (
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_start_time_seconds",
    ):
        assert f"\n{name} " in metrics
    assert "amplifier_build_info{version=" in metrics
    assert eventually(
        lambda: "amplifier_database_bytes 0.0" not in Caller(server.port).call("GET", "/metrics").body.decode()
    )
    assert sys.executable not in metrics


def test_a_drain_lets_executions_go_on_and_refuses_others(make_server):
    server = make_server(AMPLIFIER_SERVER__DRAIN_TIMEOUT="60s").start()
    me = server.tenant(**FREE)
    session, other = me.session(), me.session()
    with me.stream(session, "stream 80 at 20/s") as stream:
        stream.take(5)
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: ready(server).json["status"] == "draining")
        assert ready(server).status == 503
        refused = me.execute(other, "hello")
        assert (refused.status, refused.code) == (503, "stopping")
        assert int(refused.headers["retry-after"]) >= 1
        assert stream.rest()[-1].name == "complete"
    assert server.process.wait(90) == 0


def test_a_second_signal_ends_at_once_and_keeps_what_was_said(make_server):
    server = make_server(AMPLIFIER_SERVER__DRAIN_TIMEOUT="10m").start()
    me = server.tenant(**FREE)
    session = me.session()
    with me.stream(session, "stream 4000 at 40/s") as stream:
        seen = stream.take(10)
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: ready(server).json["status"] == "draining")
        server.process.send_signal(signal.SIGTERM)
        seen += stream.rest()
    assert server.process.wait(90) == 0
    assert (seen[-1].name, seen[-1].data["code"]) == ("error", "stopping")
    said = "".join(event.data["content"] for event in seen if event.name == "token")
    server.start()
    again = server.caller(me.key)
    kept = again.messages(session)[-1]
    assert kept["role"] == "assistant"
    assert said[:20] in str(kept["content"])
    execution = again.execution(session, seen[0].request_id)
    assert (execution["status"], execution["problem"]["code"]) == ("cancelled", "stopping")
    assert execution["usage"]["completion_tokens"] >= 10
    assert again.usage()["usage"][0]["total_tokens"] == execution["usage"]["total_tokens"]
    server.stop()

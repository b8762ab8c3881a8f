"""The command line: what people and scripts see, and the exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec
import pytest

from monitoring.reliability import Diagram
from serving.cli import canarium, main
from serving.commands.examine import parse_listener, report

VARIANT = {
    "name": "int8",
    "version": 2,
    "artifact": "moderation/int8:1",
    "role": "candidate",
    "weight": 10.0,
    "shadow": 0.0,
    "vetoed": False,
    "rolled_back": None,
}
MODEL = {"model": "moderation", "epoch": 4, "killed": False, "kill_seq": 0, "variants": [VARIANT]}
STATUS = {
    "version": "0.1.0",
    "rev": 9,
    "monitor": {"alive": True, "heartbeat_age_s": 0.4, "mode": "ok"},
    "gateways": [{"id": "g"}],
    "control": {"database": "ok"},
    "urls": {"http": "http://127.0.0.1:8000"},
    "models": [MODEL],
}
SENTENCE = "agreement: 1 flip in 160 pairs, within 0.03"
VERDICTS = {
    "stale": False,
    "verdicts": [
        {"guard": "agreement", "variant": "int8", "verdict": "pass", "action": "none", "sentence": SENTENCE},
    ],
}


class Server:
    """Answers by path and remembers what was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {
            "/admin/v1/status": STATUS,
            "/admin/v1/models/moderation/verdicts": VERDICTS,
            "/admin/v1/models/moderation/traffic": MODEL,
            **answers,
        }
        self.requests: list[httpx.Request] = []
        self.transport = httpx.MockTransport(self._handle)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.get(request.url.path)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        return (
            httpx.Response(404, json={"error": "no such thing"}) if answer is None else httpx.Response(200, json=answer)
        )

    def run(self, *arguments: str) -> int:
        return main(arguments, transport=self.transport)


DOWN = httpx.MockTransport(lambda request: (_ for _ in ()).throw(httpx.ConnectError("refused")))


def body(request: httpx.Request) -> Any:
    return json.loads(request.content)


# ---------------------------------------------------------------- help and start-up


def test_help_names_every_command_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    commands = (
        *("up", "down", "drain", "check", "monitor", "status", "traffic", "rollback", "kill", "rearm", "audit"),
        *("rollout", "infer", "feedback", "build", "registry", "doctor", "token", "slo", "state", "events"),
        *("approve", "calibration", "card", "gate", "key"),
    )
    assert sorted(canarium.commands) == sorted(commands)
    for word in (*commands, "Exit codes", "cannot be reached", "refused"):
        assert word in shown


def test_every_command_and_option_is_explained() -> None:
    def walk(command: click.Command) -> None:
        assert command.help, command.name
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name not in ("as_json",):
                assert parameter.help, f"{command.name} {parameter.opts}"
        for inner in getattr(command, "commands", {}).values():
            walk(inner)

    walk(canarium)


def test_starting_imports_nothing_heavy() -> None:
    heavy = "ray torch numpy httpx pydantic rich onnxruntime sqlalchemy"
    code = f"import sys, serving.cli; print([m for m in {heavy.split()!r} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# ---------------------------------------------------------------- exit codes


def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["traffic", "moderation", "int8=10"]) == 2  # no reason
    assert main(["traffic", "moderation", "int8=110", "--reason", "x"], transport=DOWN) == 2
    assert main(["traffic", "moderation", "int8", "--reason", "x"], transport=DOWN) == 2
    assert main(["traffic", "moderation", "int8=1", "int8=2", "--reason", "x"], transport=DOWN) == 2
    assert main(["traffic", "moderation", "--reason", "x"], transport=DOWN) == 2
    assert main(["rollback", "moderation", "--reason", " "], transport=DOWN) == 2
    assert main(["kill", "--reason", "x"], transport=DOWN) == 2
    assert main(["kill", "moderation", "--all", "--reason", "x"], transport=DOWN) == 2
    assert main(["no-such-command"]) == 2
    assert "between 0 and 100" in capsys.readouterr().err


def test_an_unreachable_server_is_3_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"], transport=DOWN) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("canarium: cannot reach the control plane at http://127.0.0.1:8003")


def test_a_refusal_is_4_and_another_error_1(capsys: pytest.CaptureFixture[str]) -> None:
    conflict = httpx.Response(409, json={"error": "kill 3 is in force, not 2"})
    server = Server(**{"/admin/v1/models/moderation:rearm": conflict})
    assert server.run("rearm", "moderation", "--kill-seq", "2", "--reason", "x") == 4
    assert "kill 3 is in force, not 2" in capsys.readouterr().err
    assert server.run("rollback", "nobody", "--reason", "x") == 1
    assert "no such thing" in capsys.readouterr().err


def test_a_bug_gives_one_line_and_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CANARIUM_DEBUG", raising=False)
    server = Server(**{"/admin/v1/status": {"models": [{}]}})
    assert server.run("status") == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "internal error: KeyError" in error


# ---------------------------------------------------------------- looking


def test_status_shows_shares_and_the_guards_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    assert Server().run("status") == 0
    shown = capsys.readouterr().out
    for word in ("moderation", "int8", "10 %", "moderation/int8:1", "pass", SENTENCE, "alive"):
        assert word in shown


def test_status_warns_of_a_tokens_file_that_cannot_be_used_and_of_a_baseline_that_is_too_slow(
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow = MODEL | {"baseline": "teacher", "rollback_headroom_ratio": 0.42}
    broken = STATUS | {"models": [slow], "auth": {"mode": "tokens", "fault": "line 3: no role"}}
    assert Server(**{"/admin/v1/status": broken}).run("status") == 0
    shown = capsys.readouterr().out
    assert "tokens: line 3: no role" in shown
    assert "teacher could carry 0.42× of the present traffic" in shown


def test_status_as_json_is_the_api_plus_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    assert Server().run("status", "--json") == 0
    assert json.loads(capsys.readouterr().out) == STATUS | {"verdicts": {"moderation": VERDICTS}}


def test_status_works_without_the_monitor(capsys: pytest.CaptureFixture[str]) -> None:
    silent = httpx.Response(503, json={"error": "no heartbeat yet"})
    assert Server(**{"/admin/v1/models/moderation/verdicts": silent}).run("status") == 0
    assert "int8" in capsys.readouterr().out


def test_audit_lists_and_verifies(capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"seq": 5, "at": "2026-01-01T00:00:00Z", "actor": "monitor", "action": "rollback", "reason": "flips"}
    server = Server(
        **{"/admin/v1/audit": {"entries": [entry]}, "/admin/v1/audit/verify": {"ok": False, "first_bad": 4}}
    )
    assert server.run("audit", "moderation", "--limit", "3") == 0
    assert server.requests[0].url.params["limit"] == "3"
    assert "flips" in capsys.readouterr().out
    assert server.run("audit", "verify") == 1
    assert "entry 4" in capsys.readouterr().err


def test_calibration_is_told_by_judge_and_by_variant(capsys: pytest.CaptureFixture[str]) -> None:
    diagram = Diagram([0.8], 2)
    for n in range(600):
        diagram.add(1, 0.97, float(n % 5 != 0))
    report = diagram.report("int8", True, ["ham", "spam"], [0.0, 0.0], 1.0)
    coverage = {"variant": "int8", "answers": 1200, "labels": 600, "delays": [{"within_s": 3600, "labels": 600}]}
    other = {**coverage, "variant": "teacher", "labels": 0, "delays": []}
    found = {"model": "moderation", "reports": [msgspec.to_builtins(report)], "coverage": [coverage, other]}
    server = Server(**{"/admin/v1/models/moderation/calibration": found})
    assert server.run("calibration", "moderation", "--variant", "int8") == 0
    said = capsys.readouterr().out
    for part in ("int8, right by label: 600 answers", "0.970", "0.800", "spam: 600 answers", "it is not applied"):
        assert part in said
    assert "int8: 600 of 1200 answers labelled (50.0%): 600 within 1 h" in said
    assert "teacher:" not in said
    server = Server(**{"/admin/v1/models/moderation/calibration": {**found, "reports": []}})
    assert server.run("calibration", "moderation") == 0
    assert "no answer with a probability has been labelled" in capsys.readouterr().out


def test_the_status_says_what_killed_a_model_and_how_a_kill_of_all_is_released(
    capsys: pytest.CaptureFixture[str],
) -> None:
    teacher = VARIANT | {"name": "teacher", "role": "baseline", "weight": 90.0}
    model = MODEL | {"killed": True, "killed_by": "kill-switch", "variants": [teacher, VARIANT]}
    latch = {"on": True, "kill_seq": 3, "cleared_seq": 2, "kill": {"at": "now", "actor": "ann", "reason": "it lies"}}
    assert Server(**{"/admin/v1/status": STATUS | {"kill_switch": latch, "models": [model]}}).run("status") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "ALL MODELS KILLED (kill 3) by ann: it lies" in lines
    assert "re-arm with: canarium rearm --all --kill-seq 3 --reason WHY" in lines
    assert "moderation epoch 4 KILLED by the kill-switch of all models" in lines
    assert [line.split("moderation/int8:1 ")[1] for line in lines if "int8:1" in line] == ["in traffic", "killed"]
    own = MODEL | {"killed": True, "killed_by": "model", "kill_seq": 6}
    off = {"on": False, "kill_seq": 3, "cleared_seq": 3, "kill": None}
    assert Server(**{"/admin/v1/status": STATUS | {"kill_switch": off, "models": [own]}}).run("status") == 0
    told = capsys.readouterr().out
    assert "KILLED (kill 6)" in told
    assert "--all" not in told


# ---------------------------------------------------------------- changing


def test_traffic_sends_only_what_is_named() -> None:
    server = Server()
    assert server.run("traffic", "moderation", "int8=10", "distilled=2.5%", "--shadow", "x=5", "--reason", "go") == 0
    sent = body(server.requests[0])
    assert sent.pop("actor").startswith("cli:")
    assert sent == {"weights": {"int8": 10.0, "distilled": 2.5}, "shadow": {"x": 5.0}, "reason": "go"}


def test_the_address_and_the_token_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CANARIUM_CONTROL", "http://control.example:9000")
    monkeypatch.setenv("CANARIUM_TOKEN", "from-environment")
    server = Server()
    assert server.run("status") == 0
    assert str(server.requests[0].url) == "http://control.example:9000/admin/v1/status"
    assert server.requests[0].headers["authorization"] == "Bearer from-environment"
    monkeypatch.setenv("CANARIUM_TOKEN", "from-a-secret\n")
    assert server.run("status") == 0
    assert server.requests[-1].headers["authorization"] == "Bearer from-a-secret"
    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert server.run("status", "--token-file", str(file)) == 0
    assert server.requests[-1].headers["authorization"] == "Bearer from-file"


def test_a_token_that_cannot_be_used_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CANARIUM_TOKEN", "two\nlines")
    file = tmp_path / "token"
    file.write_text("from-file\n", encoding="utf-16")
    for options in ([], ["--token-file", str(file)]):
        assert Server().run("status", *options) == 1
        expected = "canarium: the token is not one line of printable ASCII, as `canarium token create` prints it\n"
        assert capsys.readouterr().err == expected


# ---------------------------------------------------------------- models


def test_infer_asks_as_a_user_or_for_a_variant(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = httpx.Response(
        200,
        json={"id": "r-1", "outputs": [{"name": "label", "data": ["spam"]}, {"name": "probabilities", "data": [0.25]}]},
        headers={"x-canarium-variant": "int8", "x-canarium-reason": "override"},
    )
    server = Server(**{"/v2/models/moderation/infer": answer})
    mail = tmp_path / "mail.txt"
    mail.write_text("free money", encoding="utf-8")
    assert server.run("infer", "moderation", f"@{mail}", "--variant", "int8", "--user", "ann") == 0
    request = server.requests[0]
    assert request.headers["x-canarium-variant"] == "int8"
    assert request.headers["x-user-id"] == "ann"
    assert body(request)["inputs"][0]["data"] == ["free money"]
    shown = capsys.readouterr().out
    assert "label: spam" in shown
    assert "0.2500" in shown
    assert "int8 (override)" in shown


def test_a_file_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", "moderation", "@/no/such/file"], transport=DOWN) == 1
    assert capsys.readouterr().err == "canarium: /no/such/file: No such file or directory\n"


def test_feedback_goes_to_the_model() -> None:
    server = Server(**{"/v2/models/moderation/feedback": {}})
    assert server.run("feedback", "moderation", "r-1", "spam") == 0
    assert body(server.requests[0]) == {"id": "r-1", "label": "spam"}


def test_a_registry_that_is_not_there_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "list", "--registry", str(tmp_path / "none")]) == 1
    assert "canarium build RECIPE" in capsys.readouterr().err


def test_registry_lists_shows_and_notices_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from serving.registry.manifest import Postprocess, Preprocess, Signature, TensorSpec
    from serving.registry.store import Registry

    file = tmp_path / "model.onnx"
    file.write_bytes(b"weights")
    store = Registry(tmp_path / "registry")
    both = Signature(inputs=(TensorSpec("x", "FP32", (-1,)),), outputs=(TensorSpec("y", "FP32", (-1,)),))
    store.register(
        "m",
        "teacher",
        {"model.onnx": file},
        format="onnx",
        entry="model.onnx",
        signature=both,
        session=both,
        preprocess=Preprocess(kind="none"),
        postprocess=Postprocess(task="none"),
    )
    where = ["--registry", str(tmp_path / "registry")]
    assert main(["registry", "list", *where]) == 0
    assert "m/teacher:1" in capsys.readouterr().out
    assert main(["registry", "show", "m/teacher", *where]) == 0
    assert json.loads(capsys.readouterr().out)["variant"] == "teacher"
    assert main(["registry", "verify", *where]) == 0
    capsys.readouterr()
    (blob,) = (path for path in (tmp_path / "registry" / "blobs").rglob("*") if path.is_file())
    blob.chmod(0o644)
    blob.write_bytes(b"damaged")
    assert main(["registry", "verify", *where]) == 1
    assert "0 of 1" in capsys.readouterr().out


# ---------------------------------------------------------------- lifecycle


def supervisor(monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., int]) -> None:
    fake = types.ModuleType("serving.supervisor")
    fake.__dict__.update(functions)
    monkeypatch.setitem(sys.modules, "serving.supervisor", fake)


CONFIG = """
apiVersion: canarium/v1
models: {m: {baseline: a, variants: {a: {artifact: "m/a:1"}, b: {artifact: "m/b:1"}}, routing: {weights: {b: 5}}}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "canarium.yaml"
    path.write_text(CONFIG)
    return path


def test_up_gives_the_checked_configuration_and_returns_the_supervisors_code(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def start(*arguments: Any) -> int:
        seen.extend(arguments)
        return 7

    supervisor(monkeypatch, up=start)
    assert main(["up", "-f", str(config), "--set", "server.http_port=9000"]) == 7
    assert seen[0].server.http_port == 9000
    assert seen[1] == config


def test_down_takes_the_state_directory_of_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Path] = []

    def stop(state_dir: Path) -> int:
        seen.append(state_dir)
        return 3

    supervisor(monkeypatch, down=stop)
    assert main(["down", "-f", str(config), "--set", "state.dir=/somewhere"]) == 0
    assert seen == [Path("/somewhere")]
    assert "ended 3 processes" in capsys.readouterr().out


def test_check_names_the_fault_or_says_valid(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(config)]) == 0
    assert "valid" in capsys.readouterr().out
    assert main(["check", str(config), "--set", "models.m.routing.weights.b=105"]) == 1
    assert capsys.readouterr().err == "canarium: models.m.routing.weights.b: 105 is over 100\n"


# ---------------------------------------------------------------- doctor


def test_listeners_are_read_from_the_kernels_table() -> None:
    line = "   0: 0100007F:1F43 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0"
    found = parse_listener(line)
    assert found is not None
    inode, (address, port) = found
    assert (inode, str(address), port) == ("4242", "127.0.0.1", 8003)
    six = "   0: 00000000000000000000000001000000:1F90 " + "0" * 32 + ":0000 0A 0:0 00:0 0 0 0 77 1 0"
    assert str(parse_listener(six)[1][0]) == "::1"  # type: ignore[index]
    assert parse_listener(line.replace(" 0A ", " 01 ")) is None


def test_the_doctor_says_what_a_taken_port_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.commands import examine

    monkeypatch.setattr(examine, "_free", lambda host, port: port != 8001)
    found = report(None, tmp_path)
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["port 8000 (http)"]["ok"]
    assert not checks["port 8001 (grpc)"]["ok"]
    assert "server.grpc_port" in checks["port 8001 (grpc)"]["found"]
    assert not found["ok"]
    assert found["versions"]["ray"]
    assert found["listeners"] == []

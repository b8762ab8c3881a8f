"""`canarium rollout simulate` and `canarium events export`: what people and scripts see."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from recorded_kit import Gateway, traffic

from serving.cli import main
from serving.clock import FakeClock
from tests.support import tiny

ROLLOUT = """
required: [errors, agreement]
steps:
  - shadow: {percent: 20, min_requests: 20, max_duration: 5m}
  - set_weight: 50
  - bake: {until: pass, min_requests: 100, max_duration: 5m}
monitor: {duration: 10s}
"""
SIMULATE = ("rollout", "simulate", "m", "int8", "--baseline", "teacher")


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    (tmp_path / "rollout.yaml").write_text(ROLLOUT)
    return Gateway(tmp_path, FakeClock())


def simulate(gateway: Gateway, *more: str, policy: str = "rollout.yaml") -> int:
    folder = gateway.path.parent
    return main((*SIMULATE, "--from", str(folder), "-f", str(folder / policy), *more))


def test_a_good_candidate_passes_gates_and_becomes_the_baseline(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    traffic(gateway, 100)
    assert simulate(gateway) == 0
    out = capsys.readouterr().out
    assert "m/int8 by file, over 3000 records of 1 file, 2023-11-14T22:13:20.000Z to 2023-11-14T22:14:59.000Z" in out
    for told in (
        "the shadow has passed",
        "50 % has held",
        "every required guard has passed",
        "it would have succeeded",
    ):
        assert told in out


def test_a_broken_candidate_is_rolled_back_and_the_script_sees_it(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    traffic(gateway, 20, each=1, flip=True)
    assert simulate(gateway) == 1
    printed = capsys.readouterr()
    assert "over the gross limit of 6.0 %" in printed.out
    assert printed.err.startswith("canarium: int8 would have been rolled back: int8 disagrees with teacher on ")


def test_json_says_when_each_guard_tripped_and_each_move_was_made(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    traffic(gateway, 20, each=1, flip=True)
    (gateway.path.parent / "noise.spool").write_bytes(b"noise")
    assert simulate(gateway, "--json") == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert "left out: " in printed.err
    assert "noise.spool" in printed.err
    recording = found["recording"]
    assert (recording["records"], recording["files"], recording["seconds"]) == (60, 1, 19.0)
    assert len(recording["unreadable"]) == 1
    assert [(move["from"], move["to"]) for move in found["moves"]] == [
        ("pending", "warmup"), ("warmup", "shadow"), ("shadow", "paused"), ("paused", "rolling_back"),
        ("rolling_back", "rolled_back"),
    ]  # fmt: skip
    guards = {guard["guard"]: guard for guard in found["guards"]}
    pause, trip = guards["agreement"]["trips"]  # over the limit an answer before the gross one
    assert pause["action"] == "pause"
    assert (trip["action"], guards["agreement"]["required"]) == ("rollback", True)
    assert 0 < trip["pairs"] == trip["live_answers"] == trip["suspect_answers"] < 20
    assert trip["after_s"] == trip["pairs"] - 1
    assert f"on {trip['pairs']} of {trip['pairs']} scored answers" in trip["sentence"]
    assert (guards["latency"]["trips"], guards["latency"]["verdict"]) == ([], "no_data")
    assert (found["outcome"], found["why"]) == ("rolled_back", found["moves"][-1]["why"])


def test_a_built_in_policy_is_named_and_waits_for_what_was_not_recorded(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    traffic(gateway, 30)
    assert main((*SIMULATE, "--from", str(gateway.path), "--policy", "fast", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["policy"], found["outcome"], found["state"]) == ("fast", "under_way", "ramping")
    assert found["waiting"].startswith("waits for: latency, no_data")


def test_the_limits_come_from_the_configuration(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    folder = gateway.path.parent
    registry = folder / "registry"
    tiny.build(registry, {"teacher": tiny.graph(), "int8": tiny.graph()}, model="m")
    config = folder / "canarium.yaml"
    config.write_text(f"""
apiVersion: canarium/v1
registry: {{dir: {registry}}}
models:
  m:
    baseline: teacher
    variants: {{teacher: {{artifact: m/teacher}}, int8: {{artifact: m/int8}}}}
    guards: {{agreement: {{limit: 0.9}}}}
""")
    traffic(gateway, 20, each=1, flip=True)
    arguments = ("--from", str(gateway.path), "-f", str(folder / "rollout.yaml"), "--config", str(config))
    assert main((*SIMULATE[:4], *arguments)) == 0
    assert "held to the limit of 90.0 %" in capsys.readouterr().out
    # A guard in dry run is no more waited for than by the rollout itself.
    config.write_text(config.read_text().replace("limit: 0.9}", "limit: 0.9}, dry_run: [errors, latency]"))
    main((*SIMULATE[:4], *arguments, "--json"))
    said = json.loads(capsys.readouterr().out)
    assert "errors" not in said["waiting"]
    assert "latency" not in said["waiting"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("m", "int9", "--baseline", "teacher"),
            "no records of 'int9', the candidate: there are records of int8 (2), ",
        ),
        (("m", "int8", "--baseline", "old"), "no records of 'old', the baseline: there are records of int8 (2), teac"),
        (("m", "int8", "--baseline", "teacher", "--teacher", "x"), "no records of 'x', the teacher"),
        (("m", "int8", "--baseline", "int8"), "int8 is the baseline already"),
        (("nope", "int8", "--baseline", "teacher"), "no records of the model 'nope': there are records of m, other"),
    ],
)
def test_what_was_not_recorded_is_an_error_that_says_what_was(
    gateway: Gateway, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    traffic(gateway, 1, each=1)
    assert main(("rollout", "simulate", *arguments, "--from", str(gateway.path), "--policy", "fast")) == 1
    assert told in capsys.readouterr().err


def test_wrong_usage_is_told(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    traffic(gateway, 1, each=1)
    source = ("--from", str(gateway.path))
    for arguments, told in (
        ((*SIMULATE, *source, "--policy", "fast", "-f", str(gateway.path)), "name one of --policy and -f, not both"),
        (
            (*SIMULATE, *source, "--policy", "brave"),
            "unknown policy 'brave', expected one of careful, fast, shadow-only",
        ),
        ((*SIMULATE[:4], *source, "--policy", "fast"), "name the baseline: --config or --baseline"),
        ((*SIMULATE, *source, "--policy", "fast", "--since", "soon"), "'soon' is neither a duration such as 2h nor"),
    ):
        assert main(arguments) == 2
        assert told in capsys.readouterr().err


def test_a_wrong_rollout_file_is_refused_as_start_refuses_it(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    traffic(gateway, 1, each=1)
    path = gateway.path.parent / "wrong.yaml"
    path.write_text("steps: [{set_weight: 200}]")
    assert simulate(gateway, policy="wrong.yaml") == 1
    told = capsys.readouterr().err
    assert f"{path}: steps[0].set_weight: 200 is not between 0.01 and 100" in told
    assert main(("rollout", "start", "m", "int8", "-f", str(path))) == 1
    assert capsys.readouterr().err == told


def test_since_and_until_choose_a_span(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    traffic(gateway, 20, each=1)
    span = ("--since", "2023-11-14T22:13:25Z", "--until", "2023-11-14T22:13:30", "--json")
    assert simulate(gateway, *span) == 0
    recording = json.loads(capsys.readouterr().out)["recording"]
    assert (recording["records"], recording["from"]) == (15, "2023-11-14T22:13:25.000Z")
    assert simulate(gateway, "--since", "1h") == 1
    assert "none is from the time asked for" in capsys.readouterr().err


def test_an_export_without_pyarrow_names_the_extra(
    gateway: Gateway, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    traffic(gateway, 1, each=1)
    target = gateway.path.parent / "events.parquet"
    assert main(("events", "export", str(target), "--model", "m", "--from", str(gateway.path))) == 1
    assert "pip install 'canarium[parquet]'" in capsys.readouterr().err
    assert not target.exists()


def test_what_was_exported_can_be_simulated(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    traffic(gateway, 20, each=1, flip=True)
    target = gateway.path.parent / "events.parquet"
    export = ("events", "export", str(target), "--model", "m", "--from", str(gateway.path))
    assert main(export) == 0
    assert capsys.readouterr().out == f"{target}: 60 records of m from 1 file\n"
    assert main(export) == 1
    assert "exists already" in capsys.readouterr().err
    found = []
    for source in (target, gateway.path):
        arguments = ("--from", str(source), "-f", str(target.parent / "rollout.yaml"), "--json")
        assert main((*SIMULATE, *arguments)) == 1
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]

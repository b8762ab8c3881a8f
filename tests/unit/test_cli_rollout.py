"""`canarium rollout`: what people and scripts see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.cli import main
from serving.commands import render
from serving.commands.rollout import DEFAULT_POLICY
from serving.core.rollout_plan import MANY
from serving.core.rollout_policy import DEFAULT

VIEW: dict[str, Any] = {
    "id": "int8-1", "model": "moderation", "variant": "int8", "baseline": "teacher", "policy": "fast",
    "state": "paused", "hold": "approval", "held": "ramping", "live": True, "step": 1,
    "steps": [{"shadow": {"percent": 100.0, "until": "pass"}}, {"approve": {"role": "operator"}}, {"set_weight": 50.0}],
    "weight": 10.0, "shadow": 0.0, "why": "10 % has held", "waiting": "waits for the approval of an operator",
    "attempt": 1, "verdicts": [
        {"guard": "errors", "required": True, "verdict": "pass", "action": "none", "sentence": "no error in 900"},
    ],
}  # fmt: skip
OVER = VIEW | {"id": "int8-0", "state": "rolled_back", "hold": None, "live": False, "waiting": "", "verdicts": []}


class Server:
    """The admin API's rollouts, remembering what was asked."""

    def __init__(self, *views: dict[str, Any], refuse: httpx.Response | None = None) -> None:
        self.views, self.refuse, self.requests = list(views), refuse, list[httpx.Request]()

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.method == "GET":
            return httpx.Response(200, json={"rollouts": self.views})
        return self.refuse or httpx.Response(200, json=self.views[0] | {"state": "ramping", "hold": None})

    def run(self, *arguments: str) -> int:
        return main(("rollout", *arguments), transport=httpx.MockTransport(self._handle))

    @property
    def sent(self) -> Any:
        return json.loads(self.requests[-1].content)


def test_start_names_a_policy_or_gives_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(VIEW)
    assert server.run("start", "moderation", "int8", "--policy", "fast") == 0
    assert "follow it with: canarium rollout show int8-1" in capsys.readouterr().out
    assert (server.sent["model"], server.sent["policy"], server.sent["reason"]) == (
        "moderation", "fast", "started by hand",
    )  # fmt: skip
    path = tmp_path / "rollout.yaml"
    path.write_text("steps:\n  - set_weight: 5\n  - bake: {max_duration: 1h}\n")
    assert server.run("start", "moderation", "int8", "-f", str(path), "--reason", "mine") == 0
    assert server.sent["policy"] == {"steps": [{"set_weight": 5}, {"bake": {"max_duration": "1h"}}]}
    assert server.run("start", "moderation", "int8", "--policy", "fast", "-f", str(path)) == 2
    assert "name one of --policy and -f, not both" in capsys.readouterr().err


def test_start_prints_what_the_prediction_warns_of(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(VIEW | {"warnings": ["step 3 is not done within 10m at 0.1 answers/s"]})
    assert server.run("start", "moderation", "int8", "--policy", "fast") == 0
    told = capsys.readouterr()
    assert told.err == "WARNING step 3 is not done within 10m at 0.1 answers/s\n"
    assert "follow it with" in told.out


def test_start_without_a_policy_is_careful_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(VIEW | {"policy": "careful"})
    assert server.run("start", "moderation", "int8") == 0
    assert server.sent["policy"] == "careful"
    said = capsys.readouterr().out
    assert "by the policy careful (the default; --policy or -f names another) is ramping" in said
    assert server.run("start", "moderation", "int8", "--policy", "careful") == 0
    assert "the default" not in capsys.readouterr().out
    assert server.run("start", "--help") == 0
    assert "[default: careful]" in " ".join(capsys.readouterr().out.split())
    assert DEFAULT_POLICY == DEFAULT


def test_a_wrong_file_is_refused_with_the_path_and_nothing_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, path = Server(VIEW), tmp_path / "rollout.yaml"
    path.write_text("steps:\n  - set_weight: 5\n  - bake: {min_duration: -5m}\nholdback: 70\n")
    assert server.run("start", "moderation", "int8", "-f", str(path)) == 1
    said = capsys.readouterr().err
    assert f"{path}: steps[1].bake.min_duration: '-5m' is not a duration" in said
    assert f"{path}: holdback: 70 is not between 0 and 50" in said
    path.write_text("steps: [")
    assert server.run("start", "moderation", "int8", "-f", str(path)) == 1
    assert "not valid YAML" in capsys.readouterr().err
    assert server.requests == []


def test_show_says_where_it_stands_and_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert Server(VIEW, OVER).run("show", "moderation") == 0
    said = capsys.readouterr().out
    for words in ("paused (approval)", "step 2/3", "waits for the approval of an operator", "no error in 900", "→"):
        assert words in said
    assert Server(VIEW, OVER).run("show", "int8-0", "--json") == 0
    assert json.loads(capsys.readouterr().out) == OVER


def test_plan_says_what_each_step_takes_and_warns(capsys: pytest.CaptureFixture[str]) -> None:
    need = {"observations": 5305, "bound": 2995, "seconds": 7200.0, "suspect": 43.2}
    step = {
        "step": 2, "rate": 0.8, "seconds": None, "passes": {"errors": need, "agreement": need | {"observations": MANY}},
        "detects": {"1.5x": need | {"seconds": None}, "2x": need, "4x": need | {"seconds": 9.0}}, "warnings": ["slow"],
    }  # fmt: skip
    assumed = {"rate": 80.0, "agreement": 0.02, "errors": 0.001}
    told = {"model": "moderation", "variant": "int8", "policy": "fast", "assumed": assumed, "steps": [step]}
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json=told | {"warnings": ["step 3 is not done within 10m"]})

    arguments = ("rollout", "plan", "moderation", "int8", "--policy", "fast")
    assert main(arguments, transport=httpx.MockTransport(answer)) == 0
    assert asked[0].url.params["dry_run"] == "true"
    said = capsys.readouterr().out
    for words in (
        "80 requests/s",
        "errors 5305, agreement never",
        "2.0 h (43)",
        "9 s (43)",
        "never",
        "WARNING step 3 is not done",
    ):
        assert words in said
    assert render.MANY == MANY


def test_list_shows_all(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(VIEW, OVER)
    assert server.run("list", "moderation") == 0
    assert server.requests[-1].url.params["model"] == "moderation"
    said = capsys.readouterr().out
    assert "int8-1" in said
    assert "rolled_back" in said


@pytest.mark.parametrize("action", ["pause", "resume", "promote", "abort", "approve", "retry"])
def test_each_action_is_asked_of_the_rollout_of_a_model(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(VIEW, OVER)
    assert server.run(action, "moderation", "--reason", "why") == 0
    assert server.requests[-1].url.path == f"/admin/v1/rollouts/int8-1:{action}"
    assert (server.sent["reason"], "override" in server.sent) == ("why", False)
    assert "rollout int8-1 of int8 is ramping" in capsys.readouterr().out
    assert server.run(action, "moderation") == 2  # no reason


def test_an_override_is_said_and_only_where_it_means_something() -> None:
    server = Server(VIEW)
    assert server.run("promote", "int8-1", "--override", "--reason", "urgent") == 0
    assert server.sent["override"] is True
    assert server.run("approve", "int8-1", "--override", "--reason", "urgent") == 0
    assert server.sent["override"] is True
    assert server.run("abort", "int8-1", "--override", "--reason", "x") == 2


def test_a_refusal_is_exit_code_4_and_an_unclear_target_1(capsys: pytest.CaptureFixture[str]) -> None:
    refused = httpx.Response(409, json={"error": "rollout int8-1: resume is not possible while it is killed"})
    assert Server(VIEW, refuse=refused).run("resume", "int8-1", "--reason", "x") == 4
    assert "not possible while it is killed" in capsys.readouterr().err
    assert Server(VIEW, VIEW | {"id": "other-2"}).run("show", "moderation") == 1
    assert "several rollouts under way, name one: int8-1, other-2" in capsys.readouterr().err
    assert Server().run("show", "moderation") == 1
    assert "no rollout 'moderation'" in capsys.readouterr().err


def test_the_status_lists_the_rollouts_of_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    model = {"model": "moderation", "epoch": 4, "killed": False, "kill_seq": 0, "variants": [], "rollouts": [VIEW]}

    def answer(request: httpx.Request) -> httpx.Response:
        found = {"models": [model]} if request.url.path.endswith("/status") else {"verdicts": []}
        return httpx.Response(200, json=found)

    assert main(("status",), transport=httpx.MockTransport(answer)) == 0
    assert "waits for the approval of an operator" in capsys.readouterr().out

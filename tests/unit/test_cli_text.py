"""What others wrote, on the terminal of whoever lists it: all of it is seen, none of it is obeyed."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from serving.cli import main

#: A closing tag of Rich without its opening one, an opening one, and orders to a terminal.
REASON = "[/ops/17] [jira-12] [bold]flips :bug: \x1b[2Jgone \x9b1m\rback"
SHOWN = "[/ops/17] [jira-12] [bold]flips :bug: [2Jgone 1mback"
VARIANT = {"name": "int8", "version": 2, "artifact": "[a]/int8:1", "role": "candidate", "weight": 10.0, "shadow": 0.0}
BACK = VARIANT | {"rolled_back": {"at": "now", "actor": "ann", "reason": REASON}}
ROLLOUT = {
    "id": "int8-1", "model": "moderation", "variant": "int8", "policy": "fast", "state": "paused", "hold": "manual",
    "live": True, "step": 0, "steps": [{"set_weight": 50.0}], "weight": 10.0, "shadow": 0.0, "attempt": 1,
    "why": REASON, "waiting": "", "verdicts": [
        {"guard": "errors", "required": True, "verdict": "pass", "action": "none", "sentence": f"x {REASON}"},
    ],
}  # fmt: skip
MODEL = {"model": "moderation", "epoch": 4, "killed": False, "variants": [BACK], "rollouts": [ROLLOUT]}
SWITCH = {"on": True, "kill_seq": 3, "cleared_seq": 2, "kill": {"at": "now", "actor": "ann", "reason": REASON}}
ROW = {"seq": 5, "at": "2026-01-01T00:00:00Z", "actor": "[/ann]", "action": "kill", "model": "*", "reason": REASON}
ANSWERS: dict[str, Any] = {
    "/admin/v1/status": {"rev": 9, "kill_switch": SWITCH, "models": [MODEL]},
    "/admin/v1/models/moderation/verdicts": {"verdicts": [{"guard": "errors", "sentence": REASON}]},
    "/admin/v1/audit": {"entries": [ROW]},
    "/admin/v1/rollouts": {"rollouts": [ROLLOUT]},
}


def run(*arguments: str) -> int:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.method != "GET":
            return httpx.Response(409, json={"error": f"was rolled back: {REASON}"})
        answer = ANSWERS[request.url.path]
        return httpx.Response(200, json={"entries": []} if request.url.params.get("after", "0") != "0" else answer)

    return main(arguments, transport=httpx.MockTransport(handle))


@pytest.mark.parametrize(
    ("arguments", "times"),
    [(["status"], 4), (["audit"], 1), (["rollout", "list"], 1), (["rollout", "show", "int8-1"], 2)],
)
def test_a_reason_is_shown_as_it_was_written_and_not_obeyed(
    arguments: list[str], times: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(*arguments) == 0
    shown = capsys.readouterr().out
    assert shown.count(SHOWN) == times
    assert not set(shown) & set("\x1b\x9b\r")


def test_a_refusal_that_quotes_a_reason_is_one_line_without_orders(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("rollback", "moderation", "--reason", "x") == 4
    error = capsys.readouterr().err
    assert error == f"canarium: the control plane refused: was rolled back: {SHOWN}\n"


@pytest.mark.parametrize("arguments", [["audit", "--json"], ["audit", "export"]])
def test_json_holds_it_all_and_escaped(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 0
    shown = capsys.readouterr().out
    assert not set(shown) & set("\x1b\x9b\r")
    found = json.loads(shown)
    assert (found[0] if isinstance(found, list) else found)["reason"] == REASON

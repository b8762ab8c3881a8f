"""`canarium card --system --live`: what is in force, as a real control plane says it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from control_kit import ME, Rig, entry, spec
from governance_kit import registry_at
from rollout_kit import POLICY

from serving.cli import main
from serving.core.commands import ALL, Command, Kill, ModelSpec, Rollback, SetTraffic, StartRollout

ADDRESS = "http://127.0.0.1:8003"
VARIANTS = {name: entry(name, at, f"m/{name}:1") for at, name in enumerate(("teacher", "int8"), start=1)}


def deployed(**changes: Any) -> dict[str, ModelSpec]:
    """What the control plane was started with: shares of its own, whatever the file says."""
    return {"moderation": spec(**{"variants": VARIANTS, "weights": {"int8": 500}, "shadow": {}, **changes})}


class Live:
    """A deployment's file, and the control plane that runs it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.rig, self._capsys = Rig(folder), capsys
        self.asked: list[httpx.Request] = []
        self.path = folder / "mail.yaml"
        self.path.write_text(
            f"apiVersion: canarium/v1\nregistry: {{dir: {registry_at(folder).root}}}\n"
            "models:\n  moderation:\n    baseline: teacher\n"
            "    variants: {teacher: {artifact: 'm/teacher:1'}, int8: {artifact: 'm/int8:1'}}\n"
            "    routing: {weights: {int8: 40}, shadow: {int8: 20}}\n"
        )

    async def start(self, models: Mapping[str, ModelSpec] | None = None, *commands: Command) -> None:
        await self.rig.start(models or deployed())
        for command in commands:
            await self.rig.plane.execute(command)

    def card(self, *options: str, code: int = 0) -> str:
        arguments = ("card", "--system", str(self.path), *options)
        assert main(arguments, transport=httpx.MockTransport(self._handle)) == code
        shown = self._capsys.readouterr()
        return shown.err if code else shown.out

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        assert request.url.path == "/admin/v1/status"
        return httpx.Response(200, content=msgspec.json.encode(self.rig.plane.status()))


@pytest.fixture
def live(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Live:
    monkeypatch.setattr("serving.clock.SystemClock.wall_ns", lambda _: 1_700_000_000_000_000_000)
    monkeypatch.setattr("serving.loading.cpu_info", lambda: {"machine": "x86_64", "flags": ["avx512_vnni"]})
    return Live(tmp_path, capsys)


async def test_without_being_told_nobody_is_asked_and_the_card_says_so(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    await live.start()
    monkeypatch.setenv("CANARIUM_CONTROL", ADDRESS)
    shown = live.card()
    assert "as configured; not what is in force" in shown
    assert "In force" not in shown
    assert live.asked == []


async def test_shares_are_those_in_force_with_the_time_of_asking(live: Live) -> None:
    await live.start()
    shown = live.card("--live")
    for text in (
        "as configured, but for what stands under In force.",
        f"As the control plane at {ADDRESS} said at 2023-11-14T22:13:20.000Z, revision {live.rig.plane.state.rev}.",
        "| `teacher` | m/teacher:1 | 95 % | 0 % | baseline |",
        "| `int8` | m/int8:1 | 5 % | 0 % | candidate |",
        "- Baseline: teacher\n",
        "- Scored again by teacher: 5 % of candidates' answers",
        "- Kill: none\n",
        "- Rollouts under way: none\n",
        "int8 40 %; the rest to teacher",  # what the file says stays, under its own heading
    ):
        assert text in shown, text
    assert "not what is in force" not in shown
    assert "means" not in shown
    await live.rig.plane.execute(SetTraffic("moderation", ME, "salt", weights={"int8": 30.0}, shadow={"int8": 10.0}))
    assert "| `int8` | m/int8:1 | 30 % | 10 % | candidate |" in live.card("--live", "--control", "http://there:8003")
    assert live.asked[-1].url.host == "there"
    assert "<td>30 %</td>" in live.card("--live", "--format", "html")


async def test_a_veto_and_a_kill_leave_a_candidate_nothing(live: Live) -> None:
    await live.start(None, Rollback("moderation", ME, "int8"))
    assert "| `int8` | m/int8:1 | 0 % | 0 % | rolled back at 2023-11-14T22:13:20.000Z by ann: because |" in live.card(
        "--live"
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [(Kill("moderation", ME), "kill 1"), (Kill(ALL, ME), "the kill-switch of all models")],
)
async def test_a_killed_model_is_its_baseline_alone(live: Live, command: Kill, words: str) -> None:
    await live.start(None, command)
    shown = live.card("--live")
    assert "| `teacher` | m/teacher:1 | 100 % | 0 % | baseline |" in shown
    assert "| `int8` | m/int8:1 | 0 % | 0 % | candidate |" in shown
    assert f"- **Killed** ({words} at 2023-11-14T22:13:20.000Z by ann: because): teacher answers everything" in shown
    assert ("**The kill-switch of all models is on** (kill 1 at" in shown) is (command.model == ALL)


async def test_a_rollout_under_way_is_shown(live: Live) -> None:
    started = StartRollout("moderation", "int8", POLICY["short"], "fast", ME, None)
    await live.start(deployed(weights={}), started)
    shown = live.card("--live")
    assert "- Rollouts under way:\n\n| rollout | of | policy | state | step | why |" in shown
    assert "| `int8-1` | int8 | fast | pending | 1 of 6 | " in shown


async def test_what_runs_and_is_not_in_the_file_is_said(live: Live) -> None:
    variants = VARIANTS | {"int8": entry("int8", 2, "m/int8:9"), "new": entry("new", 3, "m/new:1")}
    await live.start({**deployed(variants=variants, baseline="new"), "other": deployed()["moderation"]})
    shown = live.card("--live")
    assert "| `int8` | m/int8:9 (the file means m/int8:1 now) |" in shown
    assert "| `new` | m/new:1 (not in the file) | 95 % | 0 % | baseline |" in shown
    assert "- Baseline: new (the file says teacher)" in shown
    assert "**It serves models that are not in this configuration: `other`.**" in shown
    live.path.write_text(live.path.read_text().replace("  moderation:", "  mail:"))
    assert "### In force: `mail`\n\n**The control plane does not know it.**" in live.card("--live")


def test_wrong_usage_is_2_and_a_silent_control_plane_is_3(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--live goes with markdown and html" in live.card("--live", "--format", "cyclonedx", code=2)
    assert "go with --live" in live.card("--control", ADDRESS, code=2)
    assert main(("card", "m/int8", "--live")) == 2
    assert "--live goes with --system FILE" in capsys.readouterr().err
    down = httpx.MockTransport(lambda request: (_ for _ in ()).throw(httpx.ConnectError("refused")))
    assert main(("card", "--system", str(live.path), "--live"), transport=down) == 3

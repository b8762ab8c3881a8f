"""What golden rows have shown outlives the monitor that asked them: a brake is not released by a restart."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from monitoring import state as storage
from monitoring.beside import GoldenResult
from monitoring.config import GoldenSettings, MonitorConfig, MonitorModel, MonitorVariant
from monitoring.golden import FIRST_S, Golden
from monitoring.sidecar import Sidecar
from monitoring.watch import Watch
from serving.clock import FakeClock

FAILED = GoldenResult(
    at_ms=5, rows=9, answered=9, labelled=9, right=3, stored=0, flips=0, equal=0,
    same_isa=True, floor=0.9, flips_max=0.02,
)  # fmt: skip
BASELINE = MonitorVariant(1, golden="a.jsonl")
MODEL = MonitorModel("a", "a", {"a": BASELINE}, golden=GoldenSettings(every_s=600.0, floor=0.9))


def config(folder: Path, **models: MonitorModel) -> MonitorConfig:
    return MonitorConfig(
        "test", str(folder / "spool"), str(folder / "state"), str(folder / "word"), "http://control", models,
        commit_s=3600.0,
    )  # fmt: skip


def restarted(folder: Path, **models: MonitorModel) -> Watch:
    """The monitor that follows one whose baseline has failed, under the configuration of now."""
    before = Watch(config(folder, m=MODEL), FakeClock())
    before.beside.golden["m", "a"] = FAILED
    storage.write(folder, before.state({}))
    stored = storage.read(folder)
    assert stored is not None
    after = Watch(config(folder, **models), FakeClock())
    after.restore(stored)
    return after


def test_a_failed_run_of_the_baseline_is_told_after_a_restart(tmp_path: Path) -> None:
    told = [verdict for verdict in restarted(tmp_path, m=MODEL).verdicts()["m"] if verdict.guard == "golden"]
    assert [(verdict.variant, verdict.verdict, verdict.action) for verdict in told] == [("a", "fail", "alert")]


@pytest.mark.parametrize(
    "changed",
    [
        {"variants": {"a": msgspec.structs.replace(BASELINE, version=2)}},
        {"variants": {"a": msgspec.structs.replace(BASELINE, golden="b.jsonl")}},
        {"baseline": "b", "teacher": "b", "variants": {"b": BASELINE}},
        {"golden": GoldenSettings()},
    ],
    ids=["another artifact", "other rows", "no such variant", "asked no more"],
)
def test_what_would_not_be_asked_again_is_dropped(tmp_path: Path, changed: dict[str, Any]) -> None:
    assert restarted(tmp_path, m=msgspec.structs.replace(MODEL, **changed)).beside.golden == {}


def test_a_model_that_is_gone_takes_its_result_along(tmp_path: Path) -> None:
    assert restarted(tmp_path).beside.golden == {}


def test_what_was_counted_is_held_to_the_limits_of_now(tmp_path: Path) -> None:
    lower = msgspec.structs.replace(MODEL, golden=GoldenSettings(every_s=600.0, floor=0.3))
    (verdict,) = restarted(tmp_path, m=lower).verdicts()["m"]
    assert (verdict.verdict, verdict.statistic["right"], verdict.statistic["floor"]) == ("pass", 3, 0.3)


def test_a_state_without_results_is_continued(tmp_path: Path) -> None:
    fields = msgspec.msgpack.decode(Watch(config(tmp_path, m=MODEL), FakeClock()).state({}))
    del fields["golden"]
    storage.write(tmp_path, msgspec.msgpack.encode(fields))
    stored = storage.read(tmp_path)
    assert stored is not None
    Watch(config(tmp_path, m=MODEL), FakeClock()).restore(stored)


async def test_an_idle_monitor_commits_after_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(*_: object) -> GoldenResult:
        return FAILED

    monkeypatch.setattr(Golden, "_ask", ask)
    rows = tmp_path / "a.jsonl"
    rows.write_text(json.dumps({"inputs": []}))
    settings = config(tmp_path, m=msgspec.structs.replace(MODEL, variants={"a": MonitorVariant(1, golden=str(rows))}))
    sidecar, again = Sidecar(settings, clock := FakeClock()), Sidecar(settings, FakeClock())
    try:
        await sidecar._commit()
        clock.advance(FIRST_S)
        await sidecar.golden.step()
        await asyncio.wait_for(sidecar._commit_when_due(), 5)  # of itself it would wait for an hour
        again.restore()
        assert again.watch.beside.golden == {("m", "a"): FAILED}
    finally:
        for client in (sidecar.client, sidecar.gateway, again.client, again.gateway):
            await client.aclose()

"""Which report is due when, what becomes of it, what is kept, and which names are served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client import CollectorRegistry

from monitoring.api import build_app
from monitoring.beside import Beside, drift_verdict
from monitoring.config import DriftSettings, MonitorConfig, MonitorModel, MonitorVariant
from monitoring.drift.job import BUSY, DONE, FAILED, NO_LIBRARY, Column, Job, Summary, stamp_of
from monitoring.reports import FIRST_S, Reports
from serving.clock import FakeClock

DRIFT = DriftSettings(sampled=True, every_s=600.0, keep_reports=2)


class Desk:
    """Reports whose process is played: `statuses` are what it ends with, in turn."""

    def __init__(self, folder: Path, drift: DriftSettings = DRIFT) -> None:
        variants = {"teacher": MonitorVariant(1), "int8": MonitorVariant(2)}
        model = MonitorModel("teacher", "teacher", variants, drift=drift)
        config = MonitorConfig(
            "test", "spool", str(folder), "word", "http://control", {"m": model}, payload_dir=str(folder / "payloads")
        )
        self.clock, self.beside = FakeClock(), Beside()
        self.sampled = {("m", "teacher"): 5, ("m", "int8"): 0}
        self.reports = Reports(config, self.clock, self.beside, lambda: self.sampled)
        self.jobs: list[Job] = []
        self.statuses: list[int | None] = []
        self.reports._run = self._run  # type: ignore[method-assign]

    async def _run(self, job: Job, timeout_s: float) -> tuple[int | None, str]:
        self.jobs.append(job)
        status = self.statuses.pop(0) if self.statuses else DONE
        if status == DONE:
            leave(Path(job.out), job)
        return status, "words"

    async def after(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.reports.step()


def leave(out: Path, job: Job, score: float = 0.5) -> Summary:
    out.mkdir(parents=True, exist_ok=True)
    stamp = stamp_of(job.until_ms)
    summary = Summary(
        job.model, job.variant, stamp, job.since_ms, job.until_ms, 500, 600, "fail" if score >= 0.2 else "pass",
        f"{job.variant}: said", [Column("tokens", "wasserstein", score, 0.2)],
        html=f"{stamp}.html", version=job.version,
    )  # fmt: skip
    (out / summary.html).write_text("<html>page</html>")
    (out / f"{stamp}.json").write_bytes(msgspec.json.encode(summary))
    return summary


async def test_a_variant_with_new_rows_is_reported_on_every_so_often(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    await desk.after(0)
    assert desk.jobs == []
    await desk.after(FIRST_S)
    assert [job.variant for job in desk.jobs] == ["teacher"]  # int8 has no rows
    await desk.after(700)
    assert len(desk.jobs) == 1  # nothing new
    desk.sampled["m", "teacher"] += 1
    await desk.after(1)
    assert len(desk.jobs) == 2
    assert desk.beside.report_results == {"done": 2, "failed": 0, "killed": 0}
    assert desk.beside.drift["m", "teacher"].stamp == stamp_of(desk.jobs[-1].until_ms)


async def test_at_nothing_sampled_or_zero_minutes_none_is_due(tmp_path: Path) -> None:
    for drift in (DriftSettings(sampled=False), DriftSettings(sampled=True, every_s=0)):
        desk = Desk(tmp_path, drift)
        await desk.after(0)
        await desk.after(100_000)
        assert desk.jobs == []


async def test_one_that_hangs_is_counted_and_the_next_comes_in_its_time(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.statuses = [None, FAILED]
    await desk.after(0)
    await desk.after(FIRST_S)
    desk.sampled["m", "teacher"] += 1
    await desk.after(60)
    assert len(desk.jobs) == 1
    await desk.after(600)
    assert desk.beside.report_results == {"done": 0, "failed": 1, "killed": 1}
    assert desk.beside.drift == {}


async def test_while_the_command_line_makes_one_it_waits_a_minute(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.statuses = [BUSY]
    await desk.after(0)
    await desk.after(FIRST_S)
    await desk.after(61)
    assert len(desk.jobs) == 2
    assert desk.beside.report_results["done"] == 1


async def test_without_the_library_it_is_tried_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.statuses = [NO_LIBRARY]
    await desk.after(0)
    for _ in range(3):
        await desk.after(1000)
        desk.sampled["m", "teacher"] += 1
    assert len(desk.jobs) == 1
    assert desk.beside.report_results["failed"] == 1


async def test_reports_of_the_command_line_are_found_and_the_oldest_removed(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.sampled = {}
    out = tmp_path / "reports" / "m" / "int8"
    stamps = [leave(out, Job("m", "int8", 2, "", "", str(out), 0, at * 60_000), score=0.1).stamp for at in range(1, 4)]
    await desk.after(100)
    await desk.after(100)
    assert [one["html"] for one in desk.reports.listed("m")] == [
        f"/v1/reports/m/int8/{stamp}.html" for stamp in reversed(stamps[1:])
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{stamp}.{suffix}" for stamp in stamps[1:] for suffix in ("html", "json")
    )
    assert desk.beside.drift["m", "int8"].stamp == stamps[-1]
    assert desk.reports.listed("other") == []


async def test_a_report_on_an_earlier_artifact_is_listed_but_no_verdict_on_this_one(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.sampled = {}
    out = tmp_path / "reports" / "m" / "int8"
    earlier = leave(out, Job("m", "int8", 1, "", "", str(out), 0, 60_000))
    unversioned = {**msgspec.to_builtins(earlier), "stamp": stamp_of(120_000)}  # as earlier releases left them
    del unversioned["version"]
    (out / f"{stamp_of(120_000)}.json").write_bytes(msgspec.json.encode(unversioned))
    await desk.after(100)
    assert len(desk.reports.listed("m")) == 2
    assert desk.beside.drift == {}
    leave(out, Job("m", "int8", 2, "", "", str(out), 0, 90_000))
    await desk.after(100)
    assert desk.beside.drift["m", "int8"].stamp == stamp_of(90_000)


def test_a_report_speaks_for_as_long_as_the_window_that_it_looked_at(tmp_path: Path) -> None:
    beside, hour_ms = Beside(), 3_600_000
    beside.drift["m", "int8"] = leave(tmp_path, Job("m", "int8", 2, "", "", "", 0, 24 * hour_ms))
    assert [one.verdict for one in beside.verdicts("m", "teacher", 48 * hour_ms)] == ["fail"]
    assert beside.verdicts("m", "teacher", 48 * hour_ms + 1) == []


def test_drift_is_an_alert_and_links_its_report(tmp_path: Path) -> None:
    job = Job("m", "int8", 2, "", "", "", 0, 1_800_000_000_000)
    verdict = drift_verdict(leave(tmp_path, job))
    assert (verdict.guard, verdict.verdict, verdict.action) == ("input_drift", "fail", "alert")
    assert verdict.statistic["report"] == f"/v1/reports/m/int8/{stamp_of(job.until_ms)}.html"
    assert verdict.statistic["scores"] == {"tokens": 0.5}
    assert drift_verdict(leave(tmp_path, job, score=0.1)).action == "none"


@pytest.mark.parametrize(
    "path",
    [
        "m/teacher/../../state.msgpack", "m/teacher/%2e%2e%2f%2e%2e%2fstate.msgpack", "m/nobody/20260101T000000Z.html",
        "nobody/teacher/20260101T000000Z.html", "m/teacher/.lock", "m/teacher/20260101T000000Z.html.new",
        "m/%2e%2e/20260101T000000Z.html", "m/teacher/20270101T000000Z.html",
    ],
)  # fmt: skip
async def test_no_other_file_is_served(tmp_path: Path, path: str) -> None:
    (tmp_path / "state.msgpack").write_text("secret")
    async with client(Desk(tmp_path)) as http:
        answer = await http.get(f"/v1/reports/{path}")
    assert answer.status_code == 404
    assert "secret" not in answer.text


async def test_a_page_is_served_where_its_scripts_reach_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    await desk.after(0)
    await desk.after(FIRST_S)
    async with client(desk) as http:
        (listed,) = (await http.get("/v1/reports")).json()["reports"]
        page, summary = await http.get(listed["html"]), await http.get(listed["json"])
    assert page.text == "<html>page</html>"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'")
    assert "allow-same-origin" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert summary.json()["columns"][0]["name"] == "tokens"
    assert listed["drifted"] == ["tokens"]


def client(desk: Desk) -> httpx.AsyncClient:
    nothing: Any = dict
    app = build_app(CollectorRegistry(), nothing, lambda *_: None, lambda _: None, lambda: {"ok": True}, desk.reports)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")

"""A running instance whose inputs are sampled: a report that shows them, in a real browser; golden rows asked again.

Needs Evidently (`pip install 'canarium[reports]'`) and Chromium; without them it is skipped, or fails where CANARIUM_CI
is set.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serving.registry.store import Registry
from serving.runtimes import features
from serving.runtimes.base import open_session
from serving.runtimes.pipeline import Pipeline
from tests.integration.conftest import PATIENT
from tests.support import tiny
from tests.support.stack import Stack, running, wait_for

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.integration

MISSING = next((f"the Python package {name}" for name in ("evidently", "playwright") if not find_spec(name)), "")
if not MISSING and not CHROMIUM.exists():
    MISSING = "the Debian package chromium"

if MISSING and not os.environ.get("CANARIUM_CI"):
    pytest.skip(f"{MISSING} is not installed", allow_module_level=True)

from playwright.sync_api import sync_playwright  # noqa: E402


def mails(rows: int, words: int, seed: int) -> list[str]:
    """Texts of about so many words, three of ten spam."""
    chance = random.Random(seed)
    return [
        " ".join(chance.choices(["ham", "hello", "news"], k=max(1, int(chance.gauss(words, words / 4)))))
        + (" spam" if chance.random() < 0.3 else "")
        for _ in range(rows)
    ]


def answered(folder: Path, texts: list[str]) -> list[tuple[str, features.Row, list[float]]]:
    """Each text with its features and the teacher's probabilities, as a build takes them."""
    manifest, files = Registry(folder).open("tiny/teacher:1")
    session = open_session(manifest, files, runtime="onnxruntime", threads=1)
    pipeline = Pipeline(manifest, files)
    found = []
    for text in texts:
        inputs = {"text": np.array([text.encode()], dtype=object)}
        ready = pipeline.preprocess(inputs)
        outputs = session.run(ready)
        row = features.of_text(text, ready["input_ids"][0], pipeline.unknown_id)
        row |= features.of_answer(pipeline.summary(outputs), pipeline.labels)
        found.append((text, row, pipeline.postprocess(outputs)["probabilities"][0].astype(float).tolist()))
    return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("drift")
    tiny.build(folder / "draft", {"teacher": tiny.graph()})
    rows = answered(folder / "draft", mails(400, 12, seed=1))
    reference = {
        "schema": "canarium.reference/v1",
        "split": "calibration",
        "rows": len(rows),
        "columns": {name: [row[name] for _, row, _ in rows] for name in rows[0][1]},
    }
    (folder / "reference.json").write_text(json.dumps(reference))
    golden = [
        {
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}],
            "label": row["class"],
            "probabilities": probabilities,
        }
        for text, row, probabilities in rows[:20]
    ]
    (folder / "golden.jsonl").write_text("\n".join(map(json.dumps, golden)))
    graphs = {"teacher": tiny.graph(), "flips": tiny.graph("flips")}
    beside = {name: folder / name for name in ("reference.json", "golden.jsonl")}
    tiny.build(folder / "registry", graphs, beside=beside)
    document: dict[str, Any] = {
        "apiVersion": "canarium/v1",
        "registry": {"dir": str(folder / "registry")},
        "models": {
            "tiny": {
                "baseline": "teacher",
                "variants": {name: {"artifact": f"tiny/{name}:1", "placement": "colocated"} for name in graphs},
                "routing": {"queue": dict(PATIENT)},
                "payloads": {"percent": 100},
                "drift": {"every_minutes": 0, "min_rows": 100},
                "golden": {"every_minutes": 0.05, "floor": 0.9},
            }
        },
    }
    with running(document, folder) as stack:
        yield stack


def report(stack: Stack) -> dict[str, Any]:
    done = stack.canarium("monitor", "report", "tiny", "--state-dir", str(stack.paths.state_dir), "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def sent(stack: Stack, texts: list[str]) -> None:
    for text in texts:
        assert stack.infer("tiny", text).status_code == 200
    wait_for(lambda: sampled(stack) >= len(texts))


def sampled(stack: Stack) -> int:
    files = (stack.paths.payload_dir / "tiny").glob("*.jsonl")
    return sum(len(path.read_bytes().splitlines()) for path in files)


def verdict(stack: Stack, guard: str, variant: str) -> dict[str, Any] | None:
    verdicts = stack.admin.get("/models/tiny/verdicts").json()["verdicts"]
    return next((one for one in verdicts if (one["guard"], one["variant"]) == (guard, variant)), None)


def test_a_report_shows_the_sampled_requests_in_a_browser(stack: Stack, tmp_path: Path) -> None:
    sent(stack, mails(200, 12, seed=2))
    alike = report(stack)
    assert (alike["verdict"], alike["rows"], alike["reference_rows"]) == ("pass", 200, 400)

    sent(stack, mails(300, 40, seed=3))  # much longer ones
    changed = report(stack)
    assert changed["verdict"] == "fail"
    assert {"characters", "tokens"} <= {one["name"] for one in changed["columns"] if one["score"] >= one["threshold"]}
    alert = wait_for(
        lambda: (found := verdict(stack, "input_drift", "teacher")) and found["verdict"] == "fail" and found
    )
    assert alert["action"] == "alert"
    assert alert["sentence"] == changed["sentence"]
    assert not stack.model("tiny")["killed"]
    metrics = stack.monitor.get("/metrics").text
    assert 'canarium_input_drift_score{feature="tokens",model="tiny",variant="teacher"}' in metrics
    assert 'canarium_sampled_rows_total{model="tiny",variant="teacher"} 500.0' in metrics

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        context = browser.new_context(viewport={"width": 1300, "height": 1500})
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{stack.control_port}/")
        with context.expect_page() as opened:
            page.get_by_role("link", name="Report").first.click()
        shown = opened.value
        shown.wait_for_load_state()  # a page that is only being opened cannot be loaded again
        faults: list[str] = []
        foreign: list[str] = []
        shown.on("pageerror", lambda error: faults.append(str(error)))
        origin = f"http://127.0.0.1:{stack.monitor_port}/"
        shown.on("request", lambda request: foreign.append(request.url) if not request.url.startswith(origin) else None)
        shown.reload()
        shown.get_by_text("Data Drift Summary").wait_for(timeout=30_000)
        shown.get_by_text("characters", exact=True).wait_for()
        text = shown.inner_text("body")
        assert "Drift is detected for" in text
        assert "Wasserstein distance (normed)" in text
        assert shown.locator("svg").count() > 5  # the distributions are drawn
        shown.screenshot(path=os.environ.get("CANARIUM_SCREENSHOT", str(tmp_path / "report.png")))
        browser.close()
    assert faults == []
    assert [url for url in foreign if not url.startswith(("data:", "blob:"))] == []


def answered_all(stack: Stack, variant: str) -> dict[str, Any] | None:
    """The verdict on golden rows once the variant has answered all twenty."""
    found = verdict(stack, "golden", variant)
    return found if found and found["statistic"]["answered"] == 20 else None


def test_golden_rows_tell_a_changed_variant_and_leave_statistics_alone(stack: Stack) -> None:
    sound = wait_for(lambda: answered_all(stack, "teacher"))
    assert (sound["verdict"], sound["action"]) == ("pass", "none")
    assert sound["statistic"]["flips"] == 0
    assert verdict(stack, "golden", "flips") is None  # it answers nobody
    stack.traffic("tiny", shadow={"flips": 1})
    changed = wait_for(lambda: answered_all(stack, "flips"), timeout_s=120)
    assert (changed["verdict"], changed["action"], changed["statistic"]["flips"]) == ("fail", "pause", 20)
    before = live(stack)
    asked = golden_requests(stack)
    wait_for(lambda: golden_requests(stack) >= asked + 20)
    assert live(stack) == before


def live(stack: Stack) -> float:
    return total(stack, "canarium_live_requests_total{")


def golden_requests(stack: Stack) -> float:
    return total(stack, "canarium_golden_requests_total{")


def total(stack: Stack, start: str) -> float:
    lines = stack.monitor.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(start))


def test_what_a_report_needs_is_installed() -> None:
    assert not MISSING, f"{MISSING} is not installed, and CANARIUM_CI is set"


def test_a_model_that_is_not_there_is_named(stack: Stack) -> None:
    done = stack.canarium("monitor", "report", "other", "--state-dir", str(stack.paths.state_dir), check=False)
    assert done.returncode == 1
    assert done.stderr == "canarium: unknown model 'other', expected one of tiny\n"
    assert httpx.get(f"http://127.0.0.1:{stack.monitor_port}/v1/reports/tiny/teacher/x.html").status_code == 404

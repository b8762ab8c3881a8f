"""`make demo ARGS=--exit` as a newcomer runs it, on the default ports: every beat of the story is observed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_the_story_is_told_with_every_beat_observed(tmp_path: Path) -> None:
    numbers = tmp_path / "demo.json"
    done = subprocess.run(
        [sys.executable, "-m", "deployments.quickstart.demo", "--exit", "--json", str(numbers)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(numbers.read_text())
    assert told["beats"] == {"baseline": True, "canary": True, "tripped": True, "recovered": True}
    assert told["trip_action"] in ("rollback", "kill")
    assert told["trip_evidence"]["guard"] in ("agreement", "harm")
    assert told["answers"]["broken"] >= 1
    for words in ("onset to trip", "trip to the last candidate answer", "suspect answers served", "client failures"):
        assert words in done.stdout

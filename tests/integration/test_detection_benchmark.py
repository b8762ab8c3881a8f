"""The quick detection benchmark: false alarms within their budgets, delays near the least that any test needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]


def test_it_keeps_every_promise_and_prints_its_table(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.detection", "--quick"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "every promise is kept" in done.stdout
    for part in ("### False alarms", "### Delay beside the bound", "### Harms, and what others see of them"):
        assert part in done.stdout
    assert (tmp_path / ".bench" / "detection.md").is_file()

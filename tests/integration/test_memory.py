"""Memory stays where it is while variants come and go: the short form of `python -m loadtests.memory cycles`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.integration.conftest import REGISTRY
from tests.support.stack import ROOT

pytestmark = pytest.mark.integration


def test_variants_that_come_and_go_leave_nothing_behind() -> None:
    assert (REGISTRY / "models" / "moderation").is_dir(), "the quickstart is not built: `make quickstart` does it"
    kind = "onnxruntime, colocated"
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.memory", "cycles", "--count", "125", "--warm-up", "25", "--kind", kind],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| 125 |" in done.stdout

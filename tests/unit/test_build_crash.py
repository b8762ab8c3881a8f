"""Builds killed at random points leave a whole registry, and the next build goes on where they were."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 50
EVERY = [f"tiny/{name}:1" for name in ("broken", "distilled-int8", "distilled-torch", "distilled", "int8", "teacher")]


@pytest.mark.timeout(600)
def test_a_build_killed_at_fifty_random_points_resumes_and_its_registry_is_whole(tmp_path: Path) -> None:
    script = Path(__file__).parent / "build_crash.py"
    done = subprocess.run([sys.executable, script, tmp_path, str(KILLS), "1"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found = json.loads(done.stdout)
    assert found["killed"] == KILLS
    assert found["faults"] == []
    assert found["resumed"] == 0
    assert found["registered"] == EVERY
    assert all(refs == EVERY for refs in found["ended"])
    assert found["left_over"] == []

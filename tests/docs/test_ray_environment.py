"""The environment file for clusters that are joined says what the code demands."""

from __future__ import annotations

from repository import ROOT

from serving.serve_env import REQUIRED


def test_the_ray_environment_file_is_what_up_demands() -> None:
    lines = (ROOT / "deployments/ray/env").read_text(encoding="utf-8").splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert given == REQUIRED

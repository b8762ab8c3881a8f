"""What is asked of Ray; Ray itself is not started here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving import app
from serving.config import parse_config
from serving.errors import StartError

CONFIG = parse_config(
    {"apiVersion": "canarium/v1", "models": {"m": {"baseline": "a", "variants": {"a": {"artifact": "m/a:1"}}}}}
)


def test_the_control_plane_follows_the_head_and_not_a_node() -> None:
    options = app.control_options()
    assert options["resources"] == {"node:__internal_head__": 0.001}
    assert "scheduling_strategy" not in options  # a node id is dead for ever, a head may be replaced
    assert (options["num_cpus"], options["max_restarts"], options["lifetime"]) == (0, -1, "detached")


def test_how_many_processors_there_are_is_left_to_ray_which_knows_of_quotas(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(app.ray, "init", lambda **options: given.update(options))
    app._start_ray(joined=False)
    assert given["address"] == "local"
    assert "num_cpus" not in given


def test_the_monitor_may_be_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "tables", lambda *_: {})
    registry: Any = None
    monkeypatch.delenv("CANARIUM_MONITOR", raising=False)
    assert app.control_settings(CONFIG, registry).monitor_url == "http://127.0.0.1:8002"
    monkeypatch.setenv("CANARIUM_MONITOR", "http://demo-monitor.ml.svc:8002")
    assert app.control_settings(CONFIG, registry).monitor_url == "http://demo-monitor.ml.svc:8002"


def test_an_application_waits_for_the_configuration_that_it_was_submitted_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def kubelet(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            (tmp_path / "revision").write_text("new\n")

    monkeypatch.setattr(app.time, "sleep", kubelet)
    (tmp_path / "revision").write_text("old\n")
    app._await_revision(tmp_path / "revision", "new")
    assert len(waited) == 3
    app._await_revision(tmp_path / "revision", "new")
    assert len(waited) == 3
    monkeypatch.setattr(app, "REVISION_S", 0.0)
    with pytest.raises(StartError, match="revision says new after 0 s, expected newer"):
        app._await_revision(tmp_path / "revision", "newer")

"""What is asked of Ray; Ray itself is not started here."""

from __future__ import annotations

from typing import Any

import pytest

from serving import app


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

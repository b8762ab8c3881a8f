"""What is asked of Ray; Ray itself is not started here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from governance_kit import AVX2, config, key_at, registry_at

from serving import app
from serving.config import parse_config
from serving.errors import CanariumError, GovernanceError, RegistryError, StartError
from serving.registry.store import Registry

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


# ---------------------------------------------------------------- what KubeRay builds


BUILDS: dict[str, Callable[[dict[str, str]], Any]] = {
    "gateways": app.build_app,
    "the very variant": lambda args: app.build_variant({**args, "model": "m", "variant": "int8"}),
    "another variant": lambda args: app.build_variant({**args, "model": "m", "variant": "teacher"}),
}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings of control planes that were started."""
    calls: list[Any] = []
    monkeypatch.setattr(app, "start_control", calls.append)
    return calls


def written(registry: Registry, folder: Path, **governance: Any) -> dict[str, str]:
    """The arguments of an application: a configuration of two variants, as a file."""
    document = config(registry, governance=governance).model_dump(mode="json")
    (folder / "canarium.yaml").write_text(yaml.safe_dump(document))
    return {"config": str(folder / "canarium.yaml")}


def flip_a_byte(registry: Registry) -> None:
    path = registry.tree(registry.resolve("m/int8:1")) / "model.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
@pytest.mark.parametrize(("fault", "error"), [("damaged", RegistryError), ("unapproved", GovernanceError)])
def test_an_application_with_an_artifact_that_may_not_be_served_is_refused_before_anything_is_replaced(
    tmp_path: Path, started: list[Any], build: Callable[[dict[str, str]], Any], fault: str, error: type[CanariumError]
) -> None:
    registry = registry_at(tmp_path)
    if fault == "damaged":
        args = written(registry, tmp_path)
        flip_a_byte(registry)
    else:
        key = {"name": "alice", "key": key_at(tmp_path / "alice.key").public.text}
        args = written(registry, tmp_path, mode="enforce", trusted_keys=[key])
    with pytest.raises(error):
        build(args)
    assert not started


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_an_application_of_sound_artifacts_is_built_on_whichever_processor(
    tmp_path: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch, build: Callable[[dict[str, str]], Any]
) -> None:
    monkeypatch.setattr("serving.loading.cpu_info", lambda: AVX2)  # of the head, where no worker need be
    assert build(written(registry_at(tmp_path), tmp_path)) is not None
    assert len(started) == (build is app.build_app)

"""`registry export --mlflow`: what people find in MLflow's own store afterwards."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlflow
import pytest
from governance_kit import INT8, put, registry_at
from registry_kit import made_from
from test_imports import MODULES, imports

from serving.cli import main
from serving.registry.store import Registry


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = registry_at(tmp_path)
    put(
        registry,
        "int8",
        "with data",
        lineage=made_from(registry.resolve("m/teacher:1")),
        quantization=INT8,
        data={"source": "a corpus", "licence": "CC0-1.0"},
    )
    monkeypatch.setenv("CANARIUM_REGISTRY", str(registry.root))
    monkeypatch.chdir(tmp_path)  # MLflow puts files beside its store by default
    return registry


def test_files_numbers_and_lineage_are_logged_once(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    arguments = ["registry", "export", "m/teacher:1", "m/int8", "--mlflow", uri, "--json"]
    assert main(arguments) == 0
    logged = json.loads(capsys.readouterr().out)
    assert [(one["ref"], one["new"]) for one in logged] == [("m/teacher:1", True), ("m/int8:2", True)]

    client, manifest = mlflow.MlflowClient(tracking_uri=uri), registry.resolve("m/int8")
    run = client.get_run(logged[1]["run"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "m/int8:2")
    assert client.get_experiment(run.info.experiment_id).name == "m"
    assert run.data.metrics["accuracy"] == 0.97
    assert run.data.metrics["recall.spam"] == 0.95
    assert run.data.params["quantization.method"] == "static QDQ"
    assert run.data.params["data.licence"] == "CC0-1.0"
    assert run.data.tags["canarium.manifest.sha256"] == manifest.digest
    assert run.data.tags["canarium.parent.source"] == "m/teacher:1"
    folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert (folder / "manifest.json").read_bytes() == manifest.encode()
    assert (folder / "model" / "model.onnx").read_bytes() == (registry.open("m/int8")[1] / "model.onnx").read_bytes()

    assert main(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert [(one["run"], one["new"]) for one in again] == [(one["run"], False) for one in logged]


def test_what_cannot_be_logged_is_said_in_a_line(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["registry", "export", "m/int8"]) == 2
    assert main(["registry", "export", "m/int8", "--to", "x", "--mlflow", "sqlite:///x"]) == 2
    capsys.readouterr()
    assert main(["registry", "export", "m/int8", "--mlflow", "nonsense://there"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("canarium: nonsense://there: MLflow says: ")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert main(["registry", "export", "m/int8", "--mlflow", "sqlite:///x"]) == 1
    assert "--mlflow needs the extra: pip install 'canarium[mlflow]'" in capsys.readouterr().err


def test_only_the_command_reaches_it() -> None:
    found = {name for name in MODULES if any(one.split(".")[0] == "mlflow" for one in imports(name))}
    assert found == {"serving.exports.mlflow"}
    assert {name for name in MODULES if "serving.exports.mlflow" in imports(name)} == {"serving.commands.registry"}

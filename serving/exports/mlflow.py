"""From the registry to MLflow: one run an artifact, with its files, numbers, parents and data.

For people who look at models there; nothing that serves ever reads it back. `mlflow-skinny` is an optional extra and
imported only here.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from serving.cards.facts import flat, measures
from serving.errors import RegistryError
from serving.registry.manifest import Manifest
from serving.registry.store import Registry

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: How many metrics and parameters MLflow takes at once, and how many characters of a parameter.
_METRICS, _PARAMS, _CHARS = 1000, 100, 500
T = TypeVar("T")

_DIGEST = "canarium.manifest.sha256"


class Logged(NamedTuple):
    """An artifact, the id of its run, and whether the run is new or was there for the same manifest."""

    manifest: Manifest
    run: str
    new: bool


def log_artifacts(registry: Registry, refs: Sequence[str], uri: str) -> list[Logged]:
    """Log artifacts as runs of the experiment that is named for their model; what is there already is left alone.

    Args:
        uri: of the tracking server or store, such as `http://host:5000` or `sqlite:///mlflow.db`.

    Raises:
        RegistryError: the extra is not installed, an artifact is missing or damaged, or MLflow refuses.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise RegistryError("--mlflow needs the extra: pip install 'canarium[mlflow]'") from None
    opened = {manifest.ref: (manifest, folder) for manifest, folder in map(registry.open, refs)}
    try:
        client = MlflowClient(tracking_uri=uri)
        return [_log(client, manifest, folder) for manifest, folder in opened.values()]
    except (MlflowException, OSError) as error:
        raise RegistryError(f"{uri}: MLflow says: {_line(error)}") from error


def _log(client: MlflowClient, manifest: Manifest, folder: Path) -> Logged:
    experiment = client.get_experiment_by_name(manifest.model)
    number = experiment.experiment_id if experiment is not None else client.create_experiment(manifest.model)
    finished = f"tags.`{_DIGEST}` = '{manifest.digest}' and attributes.status = 'FINISHED'"
    if there := client.search_runs([number], finished, max_results=1):
        return Logged(manifest, there[0].info.run_id, False)
    run: str = client.create_run(number, run_name=manifest.ref, tags=_tags(manifest)).info.run_id
    status = "FAILED"
    try:
        from mlflow.entities import Metric, Param

        at_ms = int(datetime.fromisoformat(manifest.created_at).timestamp() * 1000)
        numbers = [Metric(_key(one.name), one.value, at_ms, 0) for one in measures(manifest.evaluation)]
        for some in _batches(numbers, _METRICS):
            client.log_batch(run, metrics=some)
        for few in _batches([Param(_key(name), value) for name, value in _parameters(manifest)], _PARAMS):
            client.log_batch(run, params=few)
        for name in sorted(manifest.files):
            client.log_artifact(run, str(folder / name), "model")
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "manifest.json"
            path.write_bytes(manifest.encode())
            client.log_artifact(run, str(path))
        status = "FINISHED"
    finally:
        client.set_terminated(run, status)
    return Logged(manifest, run, True)


def _tags(manifest: Manifest) -> dict[str, str]:
    """What the artifact is, and what it was made from."""
    tags = {
        "canarium.ref": manifest.ref,
        "canarium.version": str(manifest.version),
        _DIGEST: manifest.digest,
        "canarium.relation": manifest.lineage.relation,
    }
    for parent in manifest.lineage.parents:
        tags[f"canarium.parent.{parent.role}"] = parent.ref
        tags[f"canarium.parent.{parent.role}.sha256"] = parent.digest
    return tags


def _parameters(manifest: Manifest) -> list[tuple[str, str]]:
    """How it was made, and on which data."""
    sections: dict[str, Mapping[str, Any]] = {
        "data": manifest.data,
        "quantization": manifest.quantization,
        "distillation": manifest.distillation,
        "calibration": manifest.calibration,
        "build": manifest.build,
    }
    return [(name, value[:_CHARS]) for name, value in flat(sections)]


def _batches(entries: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (entries[at : at + size] for at in range(0, len(entries), size))


def _key(name: str) -> str:
    """A name as MLflow allows it."""
    return re.sub(r"[^\w.:/ -]", "_", name)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())

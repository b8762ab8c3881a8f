"""What the gateway says about its models, gathered once for both protocols."""

from __future__ import annotations

from serving.errors import ErrorKind, RequestError
from serving.gateway.dataplane import DataPlane
from serving.gateway.variants import VariantPlane
from serving.protocol import describe
from serving.protocol.describe import (
    BatchStatistics,
    Duration,
    Index,
    IndexEntry,
    InferStatistics,
    ModelConfiguration,
    ModelMetadata,
    ModelStats,
    Statistics,
)


def metadata(plane: DataPlane, model: str, version: str = "") -> ModelMetadata:
    """Metadata of a model with the versions of all its variants, or of one version."""
    variants = _some(plane, model, version)
    versions = [variant.entry.version for variant in variants]
    return describe.model_metadata(model, versions, variants[0].entry.runtime, variants[0].manifest.signature)


def configuration(plane: DataPlane, model: str, version: str = "") -> ModelConfiguration:
    variants = _some(plane, model, version)
    entry = variants[0].entry
    return describe.model_config(
        model,
        [variant.entry.version for variant in variants],
        entry.runtime,
        variants[0].manifest.signature,
        max_batch=entry.max_batch,
    )


def statistics(plane: DataPlane, model: str = "", version: str = "") -> Statistics:
    """Statistics of this gateway process for one version, one model or all of them."""
    variants = _some(plane, model, version) if model else [v for listed in plane.planes.all().values() for v in listed]
    return Statistics(tuple(_stats(variant) for variant in variants))


def index(plane: DataPlane) -> Index:
    """The repository index: every variant of every model by its version."""
    entries = [
        IndexEntry(model, str(variant.entry.version), *(_READY if variant.ready else _IDLE))
        for model, variants in plane.planes.all().items()
        for variant in variants
    ]
    entries += [IndexEntry(model, str(entry.version), *_LOADING) for model, entry in plane.planes.opening()]
    return Index(tuple(entries))


#: State and reason in the repository index.
_READY, _IDLE, _LOADING = ("READY", ""), ("UNAVAILABLE", "no worker"), ("LOADING", "not open yet")


def _some(plane: DataPlane, model: str, version: str) -> list[VariantPlane]:
    variants = plane.select(model, version)
    if not variants:
        raise RequestError(ErrorKind.UNAVAILABLE, f"model {model} is not loaded yet", 1)
    return variants


def _stats(variant: VariantPlane) -> ModelStats:
    stats = variant.stats
    done = stats.success
    batches = sorted(stats.batches.items())
    return ModelStats(
        name=variant.model,
        version=str(variant.entry.version),
        last_inference=stats.last_ms,
        inference_count=stats.rows,
        execution_count=sum(count for count, _ in stats.batches.values()),
        inference_stats=InferStatistics(
            success=Duration(done, stats.success_ns),
            fail=Duration(stats.fail, stats.fail_ns),
            queue=Duration(done, stats.queue_ns),
            compute_input=Duration(done, stats.input_ns),
            compute_infer=Duration(done, stats.infer_ns),
            compute_output=Duration(done, stats.output_ns),
        ),
        batch_stats=tuple(
            BatchStatistics(rows, compute_infer=Duration(count, total)) for rows, (count, total) in batches
        ),
    )

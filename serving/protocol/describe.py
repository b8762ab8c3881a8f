"""What the server says about itself: metadata, configuration, statistics, index.

Each struct has the member names of both wire forms, so `encode` gives the JSON body and `oip_grpc.message` the
protobuf one. Sources: Open Inference Protocol v2; Triton's model configuration, statistics and model repository
extensions. Durations are nanoseconds, counts are totals since the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import msgspec

from serving.protocol.types import SignatureLike, TensorSpecLike

#: Extensions of the protocol that are really there.
EXTENSIONS: tuple[str, ...] = ("binary_tensor_data", "classification", "model_configuration", "statistics")

PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "torch": "pytorch_libtorch", "tensorrt": "tensorrt_plan"}
BACKENDS = {"onnxruntime": "onnxruntime", "torch": "pytorch", "tensorrt": "tensorrt"}


class ServerMetadata(msgspec.Struct, frozen=True):
    """`GET /v2`."""

    name: str
    version: str
    extensions: tuple[str, ...] = EXTENSIONS


class TensorMetadata(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(msgspec.Struct, frozen=True):
    """`GET /v2/models/M`; versions are decimal integers."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class ConfigTensor(msgspec.Struct, frozen=True):
    name: str
    data_type: str
    dims: tuple[int, ...]


class Versions(msgspec.Struct, frozen=True):
    versions: tuple[int, ...]


class VersionPolicy(msgspec.Struct, frozen=True):
    specific: Versions


class DynamicBatching(msgspec.Struct, frozen=True):
    max_queue_delay_microseconds: int = 0


class TransactionPolicy(msgspec.Struct, frozen=True):
    decoupled: bool = False


class ModelConfiguration(msgspec.Struct, frozen=True):
    """`GET /v2/models/M/config`. With `max_batch_size` over 0 the dims leave the batch dimension out."""

    name: str
    platform: str
    backend: str
    version_policy: VersionPolicy
    max_batch_size: int
    input: tuple[ConfigTensor, ...]
    output: tuple[ConfigTensor, ...]
    dynamic_batching: DynamicBatching | msgspec.UnsetType = msgspec.UNSET
    model_transaction_policy: TransactionPolicy = TransactionPolicy()


class Duration(msgspec.Struct, frozen=True):
    """How often something happened and how long it took in all, ns."""

    count: int = 0
    ns: int = 0


class InferStatistics(msgspec.Struct, frozen=True):
    """All eight members are always present: perf_analyzer refuses a server that leaves one out."""

    success: Duration = Duration()
    fail: Duration = Duration()
    queue: Duration = Duration()
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()


class BatchStatistics(msgspec.Struct, frozen=True):
    """Executions of one batch size."""

    batch_size: int
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()


class ModelStats(msgspec.Struct, frozen=True):
    """One version of one model. `last_inference` is milliseconds since the Unix epoch, 0 if there was none."""

    name: str
    version: str
    last_inference: int = 0
    inference_count: int = 0
    execution_count: int = 0
    inference_stats: InferStatistics = InferStatistics()
    batch_stats: tuple[BatchStatistics, ...] = ()


class Statistics(msgspec.Struct, frozen=True):
    """`GET /v2/models/stats` and `GET /v2/models/M/stats`."""

    model_stats: tuple[ModelStats, ...]


class IndexEntry(msgspec.Struct, frozen=True):
    """One line of `POST /v2/repository/index`; `state` is READY, UNAVAILABLE, LOADING or UNLOADING."""

    name: str
    version: str
    state: str = "READY"
    reason: str = ""


class Index(msgspec.Struct, frozen=True):
    """`POST /v2/repository/index`: an object over gRPC, its list over HTTP."""

    models: tuple[IndexEntry, ...]


Description = ServerMetadata | ModelMetadata | ModelConfiguration | Statistics | Index


def encode(description: Description) -> bytes:
    """The JSON body of a description."""
    return msgspec.json.encode(description.models if isinstance(description, Index) else description)


def server_metadata() -> ServerMetadata:
    """Name, version and extensions of this server."""
    try:
        installed = version("canarium")
    except PackageNotFoundError:
        installed = "0"
    return ServerMetadata("canarium", installed)


def model_metadata(name: str, versions: Sequence[int], runtime: str, signature: SignatureLike) -> ModelMetadata:
    """Metadata of a model: `versions` of all its variants, `signature` as clients see it."""
    return ModelMetadata(
        name,
        tuple(str(number) for number in sorted(versions)),
        PLATFORMS.get(runtime, runtime),
        tuple(TensorMetadata(spec.name, spec.datatype, tuple(spec.shape)) for spec in signature.inputs),
        tuple(TensorMetadata(spec.name, spec.datatype, tuple(spec.shape)) for spec in signature.outputs),
    )


def model_config(
    name: str,
    versions: Sequence[int],
    runtime: str,
    signature: SignatureLike,
    *,
    max_batch: int,
    max_queue_delay_us: int = 0,
) -> ModelConfiguration:
    """Configuration of a model in Triton's terms.

    Triton's batch dimension is implicit and needs a dimension behind it. A model with a tensor of shape [-1], such as
    a text, is therefore described as one that does not batch by itself and takes any number of elements.
    """
    specs = (*signature.inputs, *signature.outputs)
    batches = all(len(spec.shape) > 1 and spec.shape[0] == -1 for spec in specs)
    return ModelConfiguration(
        name,
        PLATFORMS.get(runtime, runtime),
        BACKENDS.get(runtime, runtime),
        VersionPolicy(Versions(tuple(sorted(versions)))),
        max_batch if batches else 0,
        tuple(_config_tensor(spec, batches) for spec in signature.inputs),
        tuple(_config_tensor(spec, batches) for spec in signature.outputs),
        DynamicBatching(max_queue_delay_us) if batches else msgspec.UNSET,
    )


def _config_tensor(spec: TensorSpecLike, batches: bool) -> ConfigTensor:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return ConfigTensor(spec.name, f"TYPE_{datatype}", tuple(spec.shape[1:] if batches else spec.shape))

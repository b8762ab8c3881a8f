"""What the server says about itself, in both wire forms of one value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb

from serving.protocol import describe, oip_grpc
from serving.protocol.describe import (
    BatchStatistics,
    Duration,
    Index,
    IndexEntry,
    InferStatistics,
    ModelStats,
    Statistics,
)
from serving.protocol.types import DTYPES
from serving.registry.manifest import Signature, TensorSpec

TABULAR = Signature((TensorSpec("x", "FP32", (-1, 64)),), (TensorSpec("y", "FP32", (-1, 2)),))
TEXT = Signature(
    (TensorSpec("text", "BYTES", (-1,)),),
    (TensorSpec("probabilities", "FP32", (-1, 2)), TensorSpec("label", "BYTES", (-1,))),
)
STATS = Statistics(
    (
        ModelStats(
            "m",
            "3",
            last_inference=1_700_000_000_000,
            inference_count=40,
            execution_count=10,
            inference_stats=InferStatistics(success=Duration(39, 400), fail=Duration(1, 5), queue=Duration(40, 77)),
            batch_stats=(BatchStatistics(4, compute_infer=Duration(10, 300)),),
        ),
    )
)


def body(description: describe.Description) -> Any:
    return json.loads(describe.encode(description))


def test_server_metadata() -> None:
    metadata = body(describe.server_metadata())
    assert metadata["name"] == "canarium"
    assert metadata["version"]
    assert set(metadata["extensions"]) == {
        "binary_tensor_data", "classification", "model_configuration", "statistics",
    }  # fmt: skip
    message = oip_grpc.message(describe.server_metadata())
    assert isinstance(message, pb.ServerMetadataResponse)
    assert list(message.extensions) == metadata["extensions"]


def test_model_metadata() -> None:
    metadata = describe.model_metadata("m", [10, 2], "onnxruntime", TEXT)
    assert body(metadata) == {
        "name": "m",
        "versions": ["2", "10"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
    }
    message = oip_grpc.message(metadata)
    assert isinstance(message, pb.ModelMetadataResponse)
    assert (list(message.versions), list(message.inputs[0].shape)) == (["2", "10"], [-1])


def test_the_configuration_of_a_batching_model_leaves_the_batch_out() -> None:
    config = describe.model_config("m", [2, 1], "onnxruntime", TABULAR, max_batch=16, max_queue_delay_us=500)
    found = body(config)
    assert (found["max_batch_size"], found["backend"]) == (16, "onnxruntime")
    assert found["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [64]}]
    assert found["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}]
    assert found["dynamic_batching"] == {"max_queue_delay_microseconds": 500}
    message = oip_grpc.message(config)
    assert isinstance(message, pb.ModelConfigResponse)
    assert message.config.input[0].data_type == model_config_pb2.TYPE_FP32
    assert list(message.config.version_policy.specific.versions) == [1, 2]


def test_a_text_model_takes_any_number_of_elements() -> None:
    found = body(describe.model_config("m", [1], "onnxruntime", TEXT, max_batch=16))
    assert found["max_batch_size"] == 0
    assert "dynamic_batching" not in found
    assert found["input"] == [{"name": "text", "data_type": "TYPE_STRING", "dims": [-1]}]
    assert found["output"][0]["dims"] == [-1, 2]


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype_has_a_name_in_the_configuration(datatype: str) -> None:
    spec = TensorSpec("x", datatype, (-1, 2))
    config = describe.model_config("m", [1], "torch", Signature((spec,), (spec,)), max_batch=1)
    assert oip_grpc.message(config).config.input[0].data_type in model_config_pb2.DataType.values()


def test_statistics_have_all_eight_members_always() -> None:
    found = body(Statistics((ModelStats("m", "1"),)))["model_stats"][0]
    names = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"}
    assert found["inference_stats"] == {name: {"count": 0, "ns": 0} for name in names}
    stats = oip_grpc.message(Statistics((ModelStats("m", "1"),))).model_stats[0].inference_stats
    assert all(stats.HasField(name) for name in names)


def test_statistics_say_the_same_in_both_forms() -> None:
    found = body(STATS)["model_stats"][0]
    message = oip_grpc.message(STATS)
    assert isinstance(message, pb.ModelStatisticsResponse)
    stats = message.model_stats[0]
    assert (stats.name, stats.version, stats.inference_count, stats.execution_count) == ("m", "3", 40, 10)
    assert stats.last_inference == found["last_inference"] == 1_700_000_000_000
    assert (stats.inference_stats.queue.count, stats.inference_stats.queue.ns) == (40, 77)
    assert found["inference_stats"]["queue"] == {"count": 40, "ns": 77}
    assert (stats.batch_stats[0].batch_size, stats.batch_stats[0].compute_infer.ns) == (4, 300)
    assert found["batch_stats"][0]["compute_infer"] == {"count": 10, "ns": 300}


def test_the_index_is_a_list_over_http_and_a_message_over_grpc() -> None:
    index = Index((IndexEntry("m", "1"), IndexEntry("m", "2", "UNAVAILABLE", "killed")))
    assert body(index) == [
        {"name": "m", "version": "1", "state": "READY", "reason": ""},
        {"name": "m", "version": "2", "state": "UNAVAILABLE", "reason": "killed"},
    ]
    message = oip_grpc.message(index)
    assert isinstance(message, pb.RepositoryIndexResponse)
    assert [(entry.version, entry.state) for entry in message.models] == [("1", "READY"), ("2", "UNAVAILABLE")]

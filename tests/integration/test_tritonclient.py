"""The quickstart through the unmodified tritonclient, over HTTP and gRPC, JSON and binary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests.support.stack import Stack, wait_for

pytestmark = pytest.mark.integration

TEXTS = np.array(
    [
        b"Subject: meeting notes\n\nHi all, the notes of the meeting are attached, see you on Monday.",
        b"FREE money!!! click here",
    ],
    dtype=object,
)


@pytest.fixture(params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, quickstart: Stack) -> Iterator[tuple[Any, Any]]:
    module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[request.param]
    port = {"http": quickstart.http_port, "grpc": quickstart.grpc_port}[request.param]
    client = module.InferenceServerClient(f"127.0.0.1:{port}")
    yield module, client
    client.close()


def _plain(answer: Any) -> Any:
    """A protobuf message or a dictionary as a dictionary."""
    if isinstance(answer, dict | list):
        return answer
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(answer, preserving_proto_field_name=True)


def _text(module: Any, binary: bool = True) -> Any:
    tensor = module.InferInput("text", [len(TEXTS)], "BYTES")
    if module is tritonclient.http:
        tensor.set_data_from_numpy(TEXTS, binary_data=binary)
    else:
        tensor.set_data_from_numpy(TEXTS)
    return tensor


def test_health_and_metadata(triton: tuple[Any, Any]) -> None:
    _, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("moderation")
    assert client.is_model_ready("moderation", "2")
    server = _plain(client.get_server_metadata())
    assert server["name"] == "canarium"
    assert "binary_tensor_data" in server["extensions"]
    model = _plain(client.get_model_metadata("moderation"))
    assert [(item["name"], item["datatype"]) for item in model["inputs"]] == [("text", "BYTES")]
    assert {item["name"] for item in model["outputs"]} == {"probabilities", "label"}
    assert all(version.isdigit() for version in model["versions"])


def test_configuration(triton: tuple[Any, Any]) -> None:
    _, client = triton
    answer = _plain(client.get_model_config("moderation"))
    config = answer.get("config", answer)
    assert config["name"] == "moderation"
    assert config["input"][0]["data_type"] == "TYPE_STRING"


def test_repository_index_lists_every_variant(triton: tuple[Any, Any]) -> None:
    _, client = triton

    def entries() -> list[dict[str, Any]]:
        answer = _plain(client.get_model_repository_index())
        return answer if isinstance(answer, list) else answer["models"]

    assert len(entries()) >= 5
    wait_for(lambda: all(entry["state"] == "READY" for entry in entries()))


@pytest.mark.parametrize("binary", [True, False])
def test_inference(triton: tuple[Any, Any], binary: bool) -> None:
    module, client = triton
    if module is tritonclient.http:
        outputs = [module.InferRequestedOutput(name, binary_data=binary) for name in ("probabilities", "label")]
    else:
        outputs = [module.InferRequestedOutput(name) for name in ("probabilities", "label")]
    result = client.infer("moderation", [_text(module, binary)], outputs=outputs, request_id="triton-1")
    probabilities = result.as_numpy("probabilities")
    assert probabilities.shape == (2, 2)
    assert probabilities.dtype == np.float32
    assert probabilities.sum(axis=1) == pytest.approx([1, 1], abs=1e-5)
    labels = [value.decode() if isinstance(value, bytes) else value for value in result.as_numpy("label")]
    assert labels == ["ham", "spam"]
    answer = _plain(result.get_response())
    assert answer["id"] == "triton-1"
    assert answer["model_version"] == "1"


def test_without_requested_outputs_all_come_back(triton: tuple[Any, Any]) -> None:
    module, client = triton
    result = client.infer("moderation", [_text(module)])
    assert result.as_numpy("label") is not None
    assert result.as_numpy("probabilities") is not None


def test_a_pinned_version_answers_itself(triton: tuple[Any, Any]) -> None:
    module, client = triton
    result = client.infer("moderation", [_text(module)], model_version="2")
    assert _plain(result.get_response())["model_version"] == "2"


def test_statistics_grow(triton: tuple[Any, Any]) -> None:
    module, client = triton

    def queued() -> int:
        (stats,) = _plain(client.get_inference_statistics("moderation", "1"))["model_stats"]
        assert {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output"} <= set(
            stats["inference_stats"]
        )
        return int(stats["inference_stats"]["queue"].get("count", 0))

    before = queued()
    client.infer("moderation", [_text(module)])
    assert queued() == before + 1


def test_errors_say_what_is_wrong(triton: tuple[Any, Any]) -> None:
    module, client = triton
    with pytest.raises(InferenceServerException, match="unknown model 'nothing'"):
        client.infer("nothing", [_text(module)])
    with pytest.raises(InferenceServerException, match="unknown version '99'"):
        client.infer("moderation", [_text(module)], model_version="99")
    wrong = module.InferInput("text", [1, 2], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 2), np.float32))
    with pytest.raises(InferenceServerException, match=r"expected BYTES \[-1\], got FP32 \[1, 2\]"):
        client.infer("moderation", [wrong])
    misnamed = module.InferInput("txt", [1], "BYTES")
    misnamed.set_data_from_numpy(np.array([b"x"], dtype=object))
    with pytest.raises(InferenceServerException, match="'text' is missing"):
        client.infer("moderation", [misnamed])
    with pytest.raises(InferenceServerException, match="'nope' is unknown"):
        client.infer("moderation", [_text(module)], outputs=[module.InferRequestedOutput("nope")])
    broken = module.InferInput("text", [1], "BYTES")
    broken.set_data_from_numpy(np.array([b"\xff\xfe"], dtype=object))
    with pytest.raises(InferenceServerException, match="not valid UTF-8"):
        client.infer("moderation", [broken])


def test_grpc_errors_have_their_status(quickstart: Stack) -> None:
    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{quickstart.grpc_port}")
    with pytest.raises(InferenceServerException) as caught:
        client.infer("nothing", [_text(tritonclient.grpc)])
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    client.close()

"""The HTTP surface, driven as the transport does: routes, headers, bad input. No network."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from serving.control.auth import Auth
from serving.gateway.budget import InflightBudget
from serving.gateway.http import HttpGateway
from serving.transport.exchanges import Head
from tests.support.gateway import InProcessGateway, published, status_cells
from tests.support.http_exchange import INFER, Client

GOOD = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["spam"]}]}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[InProcessGateway]:
    async with published(tmp_path, {"candidate": ""}) as running:
        yield running


@pytest.fixture
def client(gateway: InProcessGateway) -> Client:
    return Client(
        HttpGateway(
            gateway.config, gateway.plane, Auth.from_config("none", None), gateway.clock, InflightBudget(256 << 20)
        )
    )


async def test_json_in_and_out(client: Client) -> None:
    answer = await client.infer({**GOOD, "id": "r-1"}, x_user_id="u")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-canarium-variant"] == "teacher"
    assert answer.headers["x-canarium-reason"] == "baseline"
    assert answer.headers["x-canarium-epoch"] == "1"
    assert answer.headers["x-request-id"]
    document = answer.json()
    assert (document["model_name"], document["model_version"], document["id"]) == ("tiny", "1", "r-1")
    outputs = {output["name"]: output for output in document["outputs"]}
    assert outputs["label"]["data"] == ["spam"]
    assert sum(outputs["probabilities"]["data"]) == pytest.approx(1)
    assert all("parameters" not in output for output in document["outputs"])


async def test_binary_in_and_out(client: Client) -> None:
    tensor = struct.pack("<I", 4) + b"spam"
    header = orjson.dumps(
        {
            "inputs": [
                {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(tensor)}}
            ],
            "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
        }
    )
    answer = await client.infer(header + tensor, inference_header_content_length=str(len(header)))
    length = int(answer.headers["inference-header-content-length"])
    assert answer.status == 200
    assert struct.unpack("<2f", answer.body[length:])[1] > 0.9


async def test_a_gzip_body_is_read_and_a_gzip_answer_given(client: Client) -> None:
    many = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [200], "data": ["spam"] * 200}]}
    answer = await client.infer(gzip.compress(orjson.dumps(many)), content_encoding="gzip", accept_encoding="gzip")
    assert answer.status == 200
    assert answer.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(answer.body))["outputs"][0]["shape"] == [200, 2]


def _with(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{**GOOD["inputs"][0], **changes}]}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{nope", 400, "JSON"),
        (b"[" * 10_000 + b"]" * 10_000, 400, "JSON"),
        (b"[]", 400, "object"),
        ({}, 400, "inputs"),
        (_with(datatype="FP32", data=[1.0]), 400, "expected BYTES [-1], got FP32 [1]"),
        (_with(shape=[2]), 400, "2"),
        (_with(shape=[1, 1]), 400, "expected BYTES [-1], got BYTES [1, 1]"),
        (_with(name="texts"), 400, "'text' is missing"),
        (_with(data=[7]), 400, "inputs[0].data"),
        ({"inputs": [GOOD["inputs"][0], GOOD["inputs"][0]]}, 400, "twice"),
        ({**GOOD, "outputs": [{"name": "nope"}]}, 400, "nope"),
        ({**GOOD, "id": 7}, 400, "id"),
        ({**GOOD, "parameters": {"timeout_ms": -5}}, 400, "x-canarium-timeout-ms"),
        (_with(shape=[0], data=[]), 400, "at least one row"),
    ],
)
async def test_bad_input_is_named(client: Client, body: Any, status: int, words: str) -> None:
    answer = await client.infer(body)
    assert answer.status == status
    assert words in answer.json()["error"]
    assert (await client.infer(GOOD)).status == 200  # the server goes on


async def test_invalid_utf8_names_row_and_byte(client: Client) -> None:
    tensor = struct.pack("<I", 2) + b"ok" + struct.pack("<I", 2) + b"\xff\xfe"
    header = orjson.dumps(
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 12}}]}
    )
    answer = await client.infer(header + tensor, inference_header_content_length=str(len(header)))
    assert answer.status == 400
    assert 'input "text" row 1' in answer.json()["error"]


async def test_truncated_binary_says_what_came(client: Client) -> None:
    header = orjson.dumps(
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 8}}]}
    )
    answer = await client.infer(header + b"\x04\x00\x00\x00sp", inference_header_content_length=str(len(header)))
    assert answer.status == 400
    assert "inputs[0]" in answer.json()["error"]


async def test_a_gzip_bomb_is_refused_without_being_unpacked(gateway: InProcessGateway) -> None:
    config = gateway.config.model_copy(update={"server": gateway.config.server.model_copy(update={"max_body_mib": 1})})
    client = Client(
        HttpGateway(config, gateway.plane, Auth.from_config("none", None), gateway.clock, InflightBudget(256 << 20))
    )
    answer = await client.infer(gzip.compress(bytes(64 << 20)), content_encoding="gzip")
    assert answer.status == 413
    answer = await client.infer(bytes(2 << 20))
    assert (answer.status, "1 MiB" in answer.json()["error"]) == (413, True)
    assert (await client.infer(GOOD)).status == 200


async def test_a_gateway_that_is_about_to_go_is_not_ready_and_answers(
    client: Client, gateway: InProcessGateway
) -> None:
    gateway.plane.leaving = True
    for path, status in (("/v2/health/ready", 503), ("/-/healthz", 503), ("/v2/models/tiny/ready", 200)):
        assert (await client.request("GET", path)).status == status
    assert (await client.infer(GOOD)).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/health/ready", 200),
        ("GET", "/v2", 200),
        ("GET", "/v2/models/tiny", 200),
        ("GET", "/v2/models/tiny/ready", 200),
        ("GET", "/v2/models/tiny/versions/2/ready", 200),
        ("GET", "/v2/models/tiny/config", 200),
        ("GET", "/v2/models/tiny/stats", 200),
        ("GET", "/v2/models/tiny/versions/2/stats", 200),
        ("GET", "/v2/models/stats", 200),
        ("POST", "/v2/repository/index", 200),
        ("GET", "/v2/models/nope", 404),
        ("GET", "/v2/models/tiny/versions/9", 404),
        ("GET", "/v2/models/tiny/nothing", 404),
        ("GET", "/elsewhere", 404),
        ("GET", INFER, 404),
    ],
)
async def test_every_route_of_the_protocol(client: Client, method: str, path: str, status: int) -> None:
    answer = await client.request(method, path)
    assert answer.status == status
    if status == 404:
        assert answer.json()["error"]


async def test_statistics_count_and_have_all_eight_keys(client: Client) -> None:
    for _ in range(3):
        await client.infer(GOOD)
    (stats,) = (await client.request("GET", "/v2/models/tiny/versions/1/stats")).json()["model_stats"]
    assert stats["inference_count"] == 3
    assert set(stats["inference_stats"]) == {
        "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
    }  # fmt: skip
    assert stats["inference_stats"]["queue"]["count"] == 3


async def test_pinned_and_overridden_variants_answer(client: Client) -> None:
    pinned = await client.request("POST", "/v2/models/tiny/versions/2/infer", GOOD)
    assert (pinned.headers["x-canarium-variant"], pinned.headers["x-canarium-reason"]) == ("candidate", "pinned")
    override = await client.infer(GOOD, x_canarium_variant="candidate")
    assert (override.headers["x-canarium-variant"], override.headers["x-canarium-reason"]) == ("candidate", "override")


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("HEAD", 200), ("POST", 404)])
async def test_kuberay_asks_whether_the_pod_serves(client: Client, method: str, status: int) -> None:
    assert (await client.request(method, "/-/healthz")).status == status


async def test_an_announced_length_over_the_limit_is_refused_before_the_body_comes(client: Client) -> None:
    given = Head("POST", INFER, {b"content-length": b"%d" % (65 << 20)}, "127.0.0.1")
    exchange = client.app.begin(given)
    assert exchange.refusal is not None
    assert exchange.refusal.status == 413


async def test_a_full_gateway_refuses_a_body_with_the_time_to_come_again(gateway: InProcessGateway) -> None:
    budget = InflightBudget(1 << 20)
    app = HttpGateway(gateway.config, gateway.plane, Auth.from_config("none", None), gateway.clock, budget)
    first = app.begin(Head("POST", INFER, {}, ""))
    assert first.receive(1_000_000)
    second = app.begin(Head("POST", INFER, {}, ""))
    assert not second.receive(100_000)
    assert second.refusal is not None
    assert second.refusal.status == 503
    assert b"retry-after: 1\r\n" in second.refusal.fields
    assert status_cells(gateway, "teacher")[503] == 1  # nobody else would: it never gets as far as the data plane
    second.end()
    pinned = app.begin(Head("POST", "/v2/models/tiny/versions/1/infer", {}, ""))
    assert not pinned.receive(100_000)
    pinned.end()
    assert status_cells(gateway, "teacher")[503] == 1
    assert budget.held == 1_000_000
    first.end()
    assert budget.held == 0


async def test_a_body_that_unpacks_to_more_than_the_budget_is_counted(gateway: InProcessGateway) -> None:
    budget = InflightBudget(10_000)
    client = Client(HttpGateway(gateway.config, gateway.plane, Auth.from_config("none", None), gateway.clock, budget))
    assert (await client.infer(gzip.compress(b" " * 20_000), content_encoding="gzip")).status == 503
    assert status_cells(gateway, "teacher")[503] == 1
    assert (await client.infer(GOOD, x_canarium_timeout_ms="-1")).status == 400  # the client's own doing
    assert {status for status, number in status_cells(gateway, "teacher").items() if number} == {503}


async def test_what_the_data_plane_refuses_is_counted_once(tmp_path: Path) -> None:
    gateway = InProcessGateway(tmp_path, {})  # it has no routing table yet
    auth = Auth.from_config("none", None)
    client = Client(HttpGateway(gateway.config, gateway.plane, auth, gateway.clock, InflightBudget(1 << 20)))
    assert (await client.infer(GOOD)).status == 503
    assert status_cells(gateway, "teacher")[503] == 1


async def test_a_request_id_is_given_back_on_every_answer(client: Client) -> None:
    for method, path in (("GET", "/v2"), ("GET", "/v2/health/ready"), ("POST", "/v2/nowhere"), ("POST", INFER)):
        answer = await client.request(method, path, GOOD, {"x-request-id": "mine"})
        assert answer.headers["x-request-id"] == "mine", path


async def test_every_route_gives_back_what_it_held_of_the_body_budget(client: Client) -> None:
    body = b" " * 10_000
    for path in ("/v2/repository/index", INFER, "/v2/models/tiny/feedback", "/v2/models/nope/infer", "/v2/nowhere"):
        await client.request("POST", path, body)
        assert client.app._budget.held == 0, path
    await client.infer(gzip.compress(orjson.dumps(GOOD)), content_encoding="gzip")
    assert client.app._budget.held == 0


async def test_a_repeated_request_id_is_answered_each_time(client: Client) -> None:
    first, second = [await client.infer({**GOOD, "id": "same"}) for _ in range(2)]
    assert (first.status, second.status) == (200, 200)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"id": "r", "label": "spam"}, 202, ""),
        ({"id": "r", "label": 0, "kpi": {"clicks": 1}}, 202, ""),
        ({"id": "r", "label": "eggs"}, 400, "ham, spam"),
        ({"label": "spam"}, 400, "id"),
        ({"id": "r"}, 400, "label or kpi"),
        ({"id": "r", "label": [1]}, 400, "label"),
        ({"id": "r", "kpi": {"clicks": "many"}}, 400, "kpi"),
        ({"id": "r", "kpi": {f"k{n}": n for n in range(17)}}, 400, "at most 16"),
        ({"id": "r" * 100_000, "label": "spam"}, 413, "64 KiB"),
    ],
)
async def test_feedback(client: Client, body: Any, status: int, words: str) -> None:
    answer = await client.request("POST", "/v2/models/tiny/feedback", body)
    assert answer.status == status
    assert words in answer.json().get("error", "")

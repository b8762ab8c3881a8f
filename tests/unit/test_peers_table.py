"""The comparison's tables and wire formats, without any server."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from loadtests.peers import cases, models, table
from loadtests.peers.cases import CASES

MLP = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}], "outputs": [{"name": "y"}], "kind": "tensor"}


def record(peer: str, rate: float, *, connections: int = 32, share: float | None = None, **more: Any) -> dict[str, Any]:
    latency = {"mean": 1.0, "p50": 1000.0, "p90": 1500.0, "p99": 2000.0, "p99.9": 3000.0, "max": 4000.0}
    result = {
        **{"count": int(rate), "seconds": 1.0, "rate": rate, "latency_us": latency, "cpu_s": 0.01},
        **{"codes": {"200": int(rate)}, "failures": {}, "unsent": 0, "unfinished": 0, "bytes": 0},
    }
    return {
        **{"peer": peer, "case": "overhead", "wire": "oip-json", "workers": 1, "threads": 2, "share": share},
        **{"connections": connections, "result": result, "cpu_s": {"server": 0.1, "ray::Other": 0.001}},
        **{"memory_mib": 100.0},
        **more,
    }


def document(*records: dict[str, Any]) -> dict[str, Any]:
    ceiling = [
        {"processes": 2, "threads": 1, "batch": 8, "rows_per_s": 1000.0, "ms_per_batch": 8.0},
        {"processes": 1, "threads": 1, "batch": 1, "rows_per_s": 400.0, "ms_per_batch": 2.5},
    ]
    return {
        "about": {"command": "make", "date": "today", "machine": "one", "versions": "x 1"},
        "peers": [{"name": "other", "settings": "none"}],
        "ceilings": {"overhead": ceiling},
        "records": list(records),
        "grpc": [],
        "stock": [],
        "safety": [],
    }


def row(text: str, first: str) -> list[str]:
    """Cells of the first table row that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_cells_are_medians_over_rounds_and_ratios_of_them() -> None:
    runs = [record("Canarium, isolated", rate) for rate in (400.0, 500.0, 900.0)]
    text = table.render(document(*runs, record("other", 250.0)))
    assert "**1,000 rows/s** at best (2 × 1 thread, batches of 8), 400 one row at a time" in text
    assert row(text, "Canarium, isolated")[3:6] == ["500", "0.50", "1.00"]
    assert row(text, "other")[3:6] == ["250", "0.25", "0.50"]


def test_open_loops_are_no_part_of_the_throughput() -> None:
    text = table.render(document(record("other", 100.0), record("other", 50.0, connections=512, share=0.5)))
    assert row(text, "other")[3] == "100"
    assert "| server | added p50, 1 conn. | 32 conn. | open loop, 50% of its own 32 |" in text
    assert "512 conn." not in text


def test_the_bare_session_is_the_median_over_rounds_and_taken_from_a_lone_row() -> None:
    alone = {"processes": 1, "threads": 2, "batch": 1, "rows_per_s": 400.0}
    made = document(record("other", 100.0, connections=1))
    made["ceilings"]["overhead"] += [{**alone, "ms_per_batch": value} for value in (0.2, 0.4, 3.0)]
    assert "| other | 0.60 | 1.00 / 2.00 / 3.00 |" in table.render(made)  # its p50 is 1.0 ms with two threads


def test_the_cost_of_safety_is_the_median_of_changes_within_rounds() -> None:
    rates = {"off": (100.0, 200.0, 50.0), "on": (90.0, 190.0, 50.0)}
    made = document(record("other", 1.0))
    made["safety"] = [record("Canarium", rate, row=name) for name, own in rates.items() for rate in own]
    text = table.render(made)
    assert "| Canarium | off | 100 | – |" in text
    assert "| Canarium | on | 90 | -5.0% (-10.0% to +0.0%) |" in text


def test_a_server_that_failed_is_reported_with_its_reason() -> None:
    failed = {"peer": "broken", "case": "overhead", "error": "did not start (refused):\nTraceback\nImportError: x"}
    text = table.render(document(record("other", 100.0), failed))
    assert "- broken: did not start (refused): ImportError: x" in text


def test_failures_under_load_are_counted() -> None:
    bad = record("other", 100.0)
    bad["result"] |= {"codes": {"200": 100, "503": 7}, "failures": {"timeout": 2, "wrong": 1}, "unsent": 3}
    assert row(table.render(document(bad)), "other")[-1] == "13"


def test_cpu_is_given_a_thousand_requests_by_process() -> None:
    text = table.render(document(record("other", 100.0)))
    assert "| other | server 1.000, others 0.010 | 100 |" in text


@pytest.mark.parametrize("wire", ["oip-json", "oip-binary", "plain-json", "plain-rows", "plain-bytes"])
def test_a_row_survives_every_wire_format(wire: cases.Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.array([1.5, -2.0], np.float32)
    monkeypatch.setattr(models, "about", lambda _: MLP)
    monkeypatch.setattr(cases, "rows", lambda _: ({"x": data},))
    (request,) = cases.requests(CASES[0], wire, "/p")
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /p HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    if wire == "plain-bytes":
        assert body == data.tobytes()
    elif wire == "oip-binary":
        size = int(head.partition(b"Inference-Header-Content-Length: ")[2].split(b"\r\n")[0])
        assert json.loads(body[:size])["inputs"][0]["parameters"] == {"binary_data_size": 8}
        assert body[size:] == data.tobytes()
    else:
        assert b"[1.5,-2.0]" in body


@pytest.mark.parametrize(
    ("wire", "headers", "body"),
    [
        ("plain-json", {}, b'{"y": [1.5, -2.0]}'),
        ("plain-rows", {}, b'[{"y": [1.5, -2.0]}]'),
        ("plain-bytes", {}, np.array([1.5, -2.0], np.float32).tobytes()),
        ("oip-json", {}, b'{"outputs": [{"name": "y", "shape": [1, 2], "data": [[1.5, -2.0]], "parameters": null}]}'),
        (
            "oip-binary",
            {"inference-header-content-length": "62"},
            b'{"outputs":[{"name":"y","parameters":{"binary_data_size":8}}]}'
            + np.array([1.5, -2.0], np.float32).tobytes(),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_answers_are_read_in_every_wire_format(
    wire: cases.Wire, headers: dict[str, str], body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "about", lambda _: MLP)
    assert cases.answer(CASES[0], wire, headers, body).tolist() == [1.5, -2.0]

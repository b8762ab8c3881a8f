"""The C load generator's Python side: what goes in and what comes out."""

from __future__ import annotations

import json

import pytest

from loadtests.load import LoadError, Result, http_request, pack

OUTPUT = {
    "count": 90,
    "seconds": 2.0,
    "rate": 45.0,
    "cpu_s": 0.00045,
    "bytes": 9000,
    "unsent": 4,
    "unfinished": 0,
    "latency_us": {"mean": 110.0, "p50": 100.0, "p90": 120.0, "p99": 200.0, "p99.9": 300.0, "max": 301.5},
    "codes": {"200": 93, "503": 2},
    "failures": {"refused": 0, "lost": 1, "timeout": 2, "protocol": 0, "wrong": 3},
}


def test_output_is_read() -> None:
    result = Result.parse(json.dumps(OUTPUT))
    assert (result.count, result.rate, result.latency_us["p99.9"], result.unsent) == (90, 45.0, 300.0, 4)
    assert result.cpu_us_per_request == pytest.approx(5.0)
    assert Result.parse(json.dumps(result.as_json())) == result


def test_every_request_without_a_good_answer_is_a_failure() -> None:
    # two 503, one lost, two timeouts, three with status 200 but not what was expected
    assert Result.parse(json.dumps(OUTPUT)).failed == 8


def test_a_run_without_a_good_answer_has_no_latency() -> None:
    nothing = OUTPUT | {"count": 0, "rate": 0.0, "latency_us": {}, "codes": {}}
    result = Result.parse(json.dumps(nothing))
    assert result.cpu_us_per_request is None
    assert result.latency_us == {}


@pytest.mark.parametrize("text", ["", "Segmentation fault", "{}", "[1]", '{"count": 1, "surprise": 2}'])
def test_other_output_is_refused(text: str) -> None:
    with pytest.raises(LoadError, match="not the output"):
        Result.parse(text)


def test_a_request_is_complete_http() -> None:
    request = http_request("/infer", b"{}", {"Content-Type": "application/json"})
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /infer HTTP/1.1",
        b"Host: 127.0.0.1",
        b"Content-Length: 2",
        b"Content-Type: application/json",
    ]
    assert body == b"{}"


def test_requests_follow_their_lengths() -> None:
    assert pack([b"ab", b""]) == b"\x02\x00\x00\x00ab\x00\x00\x00\x00"

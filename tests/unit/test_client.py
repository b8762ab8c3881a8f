"""The admin client: what it sends, and how each failure reads."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from serving.client import AdminClient, ClientError, Failed, InferenceClient, Refused, Unreachable
from serving.clock import FakeClock

Handler = Callable[[httpx.Request], httpx.Response]


def admin(handler: Handler, **options: object) -> AdminClient:
    return AdminClient(transport=httpx.MockTransport(handler), **options)  # type: ignore[arg-type]


def answering(status: int, body: object) -> Handler:
    return lambda request: httpx.Response(status, json=body)


def raising(error: Exception) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error

    return handler


def test_a_change_carries_reason_actor_token_and_json() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"model": "moderation"})

    client = admin(handler, token="secret", actor="cli:ann")
    client.traffic("moderation", reason="first step", weights={"int8": 10.0}, reference_percent=0)

    (request,) = seen
    assert (request.method, request.url.path) == ("PUT", "/admin/v1/models/moderation/traffic")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"] == "Bearer secret"
    assert json.loads(request.content) == {
        "weights": {"int8": 10.0},
        "reference_percent": 0,
        "reason": "first step",
        "actor": "cli:ann",
    }


@pytest.mark.parametrize("token", ["secret\n", "secret\r\n", " secret "])
def test_white_space_around_a_token_is_no_part_of_it(token: str) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"models": []})

    admin(handler, token=token).models()
    admin(handler, token="\n").models()
    assert [request.headers.get("authorization") for request in seen] == ["Bearer secret", None]


@pytest.mark.parametrize("token", ["sec\nret", "sec\x00ret", "s\u00e9cret", "sec\ufffdret"])
def test_a_token_that_no_header_can_carry_is_refused_and_not_quoted(token: str) -> None:
    with pytest.raises(ClientError, match="not one line of printable ASCII") as caught:
        admin(answering(200, {}), token=token)
    assert "ret" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "method", "path", "body"),
    [
        (lambda c: c.rollback("m", reason="r"), "POST", "/admin/v1/models/m:rollback", {}),
        (lambda c: c.rollback("m", "v", reason="r"), "POST", "/admin/v1/models/m:rollback", {"variant": "v"}),
        (lambda c: c.kill("m", reason="r"), "POST", "/admin/v1/models/m:kill", {}),
        (lambda c: c.rearm("m", 7, reason="r"), "POST", "/admin/v1/models/m:rearm", {"kill_seq": 7}),
        (lambda c: c.kill_all(reason="r"), "POST", "/admin/v1/kill-switch", {}),
        (lambda c: c.rearm_all(7, reason="r"), "POST", "/admin/v1/kill-switch:rearm", {"kill_seq": 7}),
    ],
)
def test_each_change_goes_to_its_path(
    call: Callable[[AdminClient], object], method: str, path: str, body: dict[str, object]
) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={})

    call(admin(handler))
    assert (seen[0].method, seen[0].url.path) == (method, path)
    assert json.loads(seen[0].content) == body | {"reason": "r"}


def test_reads_leave_out_what_is_not_asked_for() -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200, json={"entries": [{"seq": 2}], "models": []})

    client = admin(handler)
    assert client.audit() == [{"seq": 2}]
    client.audit("moderation", limit=5, before=9)
    assert seen == [
        "http://127.0.0.1:8003/admin/v1/audit?limit=100",
        "http://127.0.0.1:8003/admin/v1/audit?model=moderation&limit=5&before=9",
    ]


def test_a_strange_model_name_cannot_reach_another_path() -> None:
    seen: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path)
        return httpx.Response(200, json={})

    admin(handler).model("../kill-switch?x=1")
    assert seen == [b"/admin/v1/models/..%2Fkill-switch%3Fx%3D1"]


@pytest.mark.parametrize("status", [401, 403, 409, 412])
def test_permission_and_conflict_are_refusals_in_the_servers_words(status: int) -> None:
    with pytest.raises(Refused, match="kill 3 is in force, not 2"):
        admin(answering(status, {"error": "kill 3 is in force, not 2"})).rearm("m", 2, reason="r")


def test_any_other_error_keeps_its_status() -> None:
    with pytest.raises(Failed, match="unknown model x") as caught:
        admin(answering(404, {"error": "unknown model x"})).model("x")
    assert caught.value.status == 404


def test_an_error_without_a_message_names_what_was_asked() -> None:
    with pytest.raises(Failed, match=r"502 Bad Gateway for GET /admin/v1/status"):
        admin(lambda request: httpx.Response(502, text="<html>")).status()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), "is it running"),
        (httpx.ReadTimeout("slow"), "did not answer within 10 s"),
        (httpx.RemoteProtocolError("gone"), "the connection broke off"),
    ],
)
def test_nobody_there_is_unreachable_and_says_where(error: Exception, words: str) -> None:
    with pytest.raises(Unreachable, match=words) as caught:
        admin(raising(error)).status()
    assert "http://127.0.0.1:8003" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "doubtful"),
    [
        (httpx.ConnectError("refused"), False),
        (httpx.ConnectTimeout("slow"), False),
        (httpx.WriteTimeout("slow"), True),
        (httpx.ReadTimeout("slow"), True),
        (httpx.ReadError("reset"), True),
        (httpx.RemoteProtocolError("gone"), True),
    ],
)
def test_a_change_whose_answer_was_lost_is_not_said_to_be_undone(error: Exception, doubtful: bool) -> None:
    with pytest.raises(Unreachable) as caught:
        admin(raising(error)).rollback("m", reason="r")
    assert ("may still take effect" in str(caught.value)) == doubtful
    with pytest.raises(Unreachable) as caught:
        admin(raising(error)).status()
    assert "may still take effect" not in str(caught.value)


@pytest.mark.parametrize("body", ["hello", "[1]"])
def test_an_answer_that_is_not_the_control_planes_is_said_to_be_so(body: str) -> None:
    with pytest.raises(Failed, match="not the control plane's JSON"):
        admin(lambda request: httpx.Response(200, text=body)).status()


@pytest.mark.parametrize("url", ["localhost:8003", "ftp://x", ""])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ClientError, match="use a form such as http://127"):
        AdminClient(url)


def test_inference_sends_the_protocols_json_and_reads_the_headers() -> None:
    clock = FakeClock()

    def handler(request: httpx.Request) -> httpx.Response:
        clock.advance(0.004)
        assert request.url.path == "/v2/models/moderation/infer"
        assert request.headers["x-user-id"] == "u1"
        assert json.loads(request.content) == {
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hello"]}]
        }
        headers = {"x-canarium-variant": "int8", "x-canarium-reason": "canary", "x-request-id": "r-1"}
        return httpx.Response(200, json={"outputs": []}, headers=headers)

    client = InferenceClient(transport=httpx.MockTransport(handler), clock=clock)
    answer = client.infer_text("moderation", ["hello"], headers={"x-user-id": "u1"})
    assert (answer.variant, answer.reason, answer.request_id) == ("int8", "canary", "r-1")
    assert answer.milliseconds == pytest.approx(4)


def test_not_ready_and_not_there_are_both_false() -> None:
    assert not InferenceClient(transport=httpx.MockTransport(answering(503, {"error": "no"}))).ready()
    assert not InferenceClient(transport=httpx.MockTransport(raising(httpx.ConnectError("refused")))).ready()
    assert InferenceClient(transport=httpx.MockTransport(answering(200, {}))).ready()

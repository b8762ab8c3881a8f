"""Requests for another protocol, as HTTP/1.1 answers them: none is spoken, and no body is lost."""

from __future__ import annotations

import pytest

from serving.transport import http1
from serving.transport.http1 import Http1Server
from tests.support.http1_kit import App, Peer, get, post
from tests.support.transport import LoopClock, turns

_H2C = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAAA")  # as Java's client sends


def _upgrading(body: bytes, path: str, *, chunked: bool = False) -> bytes:
    if not chunked:
        return post(body, path, *_H2C)
    lines = [f"POST {path} HTTP/1.1", "host: h", "transfer-encoding: chunked", *_H2C, "", ""]
    return "\r\n".join(lines).encode() + b"%x\r\n%b\r\n0\r\nx-trailer: y\r\n\r\n" % (len(body), body)


async def test_an_upgrade_is_answered_as_any_other_request_and_nothing_is_read_behind_it(peer: Peer, app: App) -> None:
    fields = ("connection: Upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: eA==")
    peer.feed(get("/v2", *fields) + b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")
    await turns()
    answer = peer.answer()
    assert (answer.status, answer.headers[b"connection"]) == (200, b"close")
    assert len(app.begun) == 1
    assert peer.closed


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [1, 7, 150, 10_000])
async def test_a_request_for_another_protocol_has_its_body_and_the_connection_stays(
    peer: Peer, app: App, size: int, chunked: bool
) -> None:
    requests = _upgrading(b"first", "/1", chunked=chunked) + _upgrading(b"second" * 50, "/2", chunked=chunked)
    peer.feed(requests + post(b"third") + get("/4"), size)
    await turns(40)
    answers = peer.answers()
    assert [(answer.status, answer.body) for answer in answers] == [
        (200, b"first"),
        (200, b"second" * 50),
        (200, b"third"),
        (200, b""),
    ]
    assert [exchange.head.path for exchange in app.begun] == ["/1", "/2", "/echo", "/4"]
    assert app.begun[0].head.headers[b"upgrade"] == b"h2c"
    assert b"x-trailer" not in app.begun[0].head.headers
    assert not peer.closed
    peer.feed(post(b"later"))
    await turns()
    assert peer.answer().body == b"later"
    assert app.held == 0


@pytest.mark.parametrize(("version", "connection"), [("1.1", "close, upgrade"), ("1.0", "keep-alive, upgrade")])
async def test_a_request_for_another_protocol_may_end_its_connection(
    peer: Peer, app: App, version: str, connection: str
) -> None:
    fields = f"host: h\r\nconnection: {connection}\r\nupgrade: h2c\r\ncontent-length: 4\r\n"
    peer.feed(f"POST /echo HTTP/{version}\r\n{fields}\r\nbody".encode() + get("/never"))
    await turns()
    answer = peer.answer()
    assert (answer.body, answer.headers[b"connection"]) == (b"body", b"close")
    assert peer.closed
    assert len(app.begun) == 1


async def test_the_body_behind_an_upgrade_is_bounded_and_waited_for_as_any_other(
    server: Http1Server, app: App, clock: LoopClock
) -> None:
    app.limit = 1000
    large, refused, slow = Peer(server), Peer(server), Peer(server)
    large.feed(_upgrading(bytes(2000), "/echo"), 500)
    refused.feed(_upgrading(b"x", "/no"))
    await turns()
    assert (large.answer().status, refused.answer().status) == (413, 404)
    slow.feed(post(b"later", "/echo", *_H2C, "expect: 100-continue")[:-1])
    assert slow.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    await clock.advance(http1.BODY_S + http1.SWEEP_S)
    assert slow.answer().status == 400
    assert app.held == 0


async def test_connect_gets_no_tunnel(peer: Peer, app: App) -> None:
    peer.feed(b"CONNECT a.example:443 HTTP/1.1\r\nhost: a.example:443\r\n\r\n\x16\x03\x01")
    await turns()
    assert peer.take().startswith(b"HTTP/1.1 ")
    assert peer.closed
    assert len(app.begun) == 1

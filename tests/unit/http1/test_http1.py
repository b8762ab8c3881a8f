"""HTTP/1.1 as the server speaks it: framing, order, limits, patience. The peer's side is h11 or plain bytes."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.transport import http1
from serving.transport.exchanges import Exchange, Head
from serving.transport.http1 import MAX_PIPELINED, Http1Server
from tests.support.http1_kit import App, Peer, get, post
from tests.support.transport import LoopClock, turns

# ---------------------------------------------------------------- requests and answers


async def test_a_request_is_answered_and_the_connection_stays(peer: Peer, app: App) -> None:
    for number in range(3):
        peer.feed(post(b"body %d" % number))
        await turns()
        answer = peer.answer()
        assert (answer.status, answer.body, answer.headers[b"x-path"]) == (200, b"body %d" % number, b"/echo")
        assert b"connection" not in answer.headers
        assert answer.headers[b"date"].endswith(b"GMT")
    assert not peer.closed
    assert all(exchange.ended for exchange in app.begun)
    assert app.held == 0


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_how_the_bytes_are_cut_does_not_matter(peer: Peer, app: App, size: int) -> None:
    peer.feed(post(b"x" * 300) + get("/second") + post(b"third"), size)
    await turns(40)
    assert [answer.body for answer in peer.answers()] == [b"x" * 300, b"", b"third"]
    assert app.held == 0


async def test_close_is_done_behind_the_answer(peer: Peer) -> None:
    peer.feed(get("/", "connection: close") + get("/ignored"))
    await turns()
    assert peer.answer().headers[b"connection"] == b"close"
    assert peer.closed


@pytest.mark.parametrize("fields", ["", "connection: keep-alive\r\n"])
async def test_http_1_0_needs_no_host_and_is_closed(peer: Peer, fields: str) -> None:
    """Without being told in so many words, such a client would not know that the connection stays."""
    peer.feed(f"GET /old HTTP/1.0\r\n{fields}\r\n".encode())
    await turns()
    answer = peer.answer()
    assert (answer.status, answer.headers[b"x-path"], answer.headers[b"connection"]) == (200, b"/old", b"close")
    assert peer.closed


async def test_head_gets_the_length_and_no_body(peer: Peer) -> None:
    peer.feed(b"HEAD /large HTTP/1.1\r\nhost: h\r\n\r\n")
    await turns()
    answer = peer.answer("HEAD")
    assert (answer.headers[b"content-length"], answer.body) == (b"100000", b"")
    peer.feed(b"GET / HTTP/1.1\r\n\r\n")  # bad: what it is told has a body, whatever was asked before
    await turns()
    assert b"host" in peer.answer().body


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/v2/models", "/v2/models"),
        ("/v2?x=1&y=%2F", "/v2"),
        ("/a%20b/%C3%A9", "/a b/é"),
        ("/%zz", "/%zz"),
        ("http://other.example/v2/health?x", "/v2/health"),
        ("http://other.example", "/"),
        ("*", "*"),
        ("//double", "//double"),
    ],
)
async def test_every_form_of_a_target(peer: Peer, app: App, target: str, path: str) -> None:
    peer.feed(f"OPTIONS {target} HTTP/1.1\r\nhost: h\r\n\r\n".encode())
    await turns()
    assert peer.answer().status == 200
    assert app.begun[0].head.path == path


async def test_names_of_headers_are_in_lower_case_and_the_last_value_counts(peer: Peer, app: App) -> None:
    peer.feed(get("/", "X-User-Id: a", "x-uSER-id:  b  "))
    await turns()
    assert app.begun[0].head.headers == {b"host": b"h", b"x-user-id": b"b"}
    assert app.begun[0].head.client == "10.0.0.9"


# ---------------------------------------------------------------- bodies


async def test_a_chunked_body_is_put_together_and_its_extensions_ignored(peer: Peer, app: App) -> None:
    head = b"POST /echo HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
    peer.feed(head + b"4;name=value\r\nspam\r\nA\r\n 0123\r\n789\r\n0\r\n\r\n" + get("/next"))
    await turns()
    assert [answer.body for answer in peer.answers()] == [b"spam 0123\r\n789", b""]


async def test_trailers_do_not_pass_for_headers_of_this_request_or_the_next(peer: Peer, app: App) -> None:
    """A proxy that strips a header from what it forwards does not look for it behind the body."""
    head = b"POST /echo HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
    peer.feed(head + b"1\r\nx\r\n0\r\nx-canarium-variant: candidate\r\n\r\n" + get("/next"))
    await turns()
    assert len(peer.answers()) == 2
    assert [b"x-canarium-variant" in exchange.head.headers for exchange in app.begun] == [False, False]


async def test_expect_is_told_to_go_on_once_the_request_is_accepted(peer: Peer) -> None:
    whole = post(b"later", "/echo", "expect: 100-continue")
    peer.feed(whole[:-5])
    assert peer.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    peer.feed(whole[-5:])
    await turns()
    assert peer.answer().body == b"later"


async def test_expect_is_not_told_to_go_on_when_it_is_refused_or_too_old_or_owed_an_answer(server: Http1Server) -> None:
    refused = Peer(server)
    refused.feed(post(b"later", "/no", "expect: 100-continue")[:-5])
    await turns()
    assert refused.answer().status == 404
    old = Peer(server)
    old.feed(b"POST /echo HTTP/1.0\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n")
    await turns()
    assert old.take() == b""
    busy = Peer(server)
    busy.feed(get("/wait") + post(b"later", "/echo", "expect: 100-continue")[:-5])
    await turns()
    assert busy.take() == b""


async def test_a_body_over_the_limit_is_refused_and_its_client_can_read_that_while_it_sends(
    peer: Peer, app: App, clock: LoopClock
) -> None:
    app.limit = 1000
    whole = post(bytes(10_000_000))
    peer.feed(whole[:5000], 1000)
    await turns()
    answer = peer.answer()
    assert (answer.status, answer.headers[b"connection"], answer.body) == (413, b"close", b"too large")
    assert peer.half_closed
    assert not peer.closed  # closing now would reset the connection, and the answer might be lost with it
    peer.feed(whole[5000:])
    assert peer.take() == b""
    assert app.held == 0
    await clock.advance(http1.LINGER_S + http1.SWEEP_S)
    assert peer.aborted


async def test_a_request_that_is_refused_by_its_head_does_not_get_its_body_read(peer: Peer, app: App) -> None:
    peer.feed(post(bytes(100_000), "/no"))
    await turns()
    assert peer.answer().status == 404
    assert app.begun[0].ended
    assert app.asked == []


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=300), st.booleans())
async def test_a_body_is_what_was_sent_however_it_was_cut(pieces: list[bytes], chunked: bool) -> None:
    app = App()
    server = Http1Server(app)
    peer = Peer(server)
    whole = b"".join(pieces)
    if chunked:
        peer.feed(b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in pieces:
            peer.feed(b"%x\r\n%b\r\n" % (len(piece), piece))
        peer.feed(b"0\r\n\r\n")
    else:
        peer.feed(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % len(whole))
        for piece in pieces:
            peer.feed(piece)
    await turns()
    assert peer.answer().body == whole
    await server.drain(0)


# ---------------------------------------------------------------- pipelining


async def test_pipelined_requests_are_answered_in_order_one_at_a_time(peer: Peer, app: App) -> None:
    peer.feed(get("/wait") + post(b"second") + get("/wait") + post(b"fourth"))
    await turns()
    assert peer.take() == b""
    assert [head.path for head, _ in app.asked] == ["/wait"]
    app.begun[0].gate.set()
    await turns()
    assert [answer.headers[b"x-path"] for answer in peer.answers()] == [b"/wait", b"/echo"]
    app.begun[2].gate.set()
    await turns()
    assert [answer.body for answer in peer.answers()] == [b"", b"fourth"]


async def test_what_follows_a_refused_request_costs_those_before_it_no_answer(
    peer: Peer, app: App, clock: LoopClock
) -> None:
    peer.feed(get("/wait") + post(b"abc", "/no") + get("/more"))
    await clock.advance(40)
    assert not peer.closed
    app.begun[0].gate.set()
    await turns()
    assert [answer.status for answer in peer.answers()] == [200, 404]


async def test_pipelining_is_bounded_by_not_reading_on(peer: Peer, app: App) -> None:
    peer.feed(get("/wait"))
    for _ in range(MAX_PIPELINED - 1):
        peer.feed(get())
    assert peer.reading
    peer.feed(get())
    assert not peer.reading
    app.begun[0].gate.set()
    await turns(100)
    assert peer.reading
    assert len(peer.answers()) == MAX_PIPELINED + 1


async def test_a_bad_request_is_refused_after_the_good_ones_before_it(peer: Peer, app: App, clock: LoopClock) -> None:
    peer.feed(get("/wait") + b"nonsense\r\n\r\n" + get("/never"))
    await clock.advance(40)  # however long the first one takes
    assert not peer.closed
    app.begun[0].gate.set()
    await turns()
    assert [answer.status for answer in peer.answers()] == [200, 400]
    assert len(app.begun) == 1


async def test_a_fault_of_the_servers_own_is_no_fault_of_the_request(
    peer: Peer, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Head) -> Exchange:
        raise RuntimeError("secret of the server")

    monkeypatch.setattr(app, "begin", broken)
    peer.feed(get("/"))
    await turns()
    assert peer.closed
    assert peer.take() == b""


async def test_a_long_answer_is_not_cut_off_because_the_next_request_waits_for_it(
    peer: Peer, app: App, clock: LoopClock
) -> None:
    peer.feed(get("/wait") + get("/second"))
    for _ in range(4):
        await clock.advance(60)
    assert not peer.closed
    app.begun[0].gate.set()
    await turns()
    assert [answer.status for answer in peer.answers()] == [200, 200]


# ---------------------------------------------------------------- patience


async def test_a_slow_head_is_refused(peer: Peer, clock: LoopClock) -> None:
    for byte in get("/slow")[:15]:
        peer.feed(bytes((byte,)))
        await clock.advance(1)
    await clock.advance(http1.HEAD_S)
    assert peer.answer().status == 408


async def test_a_slow_body_is_refused_and_given_back(peer: Peer, app: App, clock: LoopClock) -> None:
    peer.feed(post(bytes(5000))[:-1])
    assert app.held > 0
    await clock.advance(http1.BODY_S + http1.SWEEP_S)
    assert peer.answer().status == 400
    assert app.held == 0


async def test_a_silent_connection_is_closed_after_a_while_and_not_before(
    server: Http1Server, clock: LoopClock
) -> None:
    fresh, used = Peer(server), Peer(server)
    used.feed(get())
    await clock.advance(http1.HEAD_S - 1)
    assert not fresh.closed
    await clock.advance(2)
    assert fresh.closed
    assert fresh.take() == b""
    assert not used.closed
    await clock.advance(http1.IDLE_S)
    assert used.closed


async def test_the_application_may_take_its_time(peer: Peer, app: App, clock: LoopClock) -> None:
    peer.feed(get("/wait"))
    for _ in range(10):
        await clock.advance(60)
    app.begun[0].gate.set()
    await turns()
    assert peer.answer().status == 200


async def test_a_client_that_does_not_read_is_given_up(peer: Peer, app: App, clock: LoopClock) -> None:
    peer.stuck = True
    peer.feed(get("/large") + post(b"second"))
    await turns()
    assert len(app.asked) == 1  # nothing more is computed for it meanwhile
    await clock.advance(http1.WRITE_S - 1)
    peer.feed(get("/third"))  # asking for more does not buy time
    assert not peer.closed
    await clock.advance(2)
    assert peer.aborted
    assert app.held == 0


@pytest.mark.parametrize("fields", [(), ("connection: close",)])
async def test_a_client_that_reads_slowly_is_waited_for_and_one_that_all_but_stops_is_not(
    peer: Peer, clock: LoopClock, fields: tuple[str, ...]
) -> None:
    peer.stuck = True
    peer.feed(get("/large", *fields))
    await turns()
    for _ in range(5):
        peer.unread -= http1.WRITE_LEAST
        await clock.advance(http1.WRITE_S + http1.SWEEP_S)
        assert not peer.lost
    peer.unread -= http1.WRITE_LEAST - 1
    await clock.advance(http1.WRITE_S + http1.SWEEP_S)
    assert peer.aborted


async def test_a_client_that_has_read_all_is_not_given_more_time(peer: Peer, clock: LoopClock) -> None:
    peer.stuck = True
    peer.feed(get("/large"))
    await turns()
    peer.free()
    await clock.advance(http1.IDLE_S - 1)
    assert not peer.closed
    await clock.advance(2)
    assert peer.aborted


async def test_a_refused_client_is_not_read_on_while_it_leaves_its_answers(peer: Peer, clock: LoopClock) -> None:
    """Else it would keep the server busy throwing away what comes, as fast as it can be sent."""
    peer.stuck = True
    peer.feed(get("/large") + b"nonsense\r\n\r\n")
    await turns()
    peer.feed(b"more")
    assert not peer.reading
    peer.free()
    await turns()
    assert [answer.status for answer in peer.answers()] == [200, 400]
    assert peer.reading  # what it had sent meanwhile must not reset the connection under its answers
    await clock.advance(http1.LINGER_S + http1.SWEEP_S)
    assert peer.closed


async def test_a_client_whose_refusal_fills_the_buffer_is_read_on_once_it_takes_it(
    peer: Peer, clock: LoopClock
) -> None:
    peer.stuck = True
    peer.feed(b"nonsense\r\n\r\n")
    await turns()
    peer.feed(b"more")
    assert not peer.reading
    peer.free()
    assert peer.reading
    assert peer.answer().status == 400
    await clock.advance(http1.LINGER_S + http1.SWEEP_S)
    assert peer.closed


async def test_a_client_that_reads_again_gets_the_rest(peer: Peer, clock: LoopClock) -> None:
    peer.stuck = True
    peer.feed(get("/large") + post(b"second"))
    await clock.advance(http1.WRITE_S - 1)
    peer.free()
    await clock.advance(10)
    assert [len(answer.body) for answer in peer.answers()] == [100_000, 6]
    assert not peer.closed


@pytest.mark.parametrize("behind", [b"nonsense\r\n\r\n", get("/second")], ids=["no request", "a request"])
async def test_nothing_is_answered_behind_a_close_and_who_does_not_read_is_given_up(
    peer: Peer, app: App, clock: LoopClock, behind: bytes
) -> None:
    """Else the connection of a client that never reads would keep its slot for ever."""
    peer.unread = 1  # too little to be told of
    peer.feed(get("/first", "connection: close") + behind)
    await turns()
    assert not peer.lost  # not before all is sent
    await clock.advance(http1.WRITE_S + http1.SWEEP_S)
    assert peer.aborted
    assert peer.answer().headers[b"x-path"] == b"/first"
    assert len(app.asked) == 1


async def test_the_rest_of_a_last_answer_is_waited_for_as_long_as_all_of_it(peer: Peer, clock: LoopClock) -> None:
    peer.stuck = True
    peer.feed(get("/large", "connection: close"))
    await turns()
    peer.unread = 1
    peer.protocol.resume_writing()
    await clock.advance(http1.WRITE_S - 1)
    assert not peer.lost
    await clock.advance(2)
    assert peer.aborted


async def test_requests_behind_the_last_one_that_is_answered_are_given_back(peer: Peer, app: App) -> None:
    """HTTP/1.0 is closed behind each answer, whatever the client asked for; its parser reads on."""
    old = b"POST /old HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 4\r\n\r\nbody"
    peer.unread = 1
    peer.feed(old * 3)
    await turns()
    assert not peer.lost
    assert (peer.answer().body, len(app.asked), app.held) == (b"body", 1, 0)
    assert [exchange.ended for exchange in app.begun] == [True] * 3


async def test_what_is_no_request_behind_one_that_is_refused_is_not_answered(peer: Peer, clock: LoopClock) -> None:
    peer.feed(post(b"body", "/no") + b"nonsense\r\n\r\n")
    await turns()
    assert peer.answer().status == 404
    await clock.advance(http1.LINGER_S + http1.SWEEP_S)
    assert peer.lost


# ---------------------------------------------------------------- the end


async def test_a_disconnect_drops_the_work_that_is_under_way_and_what_waits(peer: Peer, app: App) -> None:
    peer.feed(get("/wait") + post(b"waits", "/wait") + post(bytes(100))[:-1])
    await turns()
    peer.hang_up()
    await turns()
    assert app.begun[0].cancelled
    assert [head.path for head, _ in app.asked] == ["/wait"]
    assert [exchange.ended for exchange in app.begun] == [True] * 3
    assert app.held == 0


async def test_more_connections_than_the_limit_are_closed_at_once_and_counted(server: Http1Server) -> None:
    peers = [Peer(server) for _ in range(5)]
    await turns()
    assert [peer.closed for peer in peers] == [False, False, False, True, True]
    assert server.refused == 2
    peers[0].hang_up()
    await turns()
    assert not Peer(server).closed


async def test_draining_answers_what_was_asked_and_closes_the_rest(server: Http1Server, app: App) -> None:
    idle, busy, half = Peer(server), Peer(server), Peer(server)
    busy.feed(get("/wait") + post(b"asked as well"))
    half.feed(post(b"half")[:-1])
    await turns()
    draining = asyncio.get_running_loop().create_task(server.drain(60))
    await turns()
    assert idle.closed
    late = Peer(server)
    await turns()
    assert late.closed
    app.begun[0].gate.set()
    half.feed(b"f")
    await turns()
    first, second = busy.answers()
    assert (b"connection" in first.headers, second.headers[b"connection"]) == (False, b"close")
    assert half.answer().headers[b"connection"] == b"close"
    assert (busy.closed, half.closed) == (True, True)
    await turns()
    assert draining.done()


async def test_draining_ends_in_time_whatever_clients_do(server: Http1Server, app: App, clock: LoopClock) -> None:
    peer = Peer(server)
    peer.feed(get("/wait"))
    await turns()
    draining = asyncio.get_running_loop().create_task(server.drain(4))
    await turns()
    await clock.advance(3)
    assert not draining.done()
    await clock.advance(2)
    assert draining.done()
    assert peer.aborted
    assert app.begun[0].cancelled


async def test_an_application_that_breaks_costs_its_connection_only(server: Http1Server, app: App) -> None:
    broken, other = Peer(server), Peer(server)
    broken.feed(get("/breaks"))
    other.feed(get("/fine"))
    await turns()
    assert broken.aborted
    assert app.begun[0].ended
    assert other.answer().status == 200

"""What the monitor counts of a candidate goes on over the armings of one attempt, and begins anew with the next."""

from __future__ import annotations

import msgspec
from test_guard import feed, guards, model, of, pair, request, snapshot

from monitoring.guard import ModelGuards
from serving.contract import Kind, Latch


def seen() -> ModelGuards:
    watched = guards()
    feed(watched, request("int8"), pair("int8", True, inclusion=0.1), pair("int8", False))
    assert watched.counts()["int8"] == {"live": 1, "pairs": 2, "suspect": 10.0}
    return watched


def test_counts_outlive_another_candidates_promotion() -> None:
    watched = seen()
    watched.configure(snapshot({"int8": 500}, epoch=2, since={"int8": 1}, baseline="broken"))
    assert of(watched, "agreement").verdict == "no_data"
    assert watched.counts()["int8"] == {"live": 1, "pairs": 2, "suspect": 10.0}
    feed(watched, request("int8", epoch=2), pair("int8", True, epoch=2))
    assert watched.counts()["int8"] == {"live": 2, "pairs": 3, "suspect": 11.0}


def test_counts_outlive_a_time_without_traffic_and_a_restart() -> None:
    watched = seen()
    for epoch in (2, 4):
        watched.configure(snapshot({}, epoch=epoch))
        watched.configure(snapshot({"int8": 500}, epoch=epoch + 1))
        watched.load(msgspec.msgpack.decode(msgspec.msgpack.encode(watched.state())))
        feed(watched, request("int8", epoch=epoch + 1), pair("int8", True, epoch=epoch + 1))
    assert of(watched, "agreement").statistic["observations"] == 1
    assert watched.counts()["int8"] == {"live": 3, "pairs": 4, "suspect": 12.0}


def test_pairs_of_the_shadow_are_counted_once() -> None:
    watched = ModelGuards("m", model())
    watched.configure(snapshot({}, shadow={"int8": 10_000}))
    feed(watched, pair("int8", False, Kind.SHADOW), times=5)
    watched.configure(snapshot({"int8": 500}, epoch=2))
    assert watched.counts()["int8"]["pairs"] == 5


def test_a_second_attempt_begins_with_none() -> None:
    watched = seen()
    watched.configure(snapshot({}, epoch=2))
    watched.configure(snapshot({"int8": 500}, epoch=3))
    watched.configure(snapshot({}, epoch=4, vetoes={"m/int8": Latch(1, 1)}))
    assert watched.counts()["int8"] == {"live": 0, "pairs": 0, "suspect": 0.0}


def test_a_state_of_before_they_were_kept_is_gone_on_from() -> None:
    stored = seen().state()
    del stored["earlier"]
    watched = ModelGuards("m", model())
    watched.load(stored)
    assert watched.counts()["int8"] == {"live": 1, "pairs": 2, "suspect": 10.0}

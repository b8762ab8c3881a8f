"""What a client gets of several variants, and while they are killed or overloaded: real sessions, no network."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import pytest

from monitoring.config import SloTarget
from monitoring.objectives import count
from serving import contract, packing
from serving.clock import FakeClock
from serving.contract import Kind, Latch, slot_key
from serving.errors import ErrorKind, RequestError
from serving.gateway.dataplane import Caller, _Work
from serving.gateway.live import LiveRouting
from serving.gateway.recorder import Trace
from serving.protocol.types import OutputRequest
from tests.support.gateway import InProcessGateway, Start, labels, request, status_cells, totals


def events(gateway: InProcessGateway) -> tuple[int, int]:
    """(events, bad events) of the model's availability, as the monitor counts them."""
    return count(SloTarget("availability", 0.999), totals(gateway).values(), whole=True)


async def test_without_a_canary_the_baseline_answers_everything(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish()
    reply = await gateway.ask("spam offer", "ham dear", sticky="u1")
    assert labels(reply) == ["spam", "ham"]
    assert reply.variant == "teacher"
    assert reply.reason == "baseline"
    assert reply.response.version == "1"


async def test_a_user_stays_on_one_variant(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 50})
    seen = {user: {(await gateway.ask("ham", sticky=f"u{user}")).variant for _ in range(3)} for user in range(20)}
    assert all(len(variants) == 1 for variants in seen.values())
    assert {name for variants in seen.values() for name in variants} == {"teacher", "candidate"}


async def test_pinned_and_overridden_requests_get_the_variants_own_error(start: Start) -> None:
    gateway = start(candidate="raises")
    await gateway.publish({"candidate": 10})
    for how in ({"version": "2"}, {"override": "candidate"}):
        with pytest.raises(RequestError) as caught:
            await gateway.ask("ham", **how)
        assert caught.value.kind is ErrorKind.INTERNAL
        assert "candidate" in caught.value.message
    assert not gateway.records()["flags"][-1] & contract.Flag.LIVE


async def test_a_reserve_takes_no_more_than_the_baseline_can_do_alone(tmp_path: Path) -> None:
    gateway = InProcessGateway(tmp_path, {"candidate": ""}, on_kill="reserve")
    await gateway.publish({"candidate": 100})
    await gateway.ask("ham")  # nothing is known of the baseline yet
    baseline = gateway.plane.planes.get("tiny", "teacher")
    assert baseline is not None
    for _ in range(3):
        baseline.batcher._work.measured(4, 40 * 10**9, full=True)  # a row in ten seconds
    assert (await gateway.ask("ham")).variant == "candidate"
    with pytest.raises(RequestError) as caught:
        await gateway.ask("ham")
    assert (caught.value.kind, caught.value.retry_after_s) == (ErrorKind.OVERLOADED, 10)
    assert "baseline teacher can do alone" in caught.value.message
    assert (await gateway.ask("ham", version="1")).variant == "teacher"  # a pinned request is no part of the traffic
    await gateway.plane.close()


async def test_a_kill_moves_everything_to_the_baseline_and_refuses_pins(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 100}, kills={"tiny": Latch(1, 0)})
    reply = await gateway.ask("ham", sticky="u1")
    assert (reply.variant, reply.reason) == ("teacher", "killed")
    with pytest.raises(RequestError) as caught:
        await gateway.ask("ham", version="2")
    assert caught.value.kind is ErrorKind.UNAVAILABLE


async def test_refused_pins_are_no_part_of_what_the_objectives_count(start: Start) -> None:
    """Golden rows and testers pinned to a killed variant get 503; no client that asked the model did."""
    gateway = start(candidate="")
    await gateway.publish({"candidate": 100}, kills={"tiny": Latch(1, 0)})
    for how in ({"version": "2"}, {"override": "candidate"}):
        with pytest.raises(RequestError):
            await gateway.ask("ham", **how)
    await gateway.ask("ham", version="1")
    assert events(gateway) == (0, 0)
    assert status_cells(gateway, "candidate", contract.C_PINNED)[503] == 2
    assert status_cells(gateway, "teacher", contract.C_PINNED)[200] == 1
    await gateway.ask("ham")
    assert events(gateway) == (1, 0)


async def test_without_a_routing_table_refusals_are_counted(start: Start) -> None:
    gateway = start()
    with pytest.raises(RequestError, match="no routing table yet"):
        await gateway.ask("ham")
    with pytest.raises(RequestError, match="no routing table yet"):
        await gateway.ask("ham", version="1")  # pinned: no part of the traffic
    assert events(gateway) == (1, 1)


async def test_records_made_under_a_kill_say_so_whoever_owns_the_bucket(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 50})
    await gateway.ask("ham")
    assert not gateway.records()[-1]["flags"] & contract.Flag.KILLED
    await gateway.publish(kills={"tiny": Latch(1, 0)})
    assert {(await gateway.ask("ham", sticky=f"u{n}")).reason for n in range(20)} == {"baseline", "killed"}
    assert all(row["flags"] & contract.Flag.KILLED for row in gateway.records()[-20:])


async def test_the_control_word_kills_without_the_control_plane(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 100})
    assert (await gateway.ask("ham")).variant == "candidate"
    gateway.word.latch_on(slot_key("tiny", "candidate"))
    assert (await gateway.ask("ham")).variant == "teacher"


async def test_a_kill_clears_only_by_a_rearm_of_its_own_number(start: Start) -> None:
    gateway = start(candidate="")
    gateway.word.latch_on(slot_key("tiny"), at_least=3)
    await gateway.publish({"candidate": 100}, kills={"tiny": Latch(2, 2)})
    assert (await gateway.ask("ham")).reason == "killed"
    await gateway.publish(kills={"tiny": Latch(3, 3)})
    assert (await gateway.ask("ham")).reason == "canary"


async def test_an_older_lease_is_refused(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 100})
    stale = msgspec.structs.replace(gateway.snapshot, lease=0, rev=99, kills={"tiny": Latch(1, 0)})
    await gateway.plane.apply(stale)
    assert (await gateway.ask("ham")).reason == "canary"


async def test_an_answer_that_comes_after_a_rollback_is_discarded(start: Start) -> None:
    gateway = start(candidate="slow")
    await gateway.publish({"candidate": 100})
    asking = asyncio.ensure_future(gateway.ask("spam", sticky="u1"))
    await asyncio.sleep(0)  # the request is now with the slow candidate
    gateway.word.latch_on(slot_key("tiny", "candidate"))
    reply = await asking
    assert reply.reason == "fallback:killed"
    assert reply.variant == "teacher"


async def test_every_reference_pair_is_recorded_with_its_flip(start: Start) -> None:
    gateway = start(candidate="flips", routing={"reference_percent": 100})
    await gateway.publish({"candidate": 100})
    await gateway.ask("spam", sticky="u1")
    pairs = await _pairs(gateway, Kind.REFERENCE)
    assert [(row["flips"], row["rows"], row["cls"], row["ref_cls"]) for row in pairs] == [(1, 1, 0, 1)]
    apart = packing.unpack_divergence(int(pairs[0]["extra"]))
    assert apart is not None
    assert min(apart) > 0.1  # opposite answers


async def test_the_pair_of_a_healthy_candidate_is_not_apart(start: Start) -> None:
    gateway = start(candidate="", routing={"reference_percent": 100})
    await gateway.publish({"candidate": 100})
    await gateway.ask("spam", sticky="u1")
    (pair,) = await _pairs(gateway, Kind.REFERENCE)
    assert packing.unpack_divergence(int(pair["extra"])) == pytest.approx((0.0, 0.0), abs=1e-6)


async def test_the_teacher_is_asked_again_only_while_it_is_compared_with(start: Start) -> None:
    gateway = start(candidate="flips", routing={"noise_percent": 100})
    await gateway.publish()
    await gateway.ask("spam", sticky="u1")
    await gateway.publish({"candidate": 1})
    reply = await gateway.ask("spam", sticky="u1")
    assert reply.variant == "teacher"
    (pair,) = await _pairs(gateway, Kind.REFERENCE)
    assert pair["series"] == pair["answered"]
    assert (pair["flips"], pair["inclusion"], pair["overlap"]) == (0, 1.0, 0)  # of two classes both are always there


async def test_a_share_of_one_users_requests_is_scored(start: Start) -> None:
    gateway = start(candidate="flips", routing={"reference_percent": 50})
    await gateway.publish({"candidate": 100})
    chosen = set()
    for n in range(40):
        work = _Work(
            "tiny", gateway.config.models["tiny"], gateway.plane._view("tiny"), Trace(f"r-{n}", 0), 0, "teacher"
        )
        gateway.plane._route(work, "", Caller(0, sticky="the only user"))
        chosen.add(work.reference)
    assert chosen == {False, True}


async def test_shadow_answers_are_compared_and_never_returned(start: Start) -> None:
    gateway = start(shadowed="flips")
    await gateway.publish(shadow={"shadowed": 100})
    reply = await gateway.ask("spam", sticky="u1")
    assert labels(reply) == ["spam"]
    pairs = await _pairs(gateway, Kind.SHADOW)
    assert pairs[0]["flips"] == 1


@pytest.mark.parametrize("routed", ["teacher", "candidate"])
async def test_a_shadow_is_compared_with_the_teacher_whoever_answered(start: Start, routed: str) -> None:
    gateway = start(shadowed="", candidate="flips")
    await gateway.publish({"candidate": 100 if routed == "candidate" else 0}, shadow={"shadowed": 100})
    assert labels(await gateway.ask("spam", sticky="u1")) == ["ham" if routed == "candidate" else "spam"]
    (pair,) = await _pairs(gateway, Kind.SHADOW)
    teacher = gateway.recorder.series("tiny", "teacher")
    assert (pair["answered"], pair["flips"], pair["ref_cls"]) == (teacher, 0, 1)


async def test_unknown_model_version_and_variant_name_what_there_is(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish()
    with pytest.raises(RequestError, match="tiny"):
        await gateway.plane.infer("nope", "", request("x"), Caller(gateway.clock.monotonic_ns()))
    with pytest.raises(RequestError, match=r"2 \(candidate\)"):
        await gateway.ask("x", version="9")
    with pytest.raises(RequestError, match="candidate, teacher"):
        await gateway.ask("x", override="nobody")


async def test_a_full_queue_refuses_with_a_time_to_retry(start: Start) -> None:
    gateway = start(routing={"queue": {"max_rows": 1}})
    await gateway.publish()
    results = await asyncio.gather(*(gateway.ask("ham") for _ in range(40)), return_exceptions=True)
    refused = [error for error in results if isinstance(error, RequestError)]
    assert refused
    assert all(error.kind is ErrorKind.OVERLOADED and error.retry_after_s for error in refused)


async def test_a_request_that_can_never_fit_is_refused_before_its_inputs_are_made(start: Start) -> None:
    gateway = start(candidate="", routing={"queue": {"max_rows": 4}})
    await gateway.publish({"candidate": 100})
    made: list[str] = []
    for name in ("teacher", "candidate"):
        plane = gateway.plane.planes.get("tiny", name)
        assert plane is not None
        plane.pipeline.preprocess = lambda inputs, name=name: made.append(name)  # type: ignore[method-assign]
    with pytest.raises(RequestError, match=r"5 rows is more than the queue of candidate holds \(4 rows\)") as caught:
        await gateway.ask(*["ham"] * 5, sticky="u1")
    assert caught.value.kind is ErrorKind.TOO_LARGE
    assert made == []
    (record,) = gateway.records()
    assert (record["status"], record["rows"]) == (413, 1)  # not 5: no rollback would have to carry them


async def test_a_label_is_recorded_under_the_requests_key(start: Start) -> None:
    gateway = start()
    await gateway.publish()
    gateway.plane.feedback("tiny", "r-1", "spam", {"clicks": 2.0})
    label, kpi = gateway.records()[-2:]
    assert (label["kind"], label["cls"]) == (Kind.LABEL, 1)
    assert (kpi["kind"], kpi["prob"]) == (Kind.KPI, 2.0)
    assert label["request_key"] == kpi["request_key"] == contract.request_key("tiny", "r-1")
    with pytest.raises(RequestError, match="ham, spam"):
        gateway.plane.feedback("tiny", "r-1", "eggs", {})


async def _pairs(gateway: InProcessGateway, kind: Kind) -> list[np.void]:
    """The comparisons of one kind, once the background work has recorded one."""
    for _ in range(1_000_000):
        if found := [row for row in gateway.records() if row["kind"] == kind]:
            return found
        await asyncio.sleep(0)  # give the loop its turn; unit tests do not wait by time
    raise AssertionError(f"no {kind.name} record was written")


async def test_a_kill_is_obeyed_though_the_snapshot_names_a_variant_that_cannot_be_opened(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 100})
    table = gateway.snapshot.tables["tiny"]
    ghost = msgspec.structs.replace(table.variants["candidate"], name="ghost", artifact="tiny/ghost:1", version=9)
    broken = msgspec.structs.replace(table, variants={**table.variants, "ghost": ghost}, epoch=table.epoch + 1)
    bad = msgspec.structs.replace(gateway.snapshot, rev=99, tables={"tiny": broken}, kills={"tiny": Latch(1, 0)})
    await gateway.plane.apply(bad)
    reply = await gateway.ask("ham")
    assert (reply.variant, reply.reason) == ("teacher", "killed")
    with pytest.raises(RequestError, match="is killed"):
        await gateway.ask("ham", override="ghost")


async def test_reloading_the_baseline_under_load_fails_nobody(start: Start) -> None:
    gateway = start(slow="slow")
    table = gateway.snapshot.tables["tiny"]
    moved = msgspec.structs.replace(table, baseline="slow")
    gateway.snapshot = msgspec.structs.replace(gateway.snapshot, tables={"tiny": moved})
    await gateway.publish()
    asking = [asyncio.ensure_future(gateway.ask("spam", sticky=f"u{n}")) for n in range(6)]
    await asyncio.sleep(0)
    entry = msgspec.structs.replace(moved.variants["slow"], max_batch=2)
    reloaded = msgspec.structs.replace(moved, variants={**moved.variants, "slow": entry}, epoch=moved.epoch + 1)
    gateway.snapshot = msgspec.structs.replace(gateway.snapshot, rev=50, tables={"tiny": reloaded})
    await gateway.plane.apply(gateway.snapshot)
    replies = await asyncio.gather(*asking)
    assert [labels(reply) for reply in replies] == [["spam"]] * 6


async def test_a_pinned_answer_that_comes_after_a_kill_is_refused(start: Start) -> None:
    gateway = start(candidate="slow")
    await gateway.publish({"candidate": 10})
    asking = asyncio.ensure_future(gateway.ask("spam", version="2"))
    await asyncio.sleep(0)
    gateway.word.latch_on(slot_key("tiny"))
    with pytest.raises(RequestError) as caught:
        await asking
    assert caught.value.kind is ErrorKind.UNAVAILABLE


async def test_a_silent_monitor_is_named_and_is_no_kill(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 100})
    real = gateway.clock.monotonic_ns
    monkeypatch.setattr(gateway.clock, "monotonic_ns", lambda: real() + 61_000_000_000)
    gateway.plane.enforce()
    reply = await gateway.ask("ham")
    assert (reply.variant, reply.reason) == ("teacher", "monitor_lost")
    with pytest.raises(RequestError, match="the monitor is silent: only teacher answers"):
        await gateway.ask("ham", version="2")
    gateway.word.latch_on(slot_key("tiny"))  # what needs a re-arm is named before what passes by itself
    assert (await gateway.ask("ham")).reason == "killed"
    with pytest.raises(RequestError, match="candidate is killed"):
        await gateway.ask("ham", version="2")


async def test_a_heartbeat_of_an_earlier_boot_does_not_count(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 100})
    gateway.word.beat(gateway.clock.monotonic_ns() + 10**15)  # the word outlived a reboot
    clock = FakeClock(monotonic_ns=gateway.clock.monotonic_ns())
    live = LiveRouting(gateway.config, gateway.word, clock)
    live.accept(gateway.snapshot)
    clock.advance(61)
    live.tick()
    assert live.monitor_lost == {"tiny"}
    view = live.view("tiny")
    assert view is not None
    assert view.killed


async def test_classes_of_a_text_output_are_refused_and_recorded(start: Start) -> None:
    gateway = start()
    await gateway.publish()
    asked = request("spam")
    asked.outputs = [OutputRequest("label", classification=1)]
    with pytest.raises(RequestError, match="classification needs numbers"):
        await gateway.plane.infer("tiny", "", asked, Caller(gateway.clock.monotonic_ns()))
    assert gateway.records()[-1]["status"] == 400

"""What a client gets when candidates misbehave, are killed or overloaded: real sessions, no network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from serving import contract
from serving.contract import Cause, Kind, Latch, Reason, slot_key
from serving.errors import ErrorKind, RequestError
from serving.gateway.dataplane import Caller
from tests.support.gateway import InProcessGateway, labels, request

Start = Callable[..., InProcessGateway]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    running: list[InProcessGateway] = []

    def make(**faults: Any) -> InProcessGateway:
        routing = faults.pop("routing", {})
        running.append(InProcessGateway(tmp_path, faults, **routing))
        return running[-1]

    yield make
    for gateway in running:
        await gateway.plane.close()


async def test_without_a_canary_the_baseline_answers_everything(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish()
    reply = await gateway.ask("spam offer", "ham dear", sticky="u1")
    assert labels(reply) == ["spam", "ham"]
    assert reply.headers["x-canarium-variant"] == "teacher"
    assert reply.headers["x-canarium-reason"] == "baseline"
    assert reply.response.version == "1"


async def test_a_user_stays_on_one_variant(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 50})
    seen = {
        user: {(await gateway.ask("ham", sticky=f"u{user}")).headers["x-canarium-variant"] for _ in range(3)}
        for user in range(20)
    }
    assert all(len(variants) == 1 for variants in seen.values())
    assert {name for variants in seen.values() for name in variants} == {"teacher", "candidate"}


@pytest.mark.parametrize(
    ("fault", "cause"), [("raises", Cause.ERROR), ("nan", Cause.INVALID_OUTPUT), ("hangs", Cause.TIMEOUT)]
)
async def test_no_client_sees_a_candidates_failure(start: Start, fault: str, cause: Cause) -> None:
    gateway = start(candidate=fault)
    await gateway.publish({"candidate": 100})
    reply = await gateway.ask("spam", sticky="u1", timeout_ms=600)
    assert labels(reply) == ["spam"]
    assert reply.headers["x-canarium-variant"] == "teacher"
    assert reply.headers["x-canarium-reason"] == f"fallback:{cause.name.lower()}"
    record = gateway.records()[-1]
    assert (record["reason"], record["cause"], record["status"]) == (Reason.FALLBACK, cause, 200)
    assert record["flags"] & contract.Flag.BASELINE_VALID


async def test_a_poison_request_does_not_fail_its_batch_mates(start: Start) -> None:
    gateway = start(candidate="raises?")
    await gateway.publish({"candidate": 100})
    replies = await asyncio.gather(
        *(gateway.ask("boom" if user == 3 else "spam", sticky=f"u{user}") for user in range(8))
    )
    fell_back = [reply.headers["x-canarium-reason"] for reply in replies]
    assert fell_back[3] == "fallback:error"
    assert fell_back[:3] + fell_back[4:] == ["canary"] * 7


async def test_pinned_and_overridden_requests_get_the_variants_own_error(start: Start) -> None:
    gateway = start(candidate="raises")
    await gateway.publish({"candidate": 10})
    for how in ({"version": "2"}, {"override": "candidate"}):
        with pytest.raises(RequestError) as caught:
            await gateway.ask("ham", **how)
        assert caught.value.kind is ErrorKind.INTERNAL
        assert "candidate" in caught.value.message
    assert not gateway.records()["flags"][-1] & contract.Flag.LIVE


async def test_a_kill_moves_everything_to_the_baseline_and_refuses_pins(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 100}, kills={"tiny": Latch(1, 0)})
    reply = await gateway.ask("ham", sticky="u1")
    assert (reply.headers["x-canarium-variant"], reply.headers["x-canarium-reason"]) == ("teacher", "killed")
    with pytest.raises(RequestError) as caught:
        await gateway.ask("ham", version="2")
    assert caught.value.kind is ErrorKind.UNAVAILABLE


async def test_the_control_word_kills_without_the_control_plane(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 100})
    assert (await gateway.ask("ham")).headers["x-canarium-variant"] == "candidate"
    gateway.word.latch_on(slot_key("tiny", "candidate"))
    assert (await gateway.ask("ham")).headers["x-canarium-variant"] == "teacher"


async def test_a_kill_clears_only_by_a_rearm_of_its_own_number(start: Start) -> None:
    gateway = start(candidate="")
    gateway.word.latch_on(slot_key("tiny"), at_least=3)
    await gateway.publish({"candidate": 100}, kills={"tiny": Latch(2, 2)})
    assert (await gateway.ask("ham")).headers["x-canarium-reason"] == "killed"
    await gateway.publish(kills={"tiny": Latch(3, 3)})
    assert (await gateway.ask("ham")).headers["x-canarium-reason"] == "canary"


async def test_an_older_lease_is_refused(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 100})
    stale = msgspec.structs.replace(gateway.snapshot, lease=0, rev=99, kills={"tiny": Latch(1, 0)})
    await gateway.plane.apply(stale)
    assert (await gateway.ask("ham")).headers["x-canarium-reason"] == "canary"


async def test_an_answer_that_comes_after_a_rollback_is_discarded(start: Start) -> None:
    gateway = start(candidate="slow")
    await gateway.publish({"candidate": 100})
    asking = asyncio.ensure_future(gateway.ask("spam", sticky="u1"))
    await asyncio.sleep(0)  # the request is now with the slow candidate
    gateway.word.latch_on(slot_key("tiny", "candidate"))
    reply = await asking
    assert reply.headers["x-canarium-reason"] == "fallback:killed"
    assert reply.headers["x-canarium-variant"] == "teacher"


async def test_every_reference_pair_is_recorded_with_its_flip(start: Start) -> None:
    gateway = start(candidate="flips", routing={"reference_percent": 100})
    await gateway.publish({"candidate": 100})
    await gateway.ask("spam", sticky="u1")
    pairs = await _pairs(gateway, Kind.REFERENCE)
    assert [(row["flips"], row["rows"], row["cls"], row["ref_cls"]) for row in pairs] == [(1, 1, 0, 1)]


async def test_shadow_answers_are_compared_and_never_returned(start: Start) -> None:
    gateway = start(shadowed="flips")
    await gateway.publish(shadow={"shadowed": 100})
    reply = await gateway.ask("spam", sticky="u1")
    assert labels(reply) == ["spam"]
    pairs = await _pairs(gateway, Kind.SHADOW)
    assert pairs[0]["flips"] == 1


async def test_client_faults_blame_nobody(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 100})
    bad = request("ham")
    bad.inputs[0].name = "texts"
    with pytest.raises(RequestError, match=r"input 'text' is missing"):
        await gateway.plane.infer("tiny", "", bad, Caller(gateway.clock.monotonic_ns()))
    record = gateway.records()[-1]
    assert record["status"] == 400
    assert record["flags"] & contract.Flag.CLIENT_FAULT


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

"""Who answers, and who is blamed, if a candidate, the baseline or the client itself fails."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from serving import contract, packing
from serving.contract import Cause, Reason
from serving.errors import RequestError
from serving.gateway.dataplane import Caller
from tests.support.gateway import Start, labels, request


@pytest.mark.parametrize(
    ("fault", "cause"), [("raises", Cause.ERROR), ("nan", Cause.INVALID_OUTPUT), ("hangs", Cause.TIMEOUT)]
)
async def test_no_client_sees_a_candidates_failure(start: Start, fault: str, cause: Cause) -> None:
    gateway = start(candidate=fault)
    await gateway.publish({"candidate": 100})
    reply = await gateway.ask("spam", sticky="u1", timeout_ms=20_000)
    assert labels(reply) == ["spam"]
    assert reply.variant == "teacher"
    assert reply.reason == f"fallback:{cause.name.lower()}"
    record = gateway.records()[-1]
    assert (record["reason"], record["cause"], record["status"]) == (Reason.FALLBACK, cause, 200)
    assert record["flags"] & contract.Flag.BASELINE_VALID


async def test_a_poison_request_does_not_fail_its_batch_mates(start: Start) -> None:
    gateway = start(candidate="raises?")
    await gateway.publish({"candidate": 100})
    replies = await asyncio.gather(
        *(gateway.ask("boom" if user == 3 else "spam", sticky=f"u{user}") for user in range(8))
    )
    fell_back = [reply.reason for reply in replies]
    assert fell_back[3] == "fallback:error"
    assert fell_back[:3] + fell_back[4:] == ["canary"] * 7


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


async def test_traffic_of_a_variant_that_is_not_open_goes_to_the_baseline_without_blame(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 100})
    table = gateway.snapshot.tables["tiny"]
    ghost = msgspec.structs.replace(table.variants["candidate"], name="ghost", artifact="tiny/ghost:1", version=9)
    moved = msgspec.structs.replace(
        table,
        variants={**table.variants, "ghost": ghost},
        candidates={"ghost": table.candidates["candidate"]},
        epoch=table.epoch + 1,
    )
    await gateway.plane.apply(msgspec.structs.replace(gateway.snapshot, rev=99, tables={"tiny": moved}))
    assert (await gateway.ask("ham")).reason == "baseline"
    record = gateway.records()[-1]
    assert record["cause"] == Cause.NONE
    assert record["flags"] & contract.Flag.UNOPENED  # so that the monitor takes it for no user of the baseline's
    assert packing.is_unopened(int(record["extra"]), "ghost")
    assert not packing.is_unopened(int(record["extra"]), "candidate")


async def test_if_candidate_and_baseline_fail_the_candidate_is_the_one_recorded(start: Start) -> None:
    gateway = start(candidate="raises", routing={"queue": {"default_timeout_ms": 400}})
    await gateway.publish({"candidate": 100})
    teacher = gateway.plane.planes.get("tiny", "teacher")
    assert teacher is not None
    teacher.pipeline.check = lambda outputs, rows: "logits holds NaN"  # type: ignore[method-assign]
    with pytest.raises(RequestError, match="teacher gave an invalid output"):
        await gateway.ask("spam", sticky="u1")
    record = gateway.records()[-1]
    assert (record["series"], record["cause"], record["status"]) == (
        gateway.recorder.series("tiny", "candidate"),
        Cause.ERROR,
        500,
    )
    assert not record["flags"] & contract.Flag.BASELINE_VALID


async def test_all_failures_of_one_batch_share_its_key_the_baselines_too(start: Start) -> None:
    gateway = start()
    await gateway.publish()
    teacher = gateway.plane.planes.get("tiny", "teacher")
    assert teacher is not None
    teacher.pipeline.check = lambda outputs, rows: "logits holds NaN"  # type: ignore[method-assign]
    await asyncio.gather(*(gateway.ask("ham", sticky=f"u{n}") for n in range(4)), return_exceptions=True)
    keys = gateway.records()["batch_key"]
    assert len(keys) == 4
    assert 0 not in keys
    assert len(set(keys)) < 4


async def test_a_client_that_leaves_no_time_blames_nobody(start: Start) -> None:
    gateway = start(candidate="hangs")
    await gateway.publish({"candidate": 100})
    reply = await gateway.ask("spam", sticky="u1", timeout_ms=20_000)  # of the 60 s that others leave
    assert reply.reason == "fallback:timeout"
    assert not gateway.records()[-1]["flags"] & contract.Flag.LIVE


async def test_a_failure_after_inference_is_recorded_and_falls_back(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 100})
    candidate = gateway.plane.planes.get("tiny", "candidate")
    assert candidate is not None

    def bad(outputs: object) -> Any:
        raise ValueError("cannot")

    candidate.pipeline.postprocess = bad  # type: ignore[method-assign]
    reply = await gateway.ask("spam", sticky="u1")
    assert reply.reason == "fallback:error"
    assert gateway.records()[-1]["cause"] == Cause.ERROR


@pytest.mark.parametrize("texts", [("spam",), ("spam",) * 9], ids=["inline", "in a thread"])
async def test_a_tokenizer_that_fails_is_recorded_and_falls_back(start: Start, texts: tuple[str, ...]) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 100})
    candidate, teacher = (gateway.plane.planes.get("tiny", name) for name in ("candidate", "teacher"))
    assert candidate is not None
    assert teacher is not None

    def bad(inputs: object) -> Any:
        raise ValueError("cannot")

    candidate.pipeline.preprocess = bad  # type: ignore[method-assign]
    reply = await gateway.ask(*texts, sticky="u1")
    assert (reply.reason, labels(reply)) == ("fallback:error", ["spam"] * len(texts))
    record = gateway.records()[-1]
    assert (record["cause"], record["status"]) == (Cause.ERROR, 200)
    teacher.pipeline.preprocess = bad  # type: ignore[method-assign]
    with pytest.raises(RequestError) as refused:
        await gateway.ask(*texts, sticky="u1")
    assert refused.value.http_status == 500


async def test_a_text_that_is_none_is_the_clients_mistake(start: Start) -> None:
    gateway = start(candidate="")
    await gateway.publish({"candidate": 100})
    wrong = request("spam")
    wrong.inputs[0].data[0] = b"\xff"
    with pytest.raises(RequestError) as refused:
        await gateway.plane.infer("tiny", "", wrong, Caller(gateway.clock.monotonic_ns(), sticky="u1"))
    assert refused.value.http_status == 400
    assert gateway.records()[-1]["cause"] == Cause.NONE

"""Variants of the quickstart, damaged for real, under the demo's traffic: each is found by the guard meant for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from loadtests.openloop import OpenLoop, Outcome
from loadtests.payloads import feedback_request, infer_requests, read_rows
from loadtests.transport import HttpTransport, TransportError
from serving import yaml12
from serving.contract import GUARDS
from tests.support import damaged
from tests.support.stack import ROOT, Stack, running, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

REGISTRY = ROOT / ".canarium" / "registry"
DATA = ROOT / "deployments" / "quickstart" / "data"
MODEL = "moderation"
#: Requests a second: as in the demo, and for the healthy variant, which answers 20,000 of so many.
RATE, HEALTHY_RATE, HEALTHY_PERCENT, HEALTHY_REQUESTS = 80.0, 250.0, 90, 22_400
#: How long a variant that is made late runs and does not, seconds; well within the time a candidate has.
GO_S, STOP_S = 0.1, 0.4
BUSY = ("429", "503", "504")
PERCENT = 20
#: This teacher is nearly always sure, and right to be: however far its temperature is off, a variant is on average
#: surer than its answers are worth by less than the two points that the guard tolerates by default.
MARGIN = 0.005


class Load:
    """Mails at a fixed rate from a thread of its own; the true label of every answer is given as feedback."""

    def __init__(self, url: str, rate: float) -> None:
        self.answers = 0
        self.failures: Counter[str] = Counter()  # by code; a busy machine's refusals are none of a harm
        self._url, self._rate = url, rate
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join(120)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        labels: asyncio.Queue[tuple[str, str]] = asyncio.Queue(1000)

        def count(outcome: Outcome) -> None:
            self.answers += outcome.ok
            if not outcome.ok and outcome.code not in BUSY:
                self.failures[outcome.code] += 1
            request_id, row = outcome.request.tag
            if outcome.ok and not labels.full():
                labels.put_nowait((request_id, row.label))

        requests = infer_requests(MODEL, read_rows(DATA), prefix="harm")
        load = OpenLoop(self._url, requests, self._rate, on_response=count)
        load.start()
        worker = asyncio.create_task(self._label(labels))
        await asyncio.to_thread(self._ended.wait)
        await load.stop()
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)

    async def _label(self, labels: asyncio.Queue[tuple[str, str]]) -> None:
        transport = HttpTransport(self._url, timeout_s=30)
        try:
            while True:
                request_id, label = await labels.get()
                try:
                    await transport.send(feedback_request(MODEL, request_id, label))
                except TransportError:
                    continue
        finally:
            await transport.close()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The quickstart's teacher and INT8, and the damaged siblings in a copy of the registry."""
    if not (REGISTRY / "models" / MODEL).is_dir():
        pytest.fail("the quickstart is not built: `make test` does, or `canarium build`")
    folder = tmp_path_factory.mktemp("harms")
    shutil.copytree(REGISTRY, folder / "registry", symlinks=True)
    names = damaged.register(folder / "registry", MODEL, "int8")
    document = yaml12.load((ROOT / "deployments" / "quickstart" / "canarium.yaml").read_text())
    document["registry"] = {"dir": str(folder / "registry")}
    variants = document["models"][MODEL]["variants"]
    kept = {name: variants[name] for name in ("teacher", "int8", "broken")}
    made = {name: {**variants["int8"], "artifact": f"{MODEL}/{name}:1"} for name in names}
    document["models"][MODEL]["variants"] = kept | made
    document["models"][MODEL]["guards"] |= {"calibration": {"margin": MARGIN}}
    with running(document, folder) as stack:
        yield stack


def failing(stack: Stack, variant: str) -> dict[str, dict[str, Any]]:
    """The guards of a candidate whose verdict on this one is `fail`, with the verdicts."""
    told: dict[str, Any] = stack.admin.get(f"/models/{MODEL}/verdicts").json()
    rows = [row for row in told["verdicts"] if row["variant"] == variant and row["guard"] in GUARDS]
    return {row["guard"]: row for row in rows if row["verdict"] == "fail"}


def weight(stack: Stack, variant: str) -> float:
    """Percent of live traffic that the variant is configured to get."""
    return next(float(one["weight"]) for one in stack.model(MODEL)["variants"] if one["name"] == variant)


def tripped(stack: Stack, variant: str) -> tuple[str, str] | None:
    """What the monitor did about the variant and the guard that made it, from the audit; None so far."""
    for entry in stack.admin.get("/audit", params={"limit": 100}).json()["entries"]:
        evidence = entry["evidence"]
        if evidence.get("guard") and evidence.get("variant", entry["variant"]) == variant:
            return entry["action"], evidence["guard"]
    return None


def test_a_healthy_int8_is_left_alone_for_20_000_requests(stack: Stack) -> None:
    stack.traffic(MODEL, weights={"int8": HEALTHY_PERCENT})
    with Load(f"http://127.0.0.1:{stack.http_port}", HEALTHY_RATE) as load:
        wait_for(lambda: load.answers >= HEALTHY_REQUESTS, timeout_s=600)
        assert failing(stack, "int8") == {}
    assert load.failures == {}
    assert tripped(stack, "int8") is None
    stack.traffic(MODEL, weights={"int8": 0})


def test_a_wrong_scale_shows_inside_before_any_client_is_answered_by_it(stack: Stack) -> None:
    with Load(f"http://127.0.0.1:{stack.http_port}", RATE):
        stack.traffic(MODEL, shadow={"wrong-scale": 50})
        said = wait_for(lambda: failing(stack, "wrong-scale").get("saturation"), 120, 0.25)
        assert said["action"] == "pause"
        assert "of wrong-scale's activations are outside their calibrated ranges" in said["sentence"]
        stack.traffic(MODEL, shadow={"wrong-scale": 0})


@contextlib.contextmanager
def stalled(stack: Stack, variant: str) -> Iterator[None]:
    """A variant whose process is kept from running for most of the time: late, and no load for the machine."""
    pid = stack.pid(f"Replica:canarium-{MODEL}-{variant}:")
    ended = threading.Event()

    def stop_and_go() -> None:
        while not ended.wait(GO_S):
            os.kill(pid, signal.SIGSTOP)
            ended.wait(STOP_S)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=stop_and_go, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(10)


@pytest.mark.parametrize(
    ("variant", "meant", "likewise", "action"),
    [
        # What disagrees with the teacher is wrong as well, and not worth what it says it is.
        ("broken", {"agreement", "harm"}, {"calibration"}, "rollback"),
        ("wrong-scale", {"agreement", "harm"}, {"calibration", "saturation"}, "rollback"),
        ("sharpened", {"calibration"}, set(), "pause"),
        ("int8", {"latency"}, set(), "rollback"),  # stopped again and again: see `stalled`
        ("nan", {"invalid_output"}, set(), "kill"),  # last: no candidate of the model is heard again until a re-arm
    ],
)
def test_each_harm_is_found_by_the_guard_meant_for_it(
    stack: Stack, variant: str, meant: set[str], likewise: set[str], action: str
) -> None:
    stall = stalled(stack, variant) if "latency" in meant else contextlib.nullcontext()
    with Load(f"http://127.0.0.1:{stack.http_port}", RATE) as load, stall:
        # What was seen of its copies before asks for a pause; here it gets traffic all the same.
        stack.traffic(MODEL, weights={variant: PERCENT}, override_pause=True)
        wait_for(lambda: meant & set(failing(stack, variant)), 300, 0.25)
        said = failing(stack, variant)
        assert set(said) <= meant | likewise, said
        assert all(variant in verdict["sentence"] for verdict in said.values()), said
        if action == "pause":  # nothing is taken away from a variant by a guard that pauses its ramp
            assert {said[guard]["action"] for guard in meant} == {"pause"}
            assert weight(stack, variant) == PERCENT
            stack.traffic(MODEL, weights={variant: 0})
        else:
            did, guard = wait_for(lambda: tripped(stack, variant))
            assert did == action
            assert guard in meant | likewise
            wait_for(lambda: stack.model(MODEL)["killed"] if action == "kill" else weight(stack, variant) == 0)
    assert load.failures == {}

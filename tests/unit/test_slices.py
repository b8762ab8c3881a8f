"""Slices: who is in one, what the guard finds in it, and how seldom it is wrong about any of many."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from monitoring.config import MonitorModel, MonitorVariant
from monitoring.detectors.slices import AGREEMENT, ERRORS, Slices
from monitoring.event import Event
from monitoring.guard import ModelGuards
from monitoring.verdicts import Verdict
from serving.config_monitoring import SliceConfig
from serving.contract import BUCKETS, Cause, Kind, RouteTable, Snapshot, VariantEntry
from serving.gateway.slices import Slices as Declared
from tests.support.gateway import InProcessGateway

DECLARED = {  # bits go by the names in the alphabet
    "short": SliceConfig(input="text", max_chars=5),
    "long": SliceConfig(input="text", min_chars=6),
    "de": SliceConfig(header="Accept-Language", prefix="de"),
    "tenant": SliceConfig(header="x-tenant", equals=("A", "b")),
}


def text(value: str) -> dict[str, np.ndarray]:
    return {"text": np.array([value.encode()], dtype=object)}


class TestMembership:
    @pytest.mark.parametrize(
        ("value", "bits"), [("", 4), ("12345", 4), ("123456", 2), ("ä" * 5, 4), ("ä" * 6, 2), ("x" * 999, 2)]
    )
    def test_by_the_characters_of_a_text(self, value: str, bits: int) -> None:
        assert Declared(DECLARED).of_inputs(text(value)) == bits

    @pytest.mark.parametrize(
        ("headers", "bits"),
        [
            ({}, 0),
            ({b"accept-language": "de-DE,de;q=0.9"}, 0b0001),
            ({b"accept-language": "en", b"x-tenant": "a"}, 0b1000),
            ({b"accept-language": "DE", b"x-tenant": "B"}, 0b1001),
            ({b"x-tenant": "ab"}, 0),
        ],
    )
    def test_by_a_header(self, headers: dict[bytes, str], bits: int) -> None:
        assert Declared(DECLARED).of_headers(lambda name: headers.get(name, "")) == bits

    def test_what_is_no_text_is_in_no_slice(self) -> None:
        assert Declared(DECLARED).of_inputs({"text": np.zeros((1, 3))}) == 0
        assert Declared(DECLARED).of_inputs({"other": np.array([b"x"], dtype=object)}) == 0

    @pytest.mark.parametrize(
        ("rule", "said"),
        [
            ({}, "either by an input or by a header"),
            ({"input": "t", "header": "h", "equals": ["a"]}, "either by an input or by a header"),
            ({"input": "t"}, "min_chars and max_chars"),
            ({"header": "h"}, "prefix and equals"),
            ({"header": "h", "max_chars": 3}, "prefix and equals"),
            ({"input": "t", "min_chars": 9, "max_chars": 3}, "max_chars: 3 is under min_chars, 9"),
        ],
    )
    def test_a_rule_that_cannot_be_meant_is_refused(self, rule: dict[str, Any], said: str) -> None:
        with pytest.raises(ValidationError, match=said):
            SliceConfig(**rule)


class TestDetector:
    def test_one_bad_slice_is_named_and_no_other(self) -> None:
        guard, random = Slices([f"s{at}" for at in range(10)], limit=0.1, alpha=0.002), np.random.default_rng(1)
        for slice_, luck in zip(random.integers(0, 10, 6000).tolist(), random.random(6000).tolist(), strict=True):
            if guard.pair(1 << slice_, int(luck < (0.4 if slice_ == 7 else 0.05))):
                break
        assert guard.failed
        assert guard.named == ["s7: agreement"]
        assert guard.rejected() == [(7, AGREEMENT)]

    def test_several_bad_slices_help_each_other(self) -> None:
        """e-BH rejects two hypotheses at an evidence at which it would reject neither alone."""
        alone, together = (Slices(["a", "b"], limit=0.1, alpha=0.01) for _ in range(2))
        while not alone.failed:
            alone.pair(0b01, 1)
        needed = alone.observations
        while not together.failed:
            together.pair(0b11, 1)
        assert together.observations <= needed
        assert together.named == ["a: agreement", "b: agreement"]
        assert alone.named == ["a: agreement"]

    def test_errors_of_one_slice_are_found_and_common_ones_are_not(self) -> None:
        harmed, common, random = (Slices(["a", "b"], alpha=0.002) for _ in range(2)), None, np.random.default_rng(2)
        harmed, common = harmed
        for n, (arm, luck) in enumerate(
            zip((random.random(8000) < 0.3).tolist(), random.random(8000).tolist(), strict=True)
        ):
            slices = 0b01 if n % 10 == 0 else 0b10
            harmed.request(slices, arm, luck < (0.3 if arm and slices == 0b01 else 0.01), share=0.3)
            common.request(slices, arm, luck < (0.3 if slices == 0b01 else 0.01), share=0.3)
        assert harmed.named == ["a: errors"]
        assert (0, ERRORS) in harmed.rejected()
        assert not common.failed

    def test_at_the_limit_in_every_slice_alarms_stay_within_the_budget(self) -> None:
        alarms = 0
        for run in range(60):
            guard, random = Slices([str(at) for at in range(8)], limit=0.1, alpha=0.05), np.random.default_rng(run)
            draws = zip(random.integers(0, 8, 300).tolist(), (random.random(300) < 0.1).tolist(), strict=True)
            alarms += any(guard.pair(1 << slice_, int(flip)) for slice_, flip in draws)
        assert alarms <= 10  # more happens by chance once in a thousand times

    def test_no_slice_and_no_rows_are_no_observation(self) -> None:
        guard = Slices(["a"])
        guard.pair(0, 1)
        guard.pair(1, 1, rows=0)
        guard.request(1, True, False, 0.5)
        assert guard.no_data


class TestGuard:
    def watched(self, slices: tuple[str, ...] = ("short", "de")) -> ModelGuards:
        variants = {"teacher": MonitorVariant(1), "int8": MonitorVariant(2, 0.01)}
        guards = ModelGuards("m", MonitorModel("teacher", "teacher", variants, slices=slices))
        entries = {name: VariantEntry(name, at, f"m/{name}:1") for at, name in enumerate(variants, 1)}
        spans = {"int8": ((0, 3000),)}
        table = RouteTable("m", 1, "s", "teacher", "teacher", entries, spans, {"int8": 1}, {}, BUCKETS)
        guards.configure(Snapshot(1, 1, {"m": table}))
        return guards

    def of(self, guards: ModelGuards) -> Verdict:
        return next(item for item in guards.verdicts() if item.guard == "slices")

    def test_a_model_without_slices_has_no_such_guard(self) -> None:
        assert "slices" not in self.watched(()).candidates["int8"].guards

    def test_a_failing_slice_pauses_and_is_named(self) -> None:
        guards = self.watched()
        for n in range(400):
            slices = 0b10 if n % 20 == 0 else 0b01
            guards.observe(
                Event(
                    Kind.REFERENCE, "int8", "teacher", epoch=1, flips=int(slices == 0b10), request_key=n, slices=slices
                )
            )
        found = self.of(guards)
        assert (found.verdict, found.action) == ("fail", "pause")
        assert "in de it disagrees with teacher on" in found.sentence
        assert "short" not in found.sentence
        assert found.statistic["slices"]["short"]["flips"] == 0
        assert not any(trip.guard == "slices" for trip in guards.trips())

    def test_errors_count_for_the_slice_they_befell(self) -> None:
        guards = self.watched()
        for n in range(120):
            guards.observe(
                Event(Kind.REQUEST, "int8", "teacher", cause=Cause.ERROR, epoch=1, batch_key=n + 1, slices=0b01)
            )
        assert "in short it caused" in self.of(guards).sentence

    def test_no_data_is_said(self) -> None:
        assert self.of(self.watched()).sentence == "int8 has no pair and no error in a declared slice yet"


async def test_the_gateway_records_the_slices_of_a_request(tmp_path: Path) -> None:
    gateway = InProcessGateway(tmp_path, {"candidate": ""}, slices=DECLARED, reference_percent=100)
    await gateway.publish({"candidate": 100})
    try:
        await gateway.ask("ham", slices=0b0001)
        await gateway.ask("a longer text")
        for _ in range(1_000_000):  # the pairs are written behind the answers; unit tests do not wait by time
            if len(gateway.records()) == 4:
                break
            await asyncio.sleep(0)
    finally:
        await gateway.plane.close()
    records = gateway.records()
    assert sorted(records[records["kind"] == Kind.REQUEST]["slices"].tolist()) == [0b0010, 0b0101]
    assert sorted(records[records["kind"] == Kind.REFERENCE]["slices"].tolist()) == [0b0010, 0b0101]

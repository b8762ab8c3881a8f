"""Golden rows: who is asked when, what is compared, and what a result means for whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from monitoring.beside import Beside, GoldenResult, golden_verdict
from monitoring.config import GoldenSettings, MonitorConfig, MonitorModel, MonitorVariant
from monitoring.golden import FIRST_S, Golden, read
from serving.clock import FakeClock

SPAM = [float(np.float32(0.1)), float(np.float32(0.9))]
HAM = [float(np.float32(0.8)), float(np.float32(0.2))]


def row(text: str, label: str, probabilities: list[float]) -> dict[str, Any]:
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]
    return {"inputs": inputs, "label": label, "probabilities": probabilities}


class Played:
    """A gateway that answers each text as told; version 2 (int8) may answer otherwise."""

    def __init__(self, folder: Path, golden: GoldenSettings) -> None:
        path = folder / "golden.jsonl"
        rows = [row("buy", "spam", SPAM), row("meet", "ham", HAM), row("odd", "ham", SPAM)]
        path.write_text("\n".join(map(json.dumps, rows)))
        variants = {name: MonitorVariant(at + 1, golden=str(path), same_isa=True) for at, name in enumerate(("a", "b"))}
        model = MonitorModel("a", "a", variants, labels=["ham", "spam"], golden=golden)
        config = MonitorConfig("test", "spool", str(folder), "word", "http://control", {"m": model})
        self.asked: list[str] = []
        self.answers: dict[str, dict[str, Any]] = {"1": {"buy": SPAM, "meet": HAM, "odd": SPAM}}
        self.answers["2"] = dict(self.answers["1"])
        self.live = {"a", "b"}
        self.clock, self.beside = FakeClock(), Beside()
        client = httpx.AsyncClient(transport=httpx.MockTransport(self._answer), base_url="http://gateway")
        self.golden = Golden(config, self.clock, client, self.beside, lambda _: self.live, pause_s=0)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        text = json.loads(request.content)["inputs"][0]["data"][0]
        found = self.answers[request.url.path.split("/")[5]].get(text)
        if found is None:
            return httpx.Response(503, json={"error": "no"})
        output = {"name": "probabilities", "datatype": "FP32", "shape": [1, 2], "data": found}
        return httpx.Response(200, json={"outputs": [output]})

    async def after(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.golden.step()


EVERY = GoldenSettings(every_s=600.0, floor=0.6)


async def test_every_live_variant_is_asked_by_its_version_on_a_schedule(tmp_path: Path) -> None:
    played = Played(tmp_path, EVERY)
    await played.after(1)
    assert played.asked == []
    await played.after(FIRST_S)
    assert played.asked == ["/v2/models/m/versions/1/infer"] * 3 + ["/v2/models/m/versions/2/infer"] * 3
    await played.after(300)
    assert len(played.asked) == 6
    await played.after(300)
    assert len(played.asked) == 12
    result = played.beside.golden["m", "b"]
    assert (result.answered, result.labelled, result.right, result.flips, result.equal) == (3, 3, 2, 0, 3)
    assert played.beside.golden_requests["m", "a", "ok"] == 6


async def test_rows_that_could_not_be_read_are_tried_again(tmp_path: Path) -> None:
    played = Played(tmp_path, EVERY)
    (tmp_path / "golden.jsonl").rename(tmp_path / "away")
    await played.after(FIRST_S)
    assert played.asked == []
    (tmp_path / "away").rename(tmp_path / "golden.jsonl")
    await played.after(600)
    assert set(played.beside.golden) == {("m", "a"), ("m", "b")}


async def test_what_answers_nobody_is_not_asked_and_its_old_result_goes(tmp_path: Path) -> None:
    played = Played(tmp_path, EVERY)
    await played.after(FIRST_S)
    played.live = {"a"}
    await played.after(600)
    assert set(played.beside.golden) == {("m", "a")}
    never = Played(tmp_path, GoldenSettings())
    await never.after(100_000)
    assert never.asked == []


async def test_another_class_than_when_it_was_built_pauses_a_candidate(tmp_path: Path) -> None:
    played = Played(tmp_path, EVERY)
    played.answers["2"]["meet"] = SPAM
    await played.after(FIRST_S)
    sound, changed = played.beside.verdicts("m", "a", 0)
    assert (sound.guard, sound.verdict, sound.action) == ("golden", "pass", "none")
    assert (changed.variant, changed.verdict, changed.action) == ("b", "fail", "pause")
    assert changed.sentence == (
        "b answered 3 of 3 golden rows, 1 of 3 right (33.3 %, under the floor of 60.0 %), "
        "1 of another class than when it was built (over the 2.0 % allowed), 2 of 3 equal to the bit"
    )


async def test_answers_that_do_not_come_are_no_pass(tmp_path: Path) -> None:
    played = Played(tmp_path, EVERY)
    played.answers["1"] = {"buy": SPAM}
    await played.after(FIRST_S)
    assert played.beside.verdicts("m", "a", 0)[0].verdict == "inconclusive"
    assert played.beside.golden_requests["m", "a", "error"] == 2


async def test_rows_from_elsewhere_are_held_to_the_floor_alone(tmp_path: Path) -> None:
    other = tmp_path / "mine.jsonl"
    other.write_text(json.dumps(row("buy", "ham", HAM)))
    played = Played(tmp_path, msgspec.structs.replace(EVERY, file=str(other)))
    await played.after(FIRST_S)
    result = played.beside.golden["m", "a"]
    assert (result.rows, result.right, result.stored) == (1, 0, 0)
    assert golden_verdict("a", result, "a").action == "alert"  # there is nothing to pause about the baseline


def test_on_another_processor_bits_are_not_spoken_of() -> None:
    result = GoldenResult(0, 9, 9, 0, 0, 9, 0, 4, same_isa=False, floor=0.5, flips_max=0.02)
    verdict = golden_verdict("b", result, "a")
    assert verdict.verdict == "pass"
    assert "bit" not in verdict.sentence


def test_without_a_floor_accuracy_is_told_and_not_judged() -> None:
    result = GoldenResult(0, 9, 9, 9, 3, 0, 0, 0, same_isa=True, floor=0.0, flips_max=0.02)
    verdict = golden_verdict("b", result, "a")
    assert (verdict.verdict, verdict.sentence) == ("pass", "b answered 9 of 9 golden rows, 3 of 9 right (33.3 %)")


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    path.write_text('{"inputs": []}\n{"label": 3}\n')
    with pytest.raises(ValueError, match=r"golden\.jsonl: line 2"):
        read(path)

"""When evidence goes on and when it starts anew: artifacts and limits that change."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from test_guard import feed, guards, model, of, pair, request, snapshot

from monitoring.detectors.latency import Latency
from monitoring.guard import ModelGuards
from serving.contract import Kind


def test_another_artifact_in_the_shadow_starts_anew_and_carries_its_own_pairs_into_traffic() -> None:
    watched, other = guards({}), {"int8": "m/int8:2"}
    watched.configure(snapshot({}, epoch=2, shadow={"int8": 2000}))
    feed(watched, request("teacher"), pair("int8", False, Kind.SHADOW, epoch=2), times=600)
    assert of(watched, "agreement").verdict == "pass"
    known = watched.candidates["int8"].detector(Latency).threshold_us
    again = ModelGuards("m", model())
    again.load(json.loads(json.dumps(watched.state())))
    again.configure(snapshot({}, epoch=3, shadow={"int8": 2000}, artifacts=other))
    assert of(again, "agreement").verdict == "no_data"
    assert again.candidates["int8"].detector(Latency).threshold_us == known < 7000  # which is the baseline's
    feed(again, pair("int8", True, Kind.SHADOW, epoch=2), pair("int8", False, Kind.SHADOW, epoch=3), times=10)
    again.labelled("int8", teacher_right=True, candidate_right=False, event=pair("int8", True), epoch=2)
    again.configure(snapshot({"int8": 500}, epoch=4, artifacts=other))
    found = of(again, "agreement").statistic
    assert (found["observations"], found["events"]) == (10, 0)
    assert of(again, "harm").verdict == "no_data"


@pytest.mark.parametrize("name", ["teacher", "broken"])
def test_another_artifact_to_compare_with_starts_anew(name: str) -> None:
    """Of the baseline, or of a teacher that is none, under the same name, while a candidate has traffic."""
    watched = ModelGuards("m", model())

    def configure(epoch: int, artifact: str) -> None:
        given = snapshot({"int8": 5000}, epoch, since={"int8": 1}, artifacts={name: artifact})
        table = msgspec.structs.replace(given.tables["m"], teacher=name)
        watched.configure(msgspec.structs.replace(given, tables={"m": table}))

    configure(1, "m/it:1")
    feed(watched, pair(name, True, answered=name), pair("int8", False, answered=name), request("int8"), times=600)
    feed(watched, request("teacher", total_us=900), times=600)
    assert of(watched, "agreement").verdict == "pass"
    configure(2, "m/it:2")
    assert {found.verdict for found in watched.verdicts()} == {"no_data"}
    assert (watched.floor, watched.candidates["int8"].detector(Latency).baseline.value) == (0.0, math.inf)
    late = pair("int8", True, answered=name, epoch=1)
    feed(watched, late, pair(name, True, answered=name, epoch=1), request("teacher", status=500, epoch=1), times=20)
    watched.labelled("int8", teacher_right=True, candidate_right=False, event=late, epoch=1)
    assert {found.verdict for found in watched.verdicts()} == {"no_data"}
    assert (watched.floor, watched.skipped_epochs) == (0.0, 61)
    feed(watched, pair("int8", False, answered=name, epoch=2), request("int8", epoch=2), times=5)
    assert of(watched, "agreement").statistic["observations"] == 5
    again = ModelGuards("m", model())
    again.load(json.loads(json.dumps(watched.state())))
    watched = again
    configure(3, "m/it:2")
    assert of(watched, "agreement").statistic["observations"] == 5
    configure(1, "m/it:2")  # of a store that was restored from a backup
    feed(watched, pair("int8", False, answered=name, epoch=1))
    assert of(watched, "agreement").statistic["observations"] == 6

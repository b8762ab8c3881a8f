"""When evidence goes on and when it starts anew: artifacts and limits that change."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from test_guard import feed, guards, model, of, pair, request, snapshot

from monitoring.config import HarmSettings, InvalidOutputSettings, MonitorModel, MonitorVariant, ReliabilityMap
from monitoring.detectors.latency import Latency
from monitoring.event import Event
from monitoring.evidence import Evidence
from monitoring.guard import ModelGuards
from serving.contract import Cause, Kind, Latch, Snapshot

SURE = ReliabilityMap((), (1000,), (0.9,), (0.9,), (0.9,), (0.1,))
CALIBRATED = msgspec.structs.replace(
    model(), variants=model().variants | {"int8": MonitorVariant(2, 0.005, reliability=SURE)}
)


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


def test_labels_and_pairs_of_the_shadow_count_whenever_they_arrive_and_live_ones_of_their_arming_only() -> None:
    evidence = Evidence("m", CALIBRATED)
    evidence.guards.configure(snapshot({}, epoch=2, shadow={"int8": 2000}))
    answer = {"cls": 0, "ref_cls": 0, "prob": 0.9, "ref_prob": 0.9}
    told = [pair("int8", False, Kind.SHADOW, epoch=2, request_key=key, **answer) for key in range(1, 502)]
    for event in told[:500]:
        evidence.take(event)
    labels = [Event(Kind.LABEL, "teacher", cls=0, request_key=event.request_key, wall_ns=10**18) for event in told]
    for label in labels[:100]:
        evidence.take(label)
    evidence.guards.configure(snapshot({"int8": 500}, epoch=3))
    again = Evidence("m", CALIBRATED)
    again.guards.load(json.loads(json.dumps(evidence.guards.state())))
    again.joiner.load(msgspec.msgpack.decode(msgspec.msgpack.encode(evidence.joiner.state()), strict=False))
    for event in [*labels[100:], told[500], pair("int8", True, epoch=2, request_key=999, **answer)]:
        again.take(event)
    assert of(again.guards, "agreement").statistic["observations"] == 501
    assert of(again.guards, "harm").statistic["observations"] == 501
    assert of(again.guards, "calibration").statistic["labelled"] == 501
    again.guards.labelled("int8", teacher_right=True, candidate_right=False, event=told[0], epoch=2)
    assert of(again.guards, "harm").statistic["observations"] == 501
    assert again.guards.skipped_epochs == 2
    again.guards.configure(snapshot({"int8": 500}, epoch=5, vetoes={"m/int8": Latch(1, 1)}))  # another attempt
    again.take(pair("int8", True, Kind.SHADOW, epoch=2, request_key=1000, **answer))
    assert of(again.guards, "agreement").verdict == "no_data"


def test_copies_from_before_the_first_table_are_not_of_a_candidate_that_has_traffic_by_it() -> None:
    watched = ModelGuards("m", model())
    watched.configure(snapshot({"int8": 500}, epoch=3))
    feed(watched, pair("int8", False, Kind.SHADOW, epoch=2))
    assert of(watched, "agreement").verdict == "no_data"


def restarted(watched: ModelGuards, given: MonitorModel) -> ModelGuards:
    """The monitor with another configuration, and the state and the routing that it had."""
    again = ModelGuards("m", given)
    again.load(json.loads(json.dumps(watched.state())))
    again.configure(snapshot({"int8": 500}))
    return again


def test_what_passed_a_loose_limit_is_not_passed_at_a_strict_one() -> None:
    watched = guards(harm=HarmSettings(0.10))
    for n in range(400):
        watched.labelled("int8", teacher_right=True, candidate_right=n % 18 != 0, event=pair("int8", False))
    feed(watched, pair("int8", False), times=400)
    assert of(watched, "harm").verdict == "pass"
    strict = restarted(watched, model(harm=HarmSettings(0.03)))
    assert of(strict, "harm").verdict == "no_data"
    assert of(strict, "agreement").verdict == "pass"  # which is held to the same
    assert of(restarted(watched, model(harm=HarmSettings(0.10))), "harm") == of(watched, "harm")


def test_what_failed_a_strict_limit_may_fail_once_more_at_a_loose_one() -> None:
    watched = guards(invalid_output=InvalidOutputSettings(3))
    feed(watched, request("int8", Cause.INVALID_OUTPUT, request_key=7), times=3)
    assert [trip.guard for trip in watched.trips()] == ["invalid_output"]
    loose = restarted(watched, model(invalid_output=InvalidOutputSettings(5)))
    assert (of(loose, "invalid_output").verdict, loose.trips()) == ("no_data", [])
    assert not loose.candidates["int8"].examples["invalid_output"]
    feed(loose, request("int8", Cause.INVALID_OUTPUT), times=4)
    assert loose.trips() == []
    feed(loose, request("int8", Cause.INVALID_OUTPUT))
    assert [trip.guard for trip in loose.trips()] == ["invalid_output"]


def test_another_slice_leaves_the_evidence_of_the_other_guards() -> None:
    sliced = msgspec.structs.replace(model(), slices=("short",))
    watched = ModelGuards("m", sliced)
    watched.configure(snapshot({"int8": 500}))
    feed(watched, pair("int8", False, slices=1), times=400)
    more = restarted(watched, msgspec.structs.replace(sliced, slices=("short", "long")))
    assert (of(more, "slices").verdict, of(more, "agreement").verdict) == ("no_data", "pass")


def test_the_baselines_own_alarm_is_not_that_of_another_threshold() -> None:
    def known(threshold: float) -> MonitorModel:
        variants = model().variants | {"teacher": MonitorVariant(1, energy_threshold=threshold)}
        return msgspec.structs.replace(model(), variants=variants)

    watched = ModelGuards("m", known(-2.0))
    watched.configure(snapshot({"int8": 500}))
    feed(watched, request("teacher", cls=0, energy=-1.0, wall_ns=10**18), times=60)
    assert of(watched, "ood", "teacher").verdict == "fail"
    again = restarted(watched, known(-0.5))
    assert not any(verdict.guard == "ood" for verdict in again.verdicts())
    feed(again, request("teacher", cls=0, energy=-1.0, wall_ns=10**18), times=60)
    found = of(again, "ood", "teacher")
    assert (found.verdict, found.statistic["events"]) == ("inconclusive", 0)


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


def test_a_variant_that_is_taken_out_takes_its_verdict_along() -> None:
    """Renamed or removed in the configuration after it failed: nobody could ever clear the alert."""
    watched = guards()
    feed(watched, request("int8", Cause.INVALID_OUTPUT), times=5)
    assert of(watched, "invalid_output").verdict == "fail"
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(watched.state()))
    table = snapshot({}, epoch=2).tables["m"]
    left = {name: entry for name, entry in table.variants.items() if name != "int8"}
    without = Snapshot(2, 1, {"m": msgspec.structs.replace(table, variants=left)})
    again = ModelGuards("m", model())
    again.load(stored)
    for each in (watched, again):
        each.configure(without)
        assert "int8" not in {verdict.variant for verdict in each.verdicts()}
        assert "int8" not in each.counts()
        each.configure(snapshot({"int8": 500}, epoch=3))
        assert of(each, "invalid_output").verdict == "no_data"

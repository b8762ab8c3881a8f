"""Calibration: the guard, what is shown of it, and the reference that a build leaves behind."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from monitoring.config import GuardSettings, MonitorModel, MonitorVariant, ReliabilityMap
from monitoring.detectors.calibration import Calibration, Expected
from monitoring.event import Event
from monitoring.evidence import Evidence
from monitoring.guard import Trip
from monitoring.guards.calibration import by_labels
from monitoring.reliability import KEPT, Diagram, ModelReliability
from monitoring.verdicts import Verdict
from serving.build import metrics
from serving.contract import BUCKETS, Kind, RouteTable, Snapshot, VariantEntry

SURE = [Expected(0.0, 0.0)] * 10
EDGES = [0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


def draws(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of a binary classifier, mostly high, and uniform numbers that decide what was right."""
    random = np.random.default_rng(seed)
    return 0.5 + 0.5 * random.beta(4.0, 0.7, size), random.random(size)


def sharpened(prob: np.ndarray, by: float) -> np.ndarray:
    """What temperature 1 / by makes of the probabilities of the likelier of two classes."""
    odds = np.log(np.clip(prob, 1e-9, 1 - 1e-9) / np.clip(1 - prob, 1e-9, 1)) * by
    return 1.0 / (1.0 + np.exp(-odds))


def reference(teacher: bool = True) -> ReliabilityMap:
    prob, chance = draws(99, 4000)
    made = metrics.reliability_map(prob, chance < prob, prob if teacher else None)
    return msgspec.convert(made, ReliabilityMap)


def unmapped(version: int, teacher: int) -> MonitorModel:
    """A model whose variant `v` has no map, as one of an older build: only versions tell its artifacts apart."""
    variants = {"t": MonitorVariant(teacher), "v": MonitorVariant(version)}
    return MonitorModel("t", "t", variants, labels=["a", "b"])


def watched(weight: int = 500, **guards: object) -> Evidence:
    config = MonitorModel(
        "teacher", "teacher",
        {"teacher": MonitorVariant(1), "int8": MonitorVariant(2, 0.01, reference())},
        guards=GuardSettings(**guards), labels=["ham", "spam"],
    )  # fmt: skip
    found = Evidence("m", config)
    entries = {name: VariantEntry(name, at, f"m/{name}:1") for at, name in enumerate(("teacher", "int8"), 1)}
    table = RouteTable("m", 1, "s", "teacher", "teacher", entries, {"int8": ((0, weight),)}, {"int8": 1}, {}, BUCKETS)
    found.guards.configure(Snapshot(1, 1, {"m": table}))
    return found


def of(evidence: Evidence) -> Verdict:
    return next(item for item in evidence.guards.verdicts() if item.guard == "calibration")


def pair(key: int, prob: float, by_teacher: float) -> Event:
    return Event(
        Kind.REFERENCE, "int8", "teacher", epoch=1, request_key=key, cls=1, ref_cls=1, prob=prob, ref_prob=by_teacher
    )


def answer_and_label(evidence: Evidence, key: int, prob: float, right: bool) -> None:
    evidence.take(Event(Kind.REQUEST, "int8", "int8", epoch=1, request_key=key, cls=1, prob=prob))
    evidence.take(Event(Kind.LABEL, "int8", "int8", epoch=1, request_key=key, cls=int(right), wall_ns=10**9))


class TestGuard:
    def test_a_variant_without_a_reference_has_no_such_guard(self) -> None:
        config = MonitorModel("teacher", "teacher", {"teacher": MonitorVariant(1), "int8": MonitorVariant(2)})
        assert "calibration" not in Evidence("m", config).guards.candidates["int8"].guards

    def test_as_sure_as_when_it_was_built_is_no_alarm(self) -> None:
        evidence = watched()
        prob, chance = draws(1, 2000)
        for key, (one, luck) in enumerate(zip(prob.tolist(), chance.tolist(), strict=True)):
            evidence.take(pair(2 * key, one, one))
            answer_and_label(evidence, 2 * key + 1, one, luck < one)
        found = of(evidence)
        assert (found.verdict, found.action) == ("inconclusive", "none")
        assert found.statistic["labelled"] == found.statistic["scored"] == 2000
        assert evidence.guards.trips() == []

    def test_over_confidence_by_the_teacher_pauses(self) -> None:
        evidence = watched()
        prob, _ = draws(2, 4000)
        for key, (claimed, truth) in enumerate(zip(sharpened(prob, 2.0).tolist(), prob.tolist(), strict=True)):
            evidence.take(pair(key, claimed, truth))
        found = of(evidence)
        assert (found.verdict, found.action) == ("fail", "pause")
        assert found.sentence.startswith("teacher gave ")
        assert "scored answers of which int8 was" in found.sentence
        assert "over the margin of 2.0 %" in found.sentence
        assert evidence.guards.trips() == []

    def test_over_confidence_by_labels_rolls_back(self) -> None:
        evidence = watched()
        prob, chance = draws(3, 6000)
        trips: list[Trip] = []
        for key, (claimed, truth, luck) in enumerate(
            zip(sharpened(prob, 2.0).tolist(), prob.tolist(), chance.tolist(), strict=True)
        ):
            answer_and_label(evidence, key, claimed, luck < truth)
            if trips := evidence.guards.trips():
                break
        assert [(trip.guard, trip.action) for trip in trips] == [("calibration", "rollback")]
        assert trips[0].sentence.startswith("int8 was right in ")

    def test_a_variant_grown_too_modest_is_found_as_well(self) -> None:
        guard = Calibration(EDGES, SURE, SURE, alpha=0.001)
        prob, _ = draws(4, 4000)
        for claimed, truth in zip(sharpened(prob, 0.4).tolist(), prob.tolist(), strict=True):
            guard.score(claimed, truth)
        assert guard.breached
        worst = guard.worst(by_labels=False)
        assert worst is not None
        assert not worst["over"]

    def test_at_the_edge_of_the_margin_alarms_stay_within_the_budget(self) -> None:
        """Every bin is over-confident by just the margin, looked at after every label; 120 runs at 5 %."""
        alarms = 0
        for run in range(120):
            guard, (prob, chance) = Calibration(EDGES, SURE, margin=0.02, alpha=0.05), draws(1000 + run, 200)
            for one, luck in zip(prob.tolist(), chance.tolist(), strict=True):
                guard.observe(one, right=luck < one - 0.02)
            alarms += guard.failed
        assert alarms <= 15  # more happens by chance once in a thousand times

    def test_an_uncertain_reference_widens_the_margin(self) -> None:
        exact, rough = (Calibration([], [Expected(0.0, off, off)], margin=0.02, alpha=0.001) for off in (0.0, 0.1))
        for n in range(1000):
            for guard in (exact, rough):
                guard.observe(0.95, right=n % 8 != 0)
        assert (exact.failed, rough.failed) == (True, False)

    @pytest.mark.parametrize("rows", [300, 1161])
    def test_a_reference_of_few_rows_is_off_by_more_than_allowed_no_oftener_than_the_budget(self, rows: int) -> None:
        """400 references of one calibrated variant: where it is off by more, a sound variant fails sooner or later."""
        random, true = np.random.default_rng(rows), np.sort(0.5 + 0.5 * np.random.default_rng(0).beta(2.0, 1.0, 5000))
        off = 0
        for _ in range(400):
            prob = random.choice(true, rows)
            made = metrics.reliability_map(prob, random.random(rows) < prob)
            known = msgspec.convert(made, ReliabilityMap)
            bins = np.searchsorted(known.edges, true, side="right")
            for bin_, (shift, below, above) in enumerate(by_labels(known)):
                sound = true[bins == bin_]
                lean = float(np.mean(sound - np.clip(sound + shift, 0.0, 1.0)))
                if not -below - 0.02 <= lean <= above + 0.02:
                    off += 1
                    break
        assert off <= 4  # of two standard errors: 80 and 45

    def test_labels_of_copies_count_and_those_of_testers_do_not(self) -> None:
        evidence = watched()
        shadow = msgspec.structs.replace(pair(1, 0.9, 0.9), kind=Kind.SHADOW)
        evidence.take(shadow)
        evidence.take(Event(Kind.LABEL, "int8", request_key=1, cls=1))
        evidence.take(Event(Kind.REQUEST, "int8", "int8", flags=0, epoch=1, request_key=2, cls=1, prob=0.9))
        evidence.take(Event(Kind.LABEL, "int8", request_key=2, cls=0))
        assert of(evidence).statistic["labelled"] == 1


class TestReports:
    def diagram(self, seed: int, by: float = 1.0, size: int = 4000) -> Diagram:
        diagram, (prob, chance) = Diagram(EDGES, 2), draws(seed, size)
        for claimed, truth, luck in zip(sharpened(prob, by).tolist(), prob.tolist(), chance.tolist(), strict=True):
            diagram.add(1, claimed, float(luck < truth))
        return diagram

    def test_a_perfect_model_shows_the_error_of_chance_and_no_more(self) -> None:
        report = self.diagram(5).report("v", True, ["ham", "spam"], None, 1.0)
        assert report is not None
        assert report.ece == pytest.approx(report.ece_if_perfect, abs=0.008)
        assert report.ece_debiased < 0.008
        assert report.ece_low <= report.ece_debiased <= report.ece_high
        assert report.temperature is None
        assert [row.label for row in report.classes] == ["spam"]

    def test_the_brier_score_is_the_sum_of_its_parts(self) -> None:
        report = self.diagram(6).report("v", True, [], None, 1.0)
        assert report is not None
        assert report.brier is not None
        parts = report.brier
        whole = parts.reliability - parts.resolution + parts.uncertainty + parts.rest
        assert whole == pytest.approx(parts.score, abs=1e-5)
        assert abs(parts.rest) < 0.01

    def test_the_temperature_that_was_taken_away_is_suggested(self) -> None:
        report = self.diagram(101, by=2.0).report("v", True, ["ham", "spam"], None, 0.75)
        assert report is not None
        assert report.temperature is not None
        assert report.temperature.low < 1.5 < report.temperature.high
        assert report.temperature.suggested == pytest.approx(1.5, rel=0.1)
        assert report.ece_low > 0.02

    def test_the_teacher_is_a_judge_of_its_own(self) -> None:
        config = MonitorModel("t", "t", {"int8": MonitorVariant(2, 0.01, reference())}, labels=["ham", "spam"])
        shown = ModelReliability(config)
        for prob in np.linspace(0.5, 1.0, 500).tolist():
            shown.score("int8", 1, prob, 0.9 * prob)
        (report,) = shown.reports()
        assert (report.reference, report.brier, report.temperature) == ("teacher", None, None)
        assert report.ece_debiased == pytest.approx(0.075, abs=0.02)
        assert all(row.outcome_low <= row.outcome <= row.outcome_high for row in report.bins)
        assert all(row.expected == pytest.approx(row.confidence, abs=0.01) for row in report.bins)

    def test_what_is_shown_is_of_the_latest_answers(self) -> None:
        diagram = Diagram([], 1)
        for _ in range(KEPT):
            diagram.add(0, 0.9, 0.0)
        for _ in range(3 * KEPT):
            diagram.add(0, 0.9, 1.0)
        report = diagram.report("v", True, [], None, 1.0)
        assert report is not None
        assert report.answers <= KEPT
        assert report.bins[0].outcome > 0.85

    def test_it_can_be_stored_and_is_forgotten_when_the_bins_change(self) -> None:
        first = MonitorModel("t", "t", {"v": MonitorVariant(1, None, reference())}, labels=["a", "b"])
        shown, again = ModelReliability(first), ModelReliability(first)
        for prob in np.linspace(0.5, 1.0, 50).tolist():
            shown.label("v", 1, prob, right=prob > 0.7)
        stored = json.loads(json.dumps(msgspec.to_builtins(shown.state())))
        again.load(stored)
        assert again.reports() == shown.reports()
        other = ModelReliability(MonitorModel("t", "t", {"v": MonitorVariant(1)}, labels=["a", "b"]))
        other.load(stored)
        assert other.reports() == []

    @pytest.mark.parametrize(
        ("version", "teacher", "kept"),
        [(1, 7, ["labels", "teacher"]), (2, 7, []), (1, 8, ["labels"])],
        ids=["the same", "another variant", "another teacher"],
    )
    def test_what_another_artifact_answered_or_judged_is_forgotten(
        self, version: int, teacher: int, kept: list[str]
    ) -> None:
        shown, again = ModelReliability(unmapped(1, 7)), ModelReliability(unmapped(version, teacher))
        for prob in np.linspace(0.5, 1.0, 50).tolist():
            shown.label("v", 1, prob, right=prob > 0.7)
            shown.score("v", 1, prob, 0.9 * prob)
        again.load(json.loads(json.dumps(shown.state())))
        assert again.reports() == [report for report in shown.reports() if report.reference in kept]
        assert [report.reference for report in again.reports()] == kept

    def test_a_state_that_does_not_say_of_which_artifacts_it_is_begins_anew(self) -> None:
        shown, again = ModelReliability(unmapped(1, 7)), ModelReliability(unmapped(1, 7))
        shown.label("v", 1, 0.9, right=True)
        stored = json.loads(json.dumps(shown.state()))
        for _, _, diagram in stored:
            diagram.pop("versions", None)
        again.load(stored)
        assert again.reports() == []

    def test_odd_numbers_are_no_answers(self) -> None:
        diagram = Diagram(EDGES, 2)
        diagram.add(1, float("nan"), 1.0)
        diagram.add(-1, 0.9, 1.0)
        assert diagram.report("v", True, [], None, 1.0) is None


class TestReference:
    def test_bins_are_of_equal_mass_and_say_what_confidence_was_worth(self) -> None:
        found = reference()
        assert len(found.rows) == 10
        assert max(found.rows) - min(found.rows) <= 40
        assert found.teacher == found.confidence
        assert found.frequency[-1] > 0.97

    def test_rows_that_are_all_as_sure_make_fewer_bins(self) -> None:
        confidence = np.array([1.0] * 90 + [0.6] * 10)
        made = metrics.reliability_map(confidence, confidence > 0.7)
        found = msgspec.convert(made, ReliabilityMap)
        assert (found.edges, found.rows, found.frequency) == ((0.96,), (10, 90), (0.0, 1.0))
        same = msgspec.convert(metrics.reliability_map(np.ones(5), np.ones(5, bool)), ReliabilityMap)
        assert (same.edges, same.rows) == ((), (5,))

    @pytest.mark.parametrize("broken", [{"edges": [0.9, 0.5, 0.6]}, {"edges": []}, {"frequency": [0.1]}])
    def test_a_map_whose_parts_do_not_fit_is_refused(self, broken: dict[str, list[float]]) -> None:
        whole = msgspec.to_builtins(
            msgspec.convert(metrics.reliability_map(np.linspace(0.5, 1, 40), np.ones(40, bool), bins=4), ReliabilityMap)
        )
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({**whole, **broken}, ReliabilityMap)

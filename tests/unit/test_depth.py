"""How far answers are apart: the divergences, what a record holds of them, and sequences that may always be read."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from monitoring.depth import KL_MOST, Depth
from monitoring.event import Event
from monitoring.intervals import MeanSequence
from serving.contract import Kind
from serving.packing import pack_divergence, pack_overlap, unpack_divergence, unpack_overlap
from serving.runtimes.answers import divergence, in_common


class TestDivergence:
    def apart(self, teacher: list[float], other: list[float]) -> tuple[float, float]:
        found = divergence(np.array(teacher), np.array(other))
        assert found is not None
        return found

    def test_known_values(self) -> None:
        """Two opposite certainties are ln 2 apart in Jensen-Shannon; KL of a coin and a biased one by hand."""
        js, kl = self.apart([1.0, 0.0], [0.0, 1.0])
        assert js == pytest.approx(math.log(2), abs=1e-6)
        assert 20 < kl < 21  # finite: 1e-9 stands for nothing
        js, kl = self.apart([0.5, 0.5], [0.9, 0.1])
        assert kl == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), abs=1e-6)
        assert 0 < js < kl

    def test_the_same_answer_is_not_apart(self) -> None:
        assert self.apart([0.7, 0.2, 0.1], [0.7, 0.2, 0.1]) == pytest.approx((0.0, 0.0), abs=1e-9)

    def test_beyond_the_leading_classes_only_their_sum_counts(self) -> None:
        head = [0.4, 0.2, 0.15, 0.1, 0.06]
        assert self.apart([*head, 0.05, 0.04], [*head, 0.02, 0.07]) == pytest.approx((0.0, 0.0), abs=1e-9)
        assert self.apart([*head, 0.05, 0.04], [*head[::-1], 0.05, 0.04])[1] > 0.1

    def test_other_classes_cannot_be_compared(self) -> None:
        assert divergence(np.array([0.5, 0.5]), np.array([0.2, 0.3, 0.5])) is None
        assert divergence(np.empty(0), np.empty(0)) is None

    @pytest.mark.parametrize("pair", [(0.0, 0.0), (0.25, 1.5), (0.6931, 20.0)])
    def test_a_record_holds_both(self, pair: tuple[float, float]) -> None:
        packed = pack_divergence(*pair)
        assert 0 < packed < 1 << 64
        assert unpack_divergence(packed) == pytest.approx(pair, rel=1e-6)
        assert unpack_divergence(0) is None


class TestOverlap:
    def test_of_the_likeliest_classes_those_that_both_have(self) -> None:
        teacher = np.array([0.4, 0.3, 0.2, 0.05, 0.03, 0.02])
        assert in_common(teacher, teacher) == {2: 2, 3: 3, 5: 5}
        assert in_common(teacher, teacher[::-1]) == {2: 0, 3: 0, 5: 4}
        assert in_common(teacher, np.array([0.3, 0.2, 0.4, 0.05, 0.03, 0.02])) == {2: 1, 3: 3, 5: 5}

    def test_as_many_as_there_are_say_nothing(self) -> None:
        assert in_common(np.array([0.5, 0.5]), np.array([0.9, 0.1])) == {}
        assert in_common(np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7])) == {2: 1}
        assert in_common(np.array([0.5, 0.5]), np.array([0.5, 0.3, 0.2])) == {}

    @pytest.mark.parametrize("common", [{}, {2: 0}, {2: 2, 3: 1}, {2: 1, 3: 3, 5: 5}])
    def test_a_record_holds_it(self, common: dict[int, int]) -> None:
        assert 0 <= pack_overlap(common) < 1 << 16
        assert unpack_overlap(pack_overlap(common)) == common


class TestSequence:
    def test_it_holds_the_mean_at_every_look(self) -> None:
        """200 runs of 500 looks at 5 %: more than 20 misses happen by chance once in a thousand times."""
        missed = 0
        for run in range(200):
            sequence = MeanSequence()
            for value in (np.random.default_rng(run).random(500) < 0.1).tolist():
                sequence.add(float(value))
                low, high = sequence.interval()
                if not low <= 0.1 <= high:
                    missed += 1
                    break
        assert missed <= 20

    def test_it_narrows_around_the_mean(self) -> None:
        sequence = MeanSequence()
        for value in (np.random.default_rng(1).random(20_000) < 0.03).tolist():
            sequence.add(float(value))
        low, high = sequence.interval()
        assert low < 0.03 < high
        assert high - low < 0.02

    def test_rarely_scored_answers_stand_for_more(self) -> None:
        """Half of the observations stand for ten answers each, the other half for one."""
        sequence, random = MeanSequence(), np.random.default_rng(2)
        for n in range(20_000):
            rare = n % 2 == 0
            sequence.add(float(random.random() < (0.5 if rare else 0.1)), 0.1 if rare else 1.0)
        assert sequence.mean == pytest.approx((10 * 0.5 + 0.1) / 11, abs=0.02)

    def test_nothing_is_known_without_observations(self) -> None:
        sequence = MeanSequence()
        sequence.add(float("nan"))
        assert sequence.interval() == (0.0, 1.0)
        assert math.isnan(sequence.mean)

    def test_it_can_be_stored(self) -> None:
        whole, first, second = MeanSequence(), MeanSequence(), MeanSequence()
        for n in range(60):
            for sequence in (whole, first if n < 30 else second):
                sequence.add(float(n % 3 == 0), 0.5)
            if n == 29:
                second.load(json.loads(json.dumps(first.state())))
        assert second.state() == whole.state()


def test_each_measure_has_its_own_unit() -> None:
    depth = Depth()
    assert depth.found("js") is None
    for n in range(50):
        depth.add(Event(Kind.REFERENCE, "int8", "teacher", flips=int(n % 5 == 0), extra=pack_divergence(0.1, 30.0)))
    agreement, js, kl = (depth.found(name) for name in ("agreement", "js", "kl"))
    assert agreement is not None
    assert js is not None
    assert kl is not None
    assert agreement[1] < 0.8 < agreement[2]
    assert js[0] == pytest.approx(0.1, rel=1e-6)
    assert js[2] <= math.log(2)
    assert kl[0] == pytest.approx(KL_MOST)


def test_top_k_agreement_is_shown_where_there_are_as_many_classes() -> None:
    depth = Depth()
    for n in range(200):
        depth.add(Event(Kind.REFERENCE, "int8", "teacher", overlap=pack_overlap({2: 2 if n % 10 else 1, 3: 3})))
    shown = depth.top_k()
    assert shown["top_2"] == pytest.approx(0.95, abs=0.01)
    assert shown["top_2_lower"] < 0.95 < shown["top_2_upper"]
    assert shown["top_3"] == 1.0
    assert not any(name.startswith("top_5") for name in shown)

"""Detectors: what each finds and when, what none may ever do, and how often they cry wolf."""

from __future__ import annotations

import doctest
import importlib
import json
import math
import pkgutil
from collections.abc import Callable

import numpy as np
import pytest

from monitoring import detectors
from monitoring.detectors.agreement import Agreement
from monitoring.detectors.base import Detector
from monitoring.detectors.betting import log_evidence_path, log_gain_mirrored
from monitoring.detectors.calibration import Calibration, Expected
from monitoring.detectors.embedding import Embedding
from monitoring.detectors.errors import Errors
from monitoring.detectors.harm import Harm
from monitoring.detectors.interference import Interference
from monitoring.detectors.invalid_output import InvalidOutput
from monitoring.detectors.kpi import Kpi, KpiTarget
from monitoring.detectors.latency import Latency
from monitoring.detectors.ood import Ood
from monitoring.detectors.saturation import Saturation
from monitoring.detectors.slices import Slices
from monitoring.detectors.srm import Srm

ALPHA = 0.002
MODULES = sorted(found.name for found in pkgutil.iter_modules(detectors.__path__))

Feed = Callable[[Detector, float, float], None]


def _agreement(detector: Detector, a: float, b: float) -> None:
    assert isinstance(detector, Agreement)
    detector.observe(int(a * 20), rows=int(b * 20))


def _harm(detector: Detector, a: float, b: float) -> None:
    assert isinstance(detector, Harm)
    detector.observe(a < 0.7, b < 0.5)


def _invalid(detector: Detector, a: float, b: float) -> None:
    assert isinstance(detector, InvalidOutput)
    detector.observe(a < 0.1, b < 0.5)


def _errors(detector: Detector, a: float, b: float) -> None:
    assert isinstance(detector, Errors)
    detector.observe(a < 0.5, b < 0.3, share=a, batch_key=int(b * 50))


def _latency(detector: Detector, a: float, b: float) -> None:
    assert isinstance(detector, Latency)
    detector.observe(a < 0.5, b * 1e5, share=0.5, batch_key=0, at_ns=int(detector.candidate_requests * 1e8))


def _calibration(detector: Detector, a: float, b: float) -> None:
    assert isinstance(detector, Calibration)
    detector.observe(a, right=b < 0.6)
    detector.score(b, by_teacher=a)


def _srm(detector: Detector, a: float, b: float) -> None:
    assert isinstance(detector, Srm)
    detector.observe(b < 0.5, unit=int(abs(a) * 1e6) << 32 | int(abs(b) * 1e5), share=a)


def _interference(detector: Detector, a: float, b: float) -> None:
    assert isinstance(detector, Interference)
    if detector.reference_us == 0:
        for n in range(512):
            detector.learn(2e4, n)
    detector.observe(b * 1e5, at_ns=int(detector.observations * 2e9 + a * 1e9))


def _kpi(detector: Detector, a: float, b: float) -> None:
    assert isinstance(detector, Kpi)
    detector.observe("conversion", a < 0.5, b, unit=int(abs(a) * 1e6) << 32 | int(abs(b) * 1e5))


def _saturation(detector: Detector, a: float, b: float) -> None:
    assert isinstance(detector, Saturation)
    detector.observe(a / 10, worst=b)


def _ood(detector: Detector, a: float, b: float) -> None:
    assert isinstance(detector, Ood)
    detector.observe(a - b)


def _slices(detector: Detector, a: float, b: float) -> None:
    assert isinstance(detector, Slices)
    detector.pair(int(abs(a) * 7) & 7, flips=int(b < 0.3))
    detector.request(int(abs(b) * 7) & 7, a < 0.5, b < 0.3, share=0.4, batch_key=int(b * 50))


DETECTORS: dict[str, tuple[Callable[[], Detector], Feed]] = {
    "agreement": (lambda: Agreement(0.05, 0.15), _agreement),
    "harm": (lambda: Harm(0.03), _harm),
    "invalid_output": (lambda: InvalidOutput(3), _invalid),
    "errors": (lambda: Errors(1.25), _errors),
    "latency": (lambda: Latency(0.99), _latency),
    "slices": (lambda: Slices(["short", "de", "tenant"]), _slices),
    "saturation": (Saturation, _saturation),
    "ood": (lambda: Ood(0.5), _ood),
    "embedding": (Embedding, _ood),
    "calibration": (lambda: Calibration([0.5, 0.8], [Expected(0.0, 0.01)] * 3, [Expected(0.0, 0.0)] * 3), _calibration),
    "srm": (Srm, _srm),
    "interference": (Interference, _interference),
    "kpi": (lambda: Kpi([KpiTarget("conversion")]), _kpi),
}


@pytest.fixture(params=sorted(DETECTORS))
def case(request: pytest.FixtureRequest) -> tuple[Callable[[], Detector], Feed]:
    return DETECTORS[request.param]


def _kinds(kind: type[Detector] = Detector) -> set[str]:
    below = {name for one in kind.__subclasses__() for name in _kinds(one)}
    return below | ({kind.name} if kind.name else set())


def test_every_detector_is_held_to_the_conformance_tests() -> None:
    for module in MODULES:
        importlib.import_module(f"monitoring.detectors.{module}")
    assert _kinds() == set(DETECTORS)


class TestConformance:
    """What holds for every detector."""

    def test_no_data_is_no_alarm_and_no_pass(self, case: tuple[Callable[[], Detector], Feed]) -> None:
        detector = case[0]()
        detector.settle()
        assert detector.no_data
        assert not detector.failed
        assert not detector.passed
        assert detector.log_evidence == pytest.approx(0.0, abs=1e-12)
        assert detector.log_evidence < detector.log_threshold

    def test_finite_on_extreme_input(self, case: tuple[Callable[[], Detector], Feed]) -> None:
        detector, feed = case[0](), case[1]
        for a, b in [(0, 0), (1, 1), (0, 1), (1, 0), (1e9, 1e9), (-1e9, -1e9), (0.5, 1e9)] * 500:
            feed(detector, a, b)
        detector.settle()
        for value in (detector.log_evidence, detector.log_threshold, detector.log_pass_evidence):
            assert math.isfinite(value)

    def test_a_reset_detector_is_as_new(self, case: tuple[Callable[[], Detector], Feed]) -> None:
        detector, fresh, feed = case[0](), case[0](), case[1]
        for n in range(2000):
            feed(detector, n % 10 / 10, n % 7 / 7)
        detector.reset()
        assert detector.state() == fresh.state()

    def test_a_stored_detector_goes_on_as_if_never_stopped(self, case: tuple[Callable[[], Detector], Feed]) -> None:
        rng = np.random.default_rng(7)
        draws = rng.random((3000, 2)).tolist()
        whole, feed = case[0](), case[1]
        for a, b in draws:
            feed(whole, a, b)
        stopped = case[0]()
        for cut in (0, 999, 1700, 3000):
            resumed = case[0]()
            resumed.load(json.loads(json.dumps(stopped.state())))
            stopped = resumed
            start = {999: 0, 1700: 999, 3000: 1700}.get(cut, 0)
            for a, b in draws[start:cut]:
                feed(stopped, a, b)
        assert stopped.state() == whole.state()

    def test_how_often_it_is_looked_at_changes_nothing(self, case: tuple[Callable[[], Detector], Feed]) -> None:
        """Read after every observation or once at the end: the same counts and the same evidence."""
        watched, left, feed = case[0](), case[0](), case[1]
        for a, b in np.random.default_rng(8).random((400, 2)).tolist():
            for detector in (watched, left):
                feed(detector, a, b)
            watched.settle()
        left.settle()
        assert (watched.observations, watched.events) == (left.observations, left.events)
        for one, other in (
            (watched.log_evidence, left.log_evidence),
            (watched.log_pass_evidence, left.log_pass_evidence),
            (watched.log_breach_evidence, left.log_breach_evidence),
        ):
            assert one == pytest.approx(other, abs=1e-9)

    def test_records_of_one_moment_may_come_in_any_order(self, case: tuple[Callable[[], Detector], Feed]) -> None:
        """Which of two comes first is chance. It may tell whose a repeated user is, and no more."""
        one, other, feed = case[0](), case[0](), case[1]
        draws = np.random.default_rng(9).random((300, 2, 2)).tolist()
        for first, second in draws:
            for detector, order in ((one, (first, second)), (other, (second, first))):
                for a, b in order:
                    feed(detector, a, b)
        for detector in (one, other):
            detector.settle()
        assert (one.failed, one.passed, one.breached) == (other.failed, other.passed, other.breached)
        assert one.log_evidence == pytest.approx(other.log_evidence, abs=0.2)
        assert one.log_pass_evidence == pytest.approx(other.log_pass_evidence, abs=0.2)

    def test_a_failed_detector_stays_failed_and_reports_once(self, case: tuple[Callable[[], Detector], Feed]) -> None:
        detector = case[0]()
        detector.failed = True
        before = detector.failed
        for n in range(200):
            case[1](detector, n % 10 / 10, n % 7 / 7)
        assert detector.failed is before

    def test_the_docstring_says_what_it_assumes_and_where_it_is_from(
        self, case: tuple[Callable[[], Detector], Feed]
    ) -> None:
        text = type(case[0]()).__doc__ or ""
        for word in ("Assumption", "Observation", "Formula", ">>>"):
            assert word in text


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_no_number_leaves_real_valued_detectors_finite(value: float) -> None:
    sure = [Expected(0.0, 0.0)] * 2
    saturation, ood, calibration, latency = Saturation(), Ood(0.5), Calibration([0.8], sure, sure), Latency(0.99)
    interference, kpi = Interference(), Kpi([KpiTarget("conversion")])
    for number in range(50):
        saturation.observe(value, worst=value)
        ood.observe(value)
        calibration.observe(value, True)
        calibration.score(0.9, value)
        latency.observe(number % 2 == 0, value, share=0.5, batch_key=0, at_ns=number * 10**8)
        kpi.observe("conversion", number % 2 == 0, value, unit=number + 1)
        interference.learn(value, number * 10**9)
    for detector in (saturation, ood, calibration, latency, interference, kpi):
        detector.settle()
        for evidence in (detector.log_evidence, detector.log_pass_evidence, detector.log_breach_evidence):
            assert math.isfinite(evidence), detector.name


class TestDetectionIndex:
    """Seeded streams, and the observation at which each detector speaks."""

    def test_gross_disagreement(self) -> None:
        flips = np.random.default_rng(1).random(1000) < 0.35
        guard = Agreement(0.055, 0.165, alpha=ALPHA)
        assert next(n for n, flip in enumerate(flips, 1) if guard.observe(int(flip))) == 94
        assert guard.breached

    def test_slight_disagreement_breaches_the_limit_only(self) -> None:
        flips = np.random.default_rng(2).random(3000) < 0.09
        guard = Agreement(0.055, 0.165, alpha=ALPHA)
        breached = next(n for n, flip in enumerate(flips, 1) if guard.observe(int(flip)) or guard.breached)
        assert breached == 1623
        assert not guard.failed

    def test_errors_of_a_candidate_at_five_percent(self) -> None:
        rng = np.random.default_rng(3)
        guard = Errors(1.25, alpha=ALPHA)
        events = 0
        for arm, failure in zip(rng.random(100_000) < 0.05, rng.random(100_000), strict=True):
            failed = failure < (0.2 if arm else 0.001)
            events += failed
            if guard.observe(bool(arm), bool(failed), share=0.05):
                break
        assert events == 4

    def test_a_candidate_twice_as_slow(self) -> None:
        rng = np.random.default_rng(4)
        guard = Latency(0.99, margin=0.25, margin_ms=1.0, alpha=ALPHA)
        for n, (arm, value) in enumerate(zip(rng.random(100_000) < 0.2, rng.lognormal(8, 0.3, 100_000), strict=True)):
            if guard.observe(bool(arm), value * (2.2 if arm else 1), share=0.2, at_ns=n * 10_000_000):
                assert n == 3404
                return
        pytest.fail("never found")

    def test_harm(self) -> None:
        wrong = np.random.default_rng(5).random(1000) < 0.12
        guard = Harm(0.03, alpha=ALPHA)
        assert next(n for n, harmful in enumerate(wrong, 1) if guard.observe(True, not harmful)) == 32

    def test_invalid_outputs_are_counted_where_the_baseline_is_valid(self) -> None:
        guard = InvalidOutput(3)
        assert not any(guard.observe(True, baseline_valid=False) for _ in range(100))
        assert [guard.observe(True, baseline_valid=True) for _ in range(4)] == [False, False, True, False]


class TestFalseAlarms:
    """Under the null, looked at after every observation, alarms stay within their budget."""

    RUNS = 400
    #: 400 runs at 5 %: more than 33 alarms happen by chance once in a thousand times.
    BOUND = 33

    @pytest.mark.parametrize(("limit", "length"), [(0.05, 3000), (0.165, 1000), (0.5, 500), (0.001, 5000)])
    def test_at_the_edge_of_the_null(self, limit: float, length: int) -> None:
        draws = np.random.default_rng(11).random((self.RUNS, length)) < limit
        paths = log_evidence_path(draws, limit)
        assert (paths.max(axis=1) >= math.log(1 / 0.05)).sum() <= self.BOUND

    def test_a_race_between_equals(self) -> None:
        """A/A at 20 %: error events fall to the candidate with its share of the traffic."""
        draws = np.random.default_rng(12).random((self.RUNS, 1500)) < 0.2
        odds = 0.2 * 1.25 / (0.2 * 1.25 + 0.8)
        paths = log_evidence_path(draws, odds)
        assert (paths.max(axis=1) >= math.log(1 / 0.05)).sum() <= self.BOUND

    def test_passing_at_the_limit_is_rare(self) -> None:
        draws = np.random.default_rng(13).random((self.RUNS, 1000)) < 0.05
        logs = np.cumsum(log_gain_mirrored(draws, np.full(draws.shape, 0.05)), axis=1)
        paths = np.log(np.mean(np.exp(logs), axis=-1))
        assert (paths.max(axis=1) >= math.log(1 / 0.05)).sum() <= self.BOUND

    def test_whole_detectors_on_equal_arms(self) -> None:
        """Batches of eight requests of the baseline and one of the candidate, failing as wholes."""
        alarms = 0
        for run in range(40):
            rng = np.random.default_rng(run)
            errors, latency = Errors(1.25, alpha=0.05), Latency(0.99, alpha=0.05)
            for batch in range(1, 700):
                arm = bool(rng.random() < 0.30)
                failed, value = bool(rng.random() < 0.05), float(rng.lognormal(8, 0.5))
                for _ in range(1 if arm else 8):
                    errors.observe(arm, failed, 0.05, batch)
                    latency.observe(arm, value, 0.05, batch, at_ns=batch * 20_000_000)
            alarms += errors.failed + latency.failed
        assert alarms <= 8

    def test_stalls_of_single_workers_are_no_alarm(self) -> None:
        """A/A at 10 %, 200 requests/s: each arm's worker stalls for 0.3 s once in 20 s, and then has a queue."""
        alarms = races = 0
        when = np.arange(36_000) / 200
        for run in range(10):
            rng, guard, race = np.random.default_rng(run), Latency(0.99, alpha=0.05), False
            arms, values = rng.random(36_000) < 0.1, rng.lognormal(8, 0.2, 36_000)
            for arm in (False, True):
                for stall in rng.random(9) * 180:
                    left = np.where((when >= stall) & (arms == arm), stall + 0.3 - when, 0.0)
                    values += np.maximum(left, 0.0) * 1e6
            for n, (arm, value) in enumerate(zip(arms.tolist(), values.tolist(), strict=True)):
                if guard.observe(arm, value, 0.1, at_ns=n * 5_000_000):
                    alarms += 1
                race |= value > 100_000 and guard._against.log_evidence >= guard.log_threshold
            races += race
        assert alarms <= 2
        assert races > alarms  # what the race alone would have said

    def test_a_slow_start_is_no_alarm(self) -> None:
        """The candidate's first three seconds are slow, then it is as the baseline."""
        guard = Latency(0.99, alpha=ALPHA)
        rng = np.random.default_rng(8)
        for n, value in enumerate(rng.lognormal(8, 0.2, 2000).tolist()):
            guard.observe(False, value, 0.0, at_ns=n * 5_000_000)
        for n, (arm, value) in enumerate(
            zip((rng.random(40_000) < 0.1).tolist(), rng.lognormal(8, 0.2, 40_000).tolist(), strict=True), 2000
        ):
            slow = arm and n < 2000 + 600
            assert not guard.observe(arm, value + 1e6 * slow, 0.1, at_ns=n * 5_000_000)
        assert guard.candidate_slow > 50

    def test_the_mixture_is_a_mean_of_products(self) -> None:
        """Over every outcome of five fair coins the mean evidence is exactly 1."""
        outcomes = [[(n >> k) & 1 for k in range(5)] for n in range(32)]
        assert np.exp(log_evidence_path(outcomes, 0.5)[:, -1]).mean() == pytest.approx(1.0)


class TestPower:
    def test_a_broken_candidate_is_found_within_ten_events(self) -> None:
        guard = Errors(1.25, alpha=0.0005)
        assert sum(1 for _ in range(10) if not guard.failed and not guard.observe(True, True, share=0.05)) < 10
        assert guard.failed

    def test_alone_it_is_held_to_its_own_rate(self) -> None:
        guard = Errors(1.25, alpha=ALPHA)
        rng = np.random.default_rng(6)
        assert any(guard.observe(True, bool(failed), share=1.0) for failed in rng.random(500) < 0.5)
        healthy = Errors(1.25, alpha=ALPHA)
        assert not any(healthy.observe(True, bool(failed), share=1.0) for failed in rng.random(20_000) < 0.02)

    def test_clean_requests_pass_when_they_show_the_budget(self) -> None:
        guard = Errors(1.25, budget=0.01)
        for _ in range(150):
            guard.observe(True, False, share=0.05)
        guard.settle()
        assert not guard.passed
        for _ in range(850):
            guard.observe(True, False, share=0.05)
        guard.settle()
        assert guard.passed

    def test_latency_concludes_nothing_without_a_baseline(self) -> None:
        guard = Latency()
        for _ in range(5000):
            guard.observe(True, 1e9, share=1.0)
        assert guard.no_data
        assert not guard.failed

    @pytest.mark.parametrize("rps", [20, 2000])
    def test_a_slow_candidate_is_found_within_ten_seconds_at_any_rate(self, rps: int) -> None:
        guard, rng = Latency(0.99, alpha=ALPHA), np.random.default_rng(9)
        for value in rng.lognormal(8, 0.3, 2000).tolist():
            guard.learn(value)
        for n, (arm, value) in enumerate(
            zip((rng.random(10 * rps) < 0.3).tolist(), rng.lognormal(8, 0.3, 10 * rps).tolist(), strict=True)
        ):
            guard.observe(arm, value * (10 if arm else 1), 0.3, at_ns=n * 1_000_000_000 // rps)
        assert guard.failed

    def test_a_rearmed_detector_still_knows_the_baseline(self) -> None:
        guard = Latency(0.99)
        for n in range(1024):
            guard.learn(1000 + n % 90)
        threshold = guard.threshold_us
        assert threshold < 7000
        for n in range(20):
            guard.observe(True, 1e6, 0.5, at_ns=n * 10**9)
            guard.observe(False, 1000, 0.5, at_ns=n * 10**9)
        assert guard.failed
        guard.rearm()
        assert (guard.failed, guard.no_data, guard.threshold_us) == (False, True, threshold)

    def test_whole_batches_that_fail_do_not_pass_as_few_errors(self) -> None:
        """1 % of the requests fail, in batches of 16, with a budget of 0.5 %."""
        guard = Errors(1.25, budget=0.005)
        for batch in range(1, 2001):
            for _ in range(16):
                guard.observe(True, batch % 100 == 1, share=0.05, batch_key=batch)
        guard.settle()
        assert not guard.passed

    def test_a_stall_that_fails_all_in_flight_is_one_error_of_a_pass(self) -> None:
        """Two stalls with 40 time-outs each among 12,000 requests at a budget of 0.1 %; and the same, scattered."""
        stalled, scattered = Errors(1.25, budget=0.001), Errors(1.25, budget=0.001)
        for n in range(12_000):
            at_ns = n * 25_000_000
            stall = n % 6000 >= 5960
            stalled.observe(True, stall, share=0.5, waited=stall, at_ns=at_ns if not stall else (n // 6000) * 10**12)
            scattered.observe(True, n % 150 == 0, share=0.5, waited=n % 150 == 0, at_ns=at_ns)
        for guard, passes in ((stalled, True), (scattered, False)):
            guard.settle()
            assert (guard.candidate_errors, guard.passed) == (80, passes)

    def test_time_outs_between_good_answers_are_no_stall(self) -> None:
        """5 % of 1,000 requests a second time out, evenly, with a budget of 1 %."""
        guard = Errors(1.25, budget=0.01)
        for n in range(20_000):
            late = n % 20 == 0
            guard.observe(True, late, share=0.95, batch_key=n + 1, waited=late, at_ns=n * 1_000_000)
        guard.settle()
        assert not guard.passed

    def test_a_pass_is_held_to_the_least_share(self) -> None:
        """A candidate with batches of one causes 30 % of the slow events with 20 % of the traffic."""
        guard = Latency(0.99)
        for n in range(1024):
            guard.learn(1000 + n % 90)
        rng = np.random.default_rng(10)
        for batch, arm in enumerate((rng.random(4000) < 0.3).tolist(), 1):
            for n in range(1 if arm else 8):
                guard.observe(arm, 1e6 if n == 0 else 1000, 0.2, batch)
        assert guard.race.share(0.2) > 0.5
        assert not guard.passed

    def test_a_batch_of_invalid_outputs_is_one(self) -> None:
        guard = InvalidOutput(3)
        for batch in (1, 2):
            assert not any(guard.observe(True, baseline_valid=True, batch_key=batch) for _ in range(16))
        assert guard.observe(True, baseline_valid=True, batch_key=3)

    def test_a_failed_batch_is_one_event(self) -> None:
        guard = Errors(1.25)
        for _ in range(16):
            guard.observe(True, True, share=0.05, batch_key=9)
        assert (guard.events, guard.candidate_errors) == (1, 16)
        assert not guard.failed


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_the_docstrings_hold(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"monitoring.detectors.{module}"))
    assert result.attempted > 0
    assert result.failed == 0

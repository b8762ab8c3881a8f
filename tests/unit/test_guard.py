"""The guards of a model: what counts, against whom, when it trips and what it says."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from monitoring.config import AgreementSettings, GuardSettings, MonitorModel, MonitorVariant, SloTarget
from monitoring.detectors.agreement import Agreement
from monitoring.detectors.errors import Errors
from monitoring.detectors.latency import Latency
from monitoring.event import Event, is_error
from monitoring.guard import ModelGuards
from monitoring.guards.agreement import AgreementGuard, agreement_limit, gross_limit
from monitoring.guards.base import Names
from monitoring.guards.table import GUARD_KINDS
from monitoring.verdicts import Verdict, verdict
from serving.contract import GUARD_ROLES, Cause, Flag, Kind, Latch, Reason, RouteTable, Snapshot, VariantEntry

LIVE = Flag.LIVE | Flag.BASELINE_VALID
VARIANTS = ("teacher", "int8", "broken")


def model(**guards: Any) -> MonitorModel:
    return MonitorModel(
        "teacher",
        "teacher",
        {"teacher": MonitorVariant(1), "int8": MonitorVariant(2, 0.005), "broken": MonitorVariant(3, 0.035)},
        guards=GuardSettings(**guards),
    )


def snapshot(weights: dict[str, int], epoch: int = 1, since: dict[str, int] | None = None, **more: Any) -> Snapshot:
    shadow, artifacts = more.pop("shadow", {}), more.pop("artifacts", {})
    low, candidates = 0, {}
    for name, share in weights.items():
        candidates[name] = ((low, low + share),)
        low += share
    table = RouteTable(
        "m", epoch, "s", more.pop("baseline", "teacher"), "teacher",
        {name: VariantEntry(name, at, artifacts.get(name, f"m/{name}:1")) for at, name in enumerate(VARIANTS, 1)},
        candidates, since or dict.fromkeys(candidates, epoch), shadow,
    )  # fmt: skip
    return Snapshot(rev=epoch, lease=1, tables={"m": table}, **more)


def guards(weights: dict[str, int] | None = None, **settings: Any) -> ModelGuards:
    watched = ModelGuards("m", model(**settings))
    watched.configure(snapshot({"int8": 500} if weights is None else weights))
    return watched


def request(variant: str, cause: Cause = Cause.NONE, **more: Any) -> Event:
    return Event(Kind.REQUEST, variant, "teacher" if cause else variant, cause=cause, **{"epoch": 1, **more})


def pair(variant: str, flip: bool, kind: Kind = Kind.REFERENCE, **more: Any) -> Event:
    return Event(kind, variant, **{"answered": "teacher", "flips": int(flip), "epoch": 1, "wall_ns": 10**18, **more})


def feed(watched: ModelGuards, *events: Event, times: int = 1) -> None:
    for _ in range(times):
        for event in events:
            watched.observe(event)


def of(watched: ModelGuards, guard: str, variant: str = "int8", degraded: str = "") -> Verdict:
    return next(v for v in watched.verdicts(degraded) if (v.guard, v.variant) == (guard, variant))


class TestBlame:
    @pytest.mark.parametrize(
        ("cause", "status", "flags", "expected"),
        [
            (Cause.NONE, 200, LIVE, False),
            (Cause.NONE, 500, LIVE, True),
            (Cause.NONE, 504, LIVE, True),
            (Cause.NONE, 429, LIVE, True),
            (Cause.NONE, 400, LIVE, False),
            (Cause.ERROR, 200, LIVE, True),
            (Cause.ERROR, 500, Flag.LIVE, False),  # the baseline fails on this input too
            (Cause.INVALID_OUTPUT, 200, LIVE, True),
            (Cause.INVALID_OUTPUT, 500, Flag.LIVE, False),
            (Cause.TIMEOUT, 504, Flag.LIVE, True),  # nothing was left for the baseline
            (Cause.DIED, 503, Flag.LIVE, True),
            (Cause.OVERLOADED, 200, LIVE, True),
            (Cause.KILLED, 200, LIVE, False),
        ],
    )
    def test_table(self, cause: Cause, status: int, flags: int, expected: bool) -> None:
        assert is_error(Event(Kind.REQUEST, "int8", cause=cause, status=status, flags=flags), "teacher") is expected

    @pytest.mark.parametrize("cause", [Cause.ERROR, Cause.INVALID_OUTPUT])
    def test_the_baselines_own_failures_count_although_nobody_answers_in_its_place(self, cause: Cause) -> None:
        assert is_error(Event(Kind.REQUEST, "teacher", cause=cause, status=500, flags=Flag.LIVE), "teacher")

    def test_exceptions_that_befall_both_arms_alike_blame_nobody(self) -> None:
        watched = guards({"int8": 5000})
        for at in range(400):
            feed(
                watched,
                request("int8", Cause.ERROR, batch_key=2 * at + 1, mono_ns=at * 10**9),
                request("teacher", Cause.ERROR, status=500, flags=Flag.LIVE, batch_key=2 * at + 2, mono_ns=at * 10**9),
            )
        assert of(watched, "errors").verdict != "fail"
        assert watched.trips() == []

    def test_clients_and_testers_count_for_nothing(self) -> None:
        watched = guards()
        feed(
            watched,
            request("int8", Cause.INVALID_OUTPUT, flags=Flag.BASELINE_VALID, reason=Reason.OVERRIDE),
            request("int8", status=400, flags=LIVE | Flag.CLIENT_FAULT),
            request("int8", Cause.KILLED),
            times=50,
        )
        assert {found.verdict for found in watched.verdicts()} == {"no_data"}

    def test_an_input_that_breaks_the_baseline_too_kills_nobody(self) -> None:
        watched = guards()
        feed(watched, request("int8", Cause.INVALID_OUTPUT, status=500, flags=Flag.LIVE), times=50)
        assert watched.trips() == []

    def test_records_from_before_the_arming_are_ignored(self) -> None:
        watched = ModelGuards("m", model())
        watched.configure(snapshot({"int8": 500}, epoch=7))
        feed(watched, request("int8", Cause.INVALID_OUTPUT, epoch=6), pair("int8", True, epoch=6), times=20)
        assert watched.skipped_epochs == 40
        assert watched.trips() == []
        feed(watched, request("int8", Cause.INVALID_OUTPUT, epoch=7), times=3)
        assert [trip.guard for trip in watched.trips()] == ["invalid_output"]

    def test_a_race_uses_the_weights_its_records_were_routed_by(self) -> None:
        watched = guards({"int8": 500})
        raised = snapshot({"int8": 5000}, epoch=2, since={"int8": 1})
        feed(watched, request("int8", Cause.ERROR, epoch=2), times=10)
        assert watched.unknown_epochs == 10
        assert watched.candidates["int8"].detector(Errors).observations == 0
        watched.configure(raised)
        feed(watched, request("int8", Cause.ERROR, epoch=2), request("teacher", status=500, epoch=2), times=60)
        assert not any(trip.guard == "errors" for trip in watched.trips())
        feed(watched, request("int8", Cause.ERROR, epoch=1), request("teacher", status=500, epoch=1), times=60)
        assert [trip.guard for trip in watched.trips()] == ["errors"]

    def test_a_backlog_is_raced_on_both_sides_although_the_candidate_has_no_traffic_any_more(self) -> None:
        watched = guards({"int8": 5000})
        watched.configure(snapshot({}, epoch=2))
        feed(watched, request("int8", Cause.ERROR), request("teacher", status=500), times=60)
        errors = watched.candidates["int8"].detector(Errors)
        assert (errors.events, errors.observations) == (60, 120)
        assert not errors.failed

    def test_a_backlog_from_before_the_traffic_is_raced_on_neither_side(self) -> None:
        watched = guards({"int8": 0})
        watched.configure(snapshot({"int8": 5000}, epoch=2))
        feed(watched, request("teacher", status=500), times=60)
        assert watched.candidates["int8"].detector(Errors).observations == 0

    def test_what_one_stall_kept_waiting_is_one_event(self) -> None:
        watched = guards()
        for n in range(30):
            feed(watched, request("int8", Cause.TIMEOUT, mono_ns=10**9 + n * 10**7))
        errors = watched.candidates["int8"].detector(Errors)
        assert (errors.events, errors.candidate_errors) == (1, 30)
        assert watched.trips() == []

    @pytest.mark.parametrize("cause", [Cause.TIMEOUT, Cause.OVERLOADED])
    def test_a_candidate_that_hangs_is_found_within_two_seconds(self, cause: Cause) -> None:
        watched = guards()
        for n in range(20):
            feed(watched, request("int8", cause, mono_ns=10**9 + n * 10**8))
        assert [trip.guard for trip in watched.trips()] == ["errors"]

    def test_alone_every_timeout_counts(self) -> None:
        watched = guards({"int8": 10_000})
        for n in range(60):
            feed(watched, request("int8", Cause.TIMEOUT if n % 2 else Cause.NONE, mono_ns=10**9 + n * 10**6))
        assert [trip.guard for trip in watched.trips()] == ["errors"]

    def test_two_candidates_are_judged_apart(self) -> None:
        watched = guards({"int8": 500, "broken": 500})
        feed(watched, request("teacher"), request("int8"), request("broken", Cause.ERROR), times=40)
        assert [(trip.variant, trip.guard) for trip in watched.trips()] == [("broken", "errors")]
        assert watched.candidates["int8"].detector(Errors).alpha == pytest.approx(0.01 / (6 * 2))

    def test_trouble_common_to_both_arms_trips_nobody(self) -> None:
        watched = guards({"int8": 2000})
        for n in range(2000):
            feed(watched, request("teacher" if n % 5 else "int8", status=500 if n % 3 else 200, batch_key=n))
        assert watched.trips() == []


class TestPairs:
    def test_only_the_teacher_is_a_reference(self) -> None:
        watched = guards()
        feed(watched, pair("int8", True, answered="broken"), pair("int8", True, status=500), times=50)
        assert of(watched, "agreement").verdict == "no_data"

    def test_shadow_counts_like_reference(self) -> None:
        watched = guards({})
        watched.configure(snapshot({}, shadow={"int8": 2000}))
        feed(watched, pair("int8", False, Kind.SHADOW), times=500)
        assert of(watched, "agreement").verdict == "pass"

    def test_a_limit_breach_pauses_and_a_gross_one_rolls_back(self) -> None:
        watched = guards({"broken": 500})
        for n in range(2000):
            feed(watched, pair("broken", n % 10 == 0))
        verdict = of(watched, "agreement", "broken")
        assert (verdict.verdict, verdict.action) == ("fail", "pause")
        assert "over the limit of 5.5 %" in verdict.sentence
        assert watched.trips() == []
        feed(watched, pair("broken", True), times=400)
        assert [(trip.guard, trip.action) for trip in watched.trips()] == [("agreement", "rollback")]

    def test_nobody_can_agree_with_a_teacher_more_than_it_does_itself(self) -> None:
        """A teacher that changes a fifth of its answers when asked again, and a candidate no worse than that."""
        steady, moody = guards(), guards()
        for watched in (steady, moody):
            for n in range(2000):
                feed(watched, pair("teacher", watched is moody and n % 5 == 0))
            for n in range(1000):
                feed(watched, pair("int8", n % 5 == 0))
        assert of(steady, "agreement").verdict == "fail"
        found = of(moody, "agreement")
        assert found.verdict != "fail"
        assert 0.15 < found.statistic["limit"] < 0.2 < found.statistic["gross_limit"] < 0.5
        assert found.sentence.count("as teacher disagrees with itself as often") == 1
        assert found.statistic["teacher_noise"] == pytest.approx(0.2, abs=0.02)
        assert found.statistic["teacher_noise_pairs"] == 2000
        again = guards()
        again.load(json.loads(json.dumps(moody.state())))
        assert of(again, "agreement") == found
        moody.configure(snapshot({"int8": 500}, epoch=2, baseline="broken"))
        assert "teacher_noise" not in of(moody, "agreement").statistic

    def test_what_shadow_has_shown_carries_into_traffic(self) -> None:
        watched = guards({})
        watched.configure(snapshot({}, shadow={"broken": 2000}))
        feed(watched, pair("broken", True, Kind.SHADOW), times=40)
        assert of(watched, "agreement", "broken").verdict == "fail"
        assert watched.trips() == []  # there is no traffic to take away
        watched.configure(snapshot({"broken": 100}, epoch=2))
        assert [trip.guard for trip in watched.trips()] == ["agreement"]

    def test_a_second_attempt_begins_in_the_shadow_as_the_first_did(self) -> None:
        watched = guards()  # the first attempt has traffic
        cleared = {"vetoes": {"m/int8": Latch(seq=1, cleared=1)}}
        watched.configure(snapshot({}, epoch=5, shadow={"int8": 2000}, **cleared))
        watched.labelled("int8", teacher_right=True, candidate_right=False, event=pair("int8", True), epoch=4)
        assert of(watched, "harm").verdict == "no_data"
        feed(watched, pair("int8", False, Kind.SHADOW, epoch=5), times=40)
        watched.configure(snapshot({"int8": 100}, epoch=6, **cleared))
        assert of(watched, "agreement").statistic["observations"] == 40

    def test_a_late_label_of_an_earlier_arming_is_of_no_account(self) -> None:
        watched = guards()
        watched.configure(snapshot({"int8": 500}, epoch=5))
        for _ in range(100):
            late = pair("int8", True, epoch=0)
            watched.labelled("int8", teacher_right=True, candidate_right=False, event=late, epoch=4)
            watched.resolved("int8", 0.9, False, late, epoch=4)
        assert of(watched, "harm").verdict == "no_data"
        assert watched.skipped_epochs == 100  # records, however many guards they were for
        watched.labelled("int8", teacher_right=True, candidate_right=False, event=late, epoch=5)
        assert of(watched, "harm").verdict == "inconclusive"

    def test_harm_needs_labels(self) -> None:
        watched = guards()
        event = pair("int8", True)
        for n in range(300):
            watched.labelled("int8", teacher_right=True, candidate_right=n % 6 != 0, event=event)
        trip = next(trip for trip in watched.trips() if trip.guard == "harm")
        assert "got wrong what teacher got right in" in trip.sentence


class TestArming:
    def fail(self, watched: ModelGuards, epoch: int) -> list[str]:
        feed(watched, request("int8", Cause.INVALID_OUTPUT, epoch=epoch), times=3)
        return [trip.guard for trip in watched.trips()]

    def test_a_guard_trips_once(self) -> None:
        watched = guards()
        assert self.fail(watched, 1) == ["invalid_output"]
        assert self.fail(watched, 1) == []

    def test_a_ramp_keeps_the_evidence(self) -> None:
        watched = guards()
        feed(watched, pair("int8", False), times=100)
        watched.configure(snapshot({"int8": 2000}, epoch=2, since={"int8": 1}))
        assert of(watched, "agreement").statistic["observations"] == 100

    def test_after_a_rollback_the_verdict_stays_until_traffic_returns(self) -> None:
        watched = guards()
        assert self.fail(watched, 1) == ["invalid_output"]
        watched.configure(snapshot({}, epoch=2, vetoes={"m/int8": Latch(1, 0)}))
        assert of(watched, "invalid_output").verdict == "fail"
        watched.configure(snapshot({"int8": 500}, epoch=3, vetoes={"m/int8": Latch(1, 1)}))
        assert of(watched, "invalid_output").verdict == "no_data"
        assert self.fail(watched, 3) == ["invalid_output"]

    @pytest.mark.parametrize("name", ["m", "*"])
    def test_a_rearmed_kill_switch_starts_anew(self, name: str) -> None:
        watched = guards()
        assert self.fail(watched, 1) == ["invalid_output"]
        watched.configure(snapshot({"int8": 500}, kills={name: Latch(1, 0)}))
        assert self.fail(watched, 1) == []
        watched.configure(snapshot({"int8": 500}, kills={name: Latch(1, 1)}))
        assert self.fail(watched, 1) == ["invalid_output"]

    def test_the_baselines_latency_is_known_before_the_traffic_comes(self) -> None:
        watched = guards({})
        feed(watched, request("teacher", total_us=1000), times=600)
        watched.configure(snapshot({"int8": 500}, epoch=2))
        feed(watched, request("int8", total_us=1000, epoch=2))
        assert watched.candidates["int8"].detector(Latency).threshold_us < 7000
        watched.configure(snapshot({"int8": 500}, epoch=3, since={"int8": 3}))
        assert watched.candidates["int8"].detector(Latency).threshold_us < 7000

    def test_a_new_baseline_starts_anew(self) -> None:
        watched = guards()
        feed(watched, pair("int8", False), times=10)
        watched.configure(snapshot({}, epoch=2, baseline="int8"))
        assert "int8" not in watched.candidates
        assert all(item.verdict == "no_data" for item in watched.verdicts())

    def test_a_stored_model_goes_on_as_if_never_stopped(self) -> None:
        whole, stopped = guards(), guards()
        events = [request("teacher", total_us=1000 + n % 90) for n in range(900)]
        events += [request("int8", Cause.ERROR if n % 9 == 0 else Cause.NONE, request_key=n) for n in range(90)]
        feed(whole, *events)
        feed(stopped, *events[:500])
        resumed = ModelGuards("m", model())
        resumed.load(msgspec.msgpack.decode(msgspec.msgpack.encode(stopped.state())))
        feed(resumed, *events[500:])
        assert resumed.state() == whole.state()
        assert [trip.guard for trip in whole.trips()] == [trip.guard for trip in resumed.trips()]
        again = ModelGuards("m", model())
        again.load(resumed.state())
        assert again.trips() == []


class TestVerdicts:
    def test_no_data_is_said_and_never_passes(self) -> None:
        sentences = {found.guard: found.sentence for found in guards().verdicts()}
        assert sentences == {
            "invalid_output": "int8 has answered no live request yet",
            "errors": "int8 has answered no live request yet",
            "latency": "int8 has answered no live request yet",
            "agreement": "int8 has no answer scored by teacher yet",
            "harm": "int8 has no labelled pair yet",
            "interference": (
                "how slow the baseline is without int8 is not known: that takes 512 live requests while no candidate "
                "has traffic"
            ),
            "srm": "int8 and the baseline have had no user yet since its first request",
        }

    def test_the_sentence_of_a_rollback_has_its_numbers(self) -> None:
        watched = guards({"broken": 500})
        for n in range(400):
            feed(watched, pair("broken", n % 3 == 0, request_key=n))
            if trips := watched.trips():
                break
        assert trips[0].sentence == (
            "broken disagrees with teacher on 32 of 94 scored answers (34.0 %), "
            "over the gross limit of 16.5 %: evidence e^6.6 ≥ e^6.4"
        )
        assert trips[0].statistic["example_request_keys"][-1] == f"{93:016x}"

    def test_a_pass_says_why(self) -> None:
        watched = guards()
        feed(watched, pair("int8", False), times=400)
        verdict = of(watched, "agreement")
        assert verdict.verdict == "pass"
        assert verdict.sentence.startswith(
            "int8 disagrees with teacher on 0 of 400 scored answers (0.0 %), held to the limit of 2.5 %, within"
        )

    def test_too_little_is_inconclusive(self) -> None:
        watched = guards()
        feed(watched, pair("int8", False), times=5)
        assert of(watched, "agreement").verdict == "inconclusive"
        assert "not conclusive" in of(watched, "agreement").sentence

    def test_lost_records_degrade_all_but_a_failure(self) -> None:
        watched = guards()
        feed(watched, pair("int8", False), request("int8", Cause.INVALID_OUTPUT), times=400)
        verdict = of(watched, "agreement", degraded="3.0 % of the last minute's records were lost")
        assert (verdict.verdict, verdict.action) == ("degraded", "none")
        assert "were lost" in verdict.sentence
        assert of(watched, "invalid_output", degraded="lost").verdict == "fail"
        assert of(watched, "harm", degraded="lost").verdict == "no_data"

    def test_a_candidate_with_all_the_traffic_is_told_apart(self) -> None:
        watched = guards({"int8": 10_000})
        feed(watched, request("int8", total_us=5), times=10)
        assert "no baseline to compare" in of(watched, "latency").sentence
        assert "no other arm" in of(watched, "errors").sentence

    def test_verdicts_are_json(self) -> None:
        watched = guards()
        feed(watched, request("teacher"), request("int8", Cause.ERROR), pair("int8", True), times=20)
        for item in json.loads(msgspec.json.encode(watched.verdicts())):
            assert set(item) >= {"guard", "variant", "verdict", "action", "sentence", "at", "statistic"}
            assert {"log_evidence", "log_threshold", "observations", "events"} <= set(item["statistic"])


def test_every_guard_has_a_role_and_every_role_a_guard() -> None:
    assert [kind.name for kind in GUARD_KINDS] == list(GUARD_ROLES)
    assert {role.action for role in GUARD_ROLES.values()} <= {"alert", "pause", "rollback", "kill"}
    built = ModelGuards("m", model()).candidates["int8"].guards
    assert all(name == guard.name == guard.detector.name for name, guard in built.items())


class TestLimits:
    def test_the_reference_and_a_margin_or_what_is_configured(self) -> None:
        assert agreement_limit(model(), "broken") == pytest.approx(0.055)
        assert agreement_limit(model(agreement=AgreementSettings(limit=0.2)), "broken") == 0.2
        assert agreement_limit(model(), "unknown") == pytest.approx(0.02)

    def test_gross_stays_a_share(self) -> None:
        assert gross_limit(0.055, GuardSettings()) == pytest.approx(0.165)
        assert 0.6 < gross_limit(0.6, GuardSettings()) < 1

    def test_the_availability_objective_is_the_error_budget(self) -> None:
        watched = msgspec.structs.replace(model(), slo=[SloTarget("availability", 0.99)])
        assert ModelGuards("m", watched).candidates["int8"].detector(Errors).budget == pytest.approx(0.01)


def test_a_guard_in_dry_run_says_what_it_would_do_and_does_not_act() -> None:
    watched = guards(dry_run=("invalid_output",))
    feed(watched, request("int8", Cause.INVALID_OUTPUT), times=5)
    assert watched.trips() == []
    found = of(watched, "invalid_output")
    assert (found.verdict, found.action, found.dry_run) == ("fail", "none", True)
    assert found.sentence.endswith("(dry run: no kill)")
    assert not of(watched, "errors").dry_run


def test_what_failed_in_dry_run_acts_when_the_dry_run_is_lifted() -> None:
    dry = guards(dry_run=("invalid_output",))
    feed(dry, request("int8", Cause.INVALID_OUTPUT), times=5)
    assert dry.trips() == []
    lifted = ModelGuards("m", model())
    lifted.load(json.loads(json.dumps(dry.state())))
    assert [(trip.guard, trip.action) for trip in lifted.trips()] == [("invalid_output", "kill")]
    assert lifted.trips() == []


def test_a_trip_tells_the_evidence_at_its_crossing_whatever_was_seen_since() -> None:
    guard = Agreement(limit=0.02, gross=0.1)
    guard.alpha = 0.002
    while not guard.failed:
        guard.observe(1, 1)
    crossed = guard.failed_at
    for _ in range(40):
        guard.observe(0, 1)
    assert guard.log_evidence < guard.log_threshold <= crossed
    told = verdict(AgreementGuard(guard), Names("v", "teacher", 0.1), 0, examples=[])
    assert told.verdict == "fail"
    assert f"evidence e^{crossed:.1f} ≥ e^{guard.log_threshold:.1f}" in told.sentence
    assert told.statistic["log_evidence_at_failure"] == pytest.approx(crossed, abs=1e-4)


# ---------------------------------------------------------------- what rollouts are told


def test_suspect_answers_are_those_that_somebody_was_given_and_stand_for_the_unscored_ones() -> None:
    watched = guards()
    scored = pair("int8", True, inclusion=0.25)
    feed(watched, request("int8"), scored, pair("int8", False), pair("int8", True, Kind.SHADOW))
    assert watched.counts()["int8"] == {"live": 1, "pairs": 3, "suspect": 4.0}
    # Each by the chance it had itself, whatever the share is by now; an answer of many rows is one answer.
    feed(watched, pair("int8", True, flips=40, rows=64))
    assert watched.counts()["int8"]["suspect"] == 5.0


def test_a_prediction_rests_on_the_limits_and_on_the_budgets_as_if_the_candidate_were_live() -> None:
    watched = guards(false_rollback=0.01, false_promotion=0.04)
    said = watched.assumptions()
    assert said["int8"]["alpha"] == pytest.approx(0.01 / 6)  # it is the only one live
    assert said["broken"]["alpha"] == pytest.approx(0.01 / 12)  # it would be the second
    assert (said["broken"]["agreement"], said["broken"]["disagreement"]) == (pytest.approx(0.055), 0.035)
    assert said["int8"]["pass_alpha"] == 0.04


def test_what_was_counted_ends_with_the_arming() -> None:
    watched = guards()
    table = msgspec.structs.replace(snapshot({"int8": 500}).tables["m"], reference_bp=10_000)
    watched.configure(Snapshot(1, 1, {"m": table}))
    feed(watched, request("int8"), pair("int8", True))
    stored = watched.state()
    watched.load(stored)
    assert watched.counts()["int8"] == {"live": 1, "pairs": 1, "suspect": 1.0}
    watched.configure(Snapshot(2, 1, {"m": table}, vetoes={"m/int8": Latch(1, 1)}))  # a new attempt
    assert watched.counts()["int8"] == {"live": 0, "pairs": 0, "suspect": 0.0}

"""A rollout by recorded evidence: what moves it, what it waits for, and where it ends."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from rollout_kit import ALWAYS, NOW, POLICY, SECOND, passing

from serving.core.rollout import Move
from serving.core.rollout_decide import Facts, Guard
from serving.core.rollout_policy import Policy
from serving.core.rollout_replay import Replayed, recorded, replay


def looks(seconds: int, guards: dict[str, Guard] | None = None, each: int = 10, start: int = 0) -> Iterator[
    tuple[int, Facts]
]:  # fmt: skip
    """`each` answers and pairs a second."""
    for second in range(start, start + seconds):
        seen = each * second
        yield NOW + second * SECOND, recorded(passing() if guards is None else guards, seen, seen, 0.0)


def run(*parts: Iterator[tuple[int, Facts]], policy: Policy = POLICY["short"], approve: bool = True) -> Replayed:
    return replay(policy, "short", "m", "int8", (look for part in parts for look in part), approve=approve)


def moves(replayed: Replayed) -> list[tuple[int, str]]:
    return [((moved.at_ns - NOW) // SECOND, str(moved.move)) for moved in replayed.moves]


def test_a_good_candidate_goes_all_the_way() -> None:
    found = run(looks(120))
    assert moves(found) == [
        (0, "start"), (1, "shadow"), (11, "ramp"), (12, "advance"), (22, "advance"), (23, "hold"), (24, "approve"),
        (25, "advance"), (35, "advance"), (36, "promote"), (37, "promoted"), (67, "succeed"),
    ]  # fmt: skip
    assert (found.outcome, found.waiting) == ("succeeded", "")


def test_an_approval_can_be_where_it_stays() -> None:
    found = run(looks(120), approve=False)
    assert moves(found)[-1] == (23, "hold")
    assert (found.outcome, found.waiting) == ("under_way", "waits for the approval of an operator")


def test_a_recording_that_ends_too_early_leaves_it_waiting() -> None:
    found = run(looks(9))
    assert found.outcome == "under_way"
    assert found.waiting == "waits for: 7 s of 10s"


def test_answers_recorded_before_its_weight_count_for_no_step() -> None:
    """The first live step wants five answers: those of the shadow's time are none of them."""
    seen = recorded(passing(), 1000, 1000, 0.0)
    still = ((NOW + second * SECOND, seen) for second in range(12, 60))
    found = run(looks(12, each=100), still)
    assert moves(found)[-1] == (12, "advance")
    assert found.waiting.startswith("waits for: 0 of 5 requests")


def test_a_failed_guard_ends_it_and_says_so() -> None:
    broken = passing() | {"agreement": Guard("agreement", "fail", "rollback", "it disagrees")}
    found = run(looks(5), looks(20, broken, start=5))
    assert moves(found)[-2:] == [(5, "fail"), (6, "done")]
    assert (found.outcome, found.rollout.why, found.waiting) == ("rolled_back", "it disagrees", "")
    assert run(looks(5), looks(1, broken, start=5)).outcome == "rolled_back"


def test_it_is_not_tried_again() -> None:
    broken = passing() | {"errors": Guard("errors", "fail", "rollback", "it fails")}
    assert POLICY["short"].retry.max_attempts == 1
    found = run(looks(5), looks(10, broken, start=5), looks(500, start=15))
    assert moves(found)[-1] == (6, "done")


def test_a_guard_that_kills_kills() -> None:
    broken = passing() | {"invalid_output": Guard("invalid_output", "fail", "kill", "three are invalid")}
    found = run(looks(5), looks(20, broken, start=5))
    assert moves(found)[-1] == (5, "kill")
    assert (found.outcome, found.rollout.why) == ("killed", "three are invalid")


def test_a_freeze_window_stops_it_as_it_would_have() -> None:
    frozen = msgspec.structs.replace(POLICY["short"], freeze=(ALWAYS,))
    found = run(looks(60), policy=frozen)
    assert moves(found) == []
    assert found.waiting.startswith("a freeze window is open")


def test_moves_carry_what_was_seen_by_then() -> None:
    (ramp,) = [moved for moved in run(looks(60)).moves if moved.move is Move.RAMP]
    assert (ramp.live, ramp.pairs, ramp.after.step_seen) == (110, 110, 110)
    assert (str(ramp.before.state), str(ramp.after.state)) == ("shadow", "ramping")

"""Rollouts that run: by heartbeats and ticks of a real plane over a real store, crashes at every boundary included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from control_kit import ME, Rig, spec, table
from rollout_kit import POLICY, frozen, rollout

from serving.contract import slot_key
from serving.control.gateways import GatewayInfo
from serving.control.monitor_link import Heartbeat
from serving.control.rollout_driver import RolloutDriver
from serving.control.rollouts import rollout_of
from serving.core.commands import ControlState, Kill, MoveRollout, Rollback, SetTraffic, StartRollout, WordWrite
from serving.core.rollout import Event, Hold, Move, Rollout, State
from serving.core.rollout_policy import Retry
from serving.core.routing import weights
from serving.errors import RequestError

MODELS = {"moderation": spec(weights={}, shadow={})}
START = StartRollout("moderation", "int8", POLICY["short"], "file", ME)
SALT = "salt-of-the-test"


class Live:
    """One control plane with its driver, a monitor and a gateway that follow it at once, and a time that is told."""

    def __init__(self, folder: Path, tick: int = 0) -> None:
        self.rig = Rig(folder)
        self.plane = self.rig.plane
        self.driver = RolloutDriver(self.plane, self.rig.clock, salt=lambda: SALT)
        self.tick_number = tick
        self.rig.clock.advance(10 * tick)
        self.words: dict[str, str] = {}
        self.follows = True

    async def start(self) -> Live:
        await self.rig.start(MODELS)
        return self

    def hear(self, **more: Any) -> None:
        """A heartbeat of the monitor, and a poll of the gateway."""
        rev = self.plane.state.rev if self.follows else 0
        words = {"errors": "pass", "latency": "pass", "agreement": "pass"} | self.words
        verdicts = [
            {"guard": guard, "variant": "int8", "verdict": word, "sentence": f"{guard} says {word}",
             "action": "rollback" if word == "fail" else "none", "statistic": {"events": 7, "log_threshold": 6.4},
             "example_request_keys": ["00000000000000ab"]}
            for guard, word in words.items()
        ]  # fmt: skip
        seen = 100 * self.tick_number
        counts = {"moderation": {"int8": {"live": seen, "pairs": seen, "suspect": 0.0, "workers": 1}}}
        beat = Heartbeat(at="now", mode="ok", verdicts={"moderation": verdicts}, rev=rev, counts=counts)
        self.plane.heartbeat(msgspec.structs.replace(beat, **more))
        self.plane.gateways.see(GatewayInfo("gateway-1", rev=rev))

    async def tick(self) -> None:
        """Ten seconds later: what the monitor says, a human's approval if one is waited for, one look of the driver."""
        self.hear()
        if (waiting := self.rollout) is not None and waiting.hold is Hold.APPROVAL:
            await self.plane.execute(MoveRollout(waiting.id, Event(Move.APPROVE, "fine"), ME, SALT))
        else:
            await self.driver.tick()
        if self.plane._unsaved.is_set():  # what the writer in the background would do
            await self.plane.save_pending()

    def pass_time(self) -> None:
        self.tick_number += 1
        self.rig.clock.advance(10)

    async def until(self, *states: State, ticks: int = 40) -> Rollout:
        for _ in range(ticks):
            if self.rollout is not None and self.rollout.state in states:
                return self.rollout
            await self.tick()
            self.pass_time()
        raise AssertionError(f"still {self.rollout}")

    @property
    def rollout(self) -> Rollout | None:
        return next(iter(self.plane.state.rollouts.values()), None)


@pytest.fixture
async def live(tmp_path: Path) -> Live:
    live = await Live(tmp_path).start()
    await live.plane.execute(START)
    return live


# ---------------------------------------------------------------- the way up, and down


async def test_a_sound_candidate_becomes_the_baseline(live: Live) -> None:
    done = await live.until(State.SUCCEEDED)
    assert done.why == "watched for 30s after its promotion, nothing failed"
    assert table(live.plane.state).baseline == "int8"
    moves = [(row.action, row.actor) for row in await live.rig.trail() if row.action.startswith("rollout-")]
    assert moves == [
        ("rollout-create", "ann"),
        *((f"rollout-{move}", "rollout") for move in ("start", "shadow", "ramp", "advance", "advance", "hold")),
        ("rollout-approve", "ann"),
        *((f"rollout-{move}", "rollout") for move in ("advance", "advance", "promote", "promoted", "succeed")),
    ]
    ramp = next(row for row in await live.rig.trail() if row.action == "rollout-ramp")
    assert ramp.evidence["guards"]["agreement"]["statistic"] == {
        "events": 7, "log_threshold": 6.4, "example_request_keys": ["00000000000000ab"],
    }  # fmt: skip


async def test_a_guard_that_fails_rolls_back_with_its_evidence(live: Live) -> None:
    await live.until(State.RAMPING)
    live.words = {"agreement": "fail"}
    done = await live.until(State.ROLLED_BACK)
    assert (done.failed, done.why) == (True, "agreement says fail")
    assert weights(table(live.plane.state))["int8"] == 0
    assert live.rig.word.latch(slot_key("moderation", "int8")).on  # type: ignore[union-attr]
    (row,) = [row for row in await live.rig.trail() if row.action == "rollout-fail"]
    assert (row.evidence["guard"], row.evidence["statistic"]["events"]) == ("agreement", 7)
    again = await live.until(State.PENDING)  # retry.max_attempts is 1
    assert again.attempt == 2
    live.words = {}
    await live.until(State.WARMUP)
    assert not live.plane.state.vetoes["moderation/int8"].on


async def test_a_rollback_by_the_driver_needs_no_database(live: Live) -> None:
    await live.until(State.RAMPING)
    live.rig.store.failing = True
    live.words = {"latency": "fail"}
    live.hear()
    await live.driver.tick()
    assert weights(table(live.plane.state))["int8"] == 0
    live.rig.store.failing = False
    assert await live.plane.save_pending()


async def test_an_advance_that_cannot_be_saved_does_not_happen_and_is_tried_again(live: Live) -> None:
    live.rig.store.failing = True
    await live.tick()
    assert live.rollout is not None
    assert live.rollout.state is State.PENDING
    live.rig.store.failing = False
    await live.until(State.SUCCEEDED)


async def test_a_silent_monitor_pauses_and_its_return_resumes(live: Live) -> None:
    await live.until(State.RAMPING)
    live.rig.clock.advance(11)
    await live.driver.tick()
    assert live.rollout is not None
    assert (live.rollout.state, live.rollout.hold) == (State.PAUSED, Hold.MONITOR_LOST)
    assert live.rollout.why.startswith("the monitor has been silent for")
    await live.driver.tick()
    assert live.rollout.state is State.PAUSED
    assert (await live.until(State.RAMPING)).step_ns == live.rig.clock.wall_ns() - 10 * 1_000_000_000


async def test_a_restart_of_the_control_plane_does_not_take_its_own_silence_for_the_monitors(
    live: Live, tmp_path: Path
) -> None:
    await live.until(State.RAMPING)
    await live.plane.close()
    again = await Live(tmp_path, live.tick_number).start()
    before = again.plane.state
    await again.driver.tick()
    assert again.plane.state is before  # its bake goes on, and nothing is in the trail
    again.rig.clock.advance(11)
    await again.driver.tick()
    assert again.rollout is not None
    assert (again.rollout.hold, again.rollout.why) == (
        Hold.MONITOR_LOST, "the monitor has not been heard since the control plane started",
    )  # fmt: skip


async def test_verdicts_from_before_the_latest_change_of_traffic_count_for_nothing(live: Live) -> None:
    await live.until(State.RAMPING)
    live.follows = False  # the monitor and the gateway have not heard of the weight yet
    live.words = {"agreement": "fail"}
    live.hear()
    before = live.plane.state
    await live.driver.tick()
    assert live.plane.state is before
    view = live.plane.rollout_view(live.rollout)  # type: ignore[arg-type]
    assert view["waiting"] == "waits for every gateway to confirm 1 %"
    assert {verdict["verdict"] for verdict in view["verdicts"]} == {"no_data"}


@pytest.mark.parametrize(("state", "following"), [(State.RAMPING, State.RAMPING), (State.PROMOTING, State.MONITORING)])
async def test_a_step_counts_nothing_from_before_it_because_a_heartbeat_is_late(
    live: Live, state: State, following: State
) -> None:
    given, rev = await live.until(state), live.plane.state.rev
    live.plane.heartbeat(Heartbeat(at="now", mode="ok", rev=rev - 1))
    live.plane.gateways.see(GatewayInfo("gateway-1", rev=rev))
    await live.driver.tick()
    assert live.rollout == given  # every gateway obeys, and the monitor has not seen it
    live.hear(counts={"moderation": {"int8": {"live": 5000, "pairs": 5000, "suspect": 0.0, "workers": 1}}})
    await live.driver.tick()
    assert live.rollout is not None
    assert (live.rollout.state, live.rollout.step_seen) == (following, 5000)


async def test_an_abort_that_was_never_saved_is_not_tried_again_by_itself(live: Live, tmp_path: Path) -> None:
    await live.until(State.RAMPING)
    live.rig.store.failing = True
    await live.plane.execute(Rollback("moderation", ME, "int8"))
    again = await Live(tmp_path, live.tick_number).start()
    for _ in range(12):  # past the cooldown of a retry
        await again.tick()
        again.pass_time()
    assert again.rollout is not None
    assert (again.rollout.state, again.rollout.attempt) == (State.ROLLED_BACK, 1)


async def test_after_a_restart_a_rollback_is_not_done_before_a_gateway_has_polled(live: Live, tmp_path: Path) -> None:
    await live.until(State.RAMPING)
    live.words = {"agreement": "fail"}
    live.hear()
    await live.driver.tick()
    await live.plane.save_pending()
    again = await Live(tmp_path, live.tick_number).start()
    await again.driver.tick()
    assert again.rollout is not None
    assert again.rollout.state is State.ROLLING_BACK
    again.hear()
    await again.driver.tick()
    assert again.rollout.state is State.ROLLED_BACK


async def test_a_degraded_monitor_passes_nothing(live: Live) -> None:
    await live.until(State.SHADOW)
    live.pass_time()
    live.pass_time()
    live.hear(mode="degraded")
    before = live.plane.state
    await live.driver.tick()
    assert live.plane.state is before
    assert "agreement, degraded" in live.plane.rollout_view(live.rollout)["waiting"]  # type: ignore[arg-type]


async def test_what_the_monitor_says_of_the_baseline_holds_a_ramp(live: Live) -> None:
    await live.until(State.RAMPING)
    baseline = live.rollout.baseline  # type: ignore[union-attr]
    counts = {"moderation": {"int8": {"live": 5, "pairs": 5, "workers": 1}, baseline: {"workers": 0}}}
    live.hear(counts=counts)
    await live.driver.tick()
    assert (live.rollout.hold, live.rollout.why) == (Hold.BASELINE, f"the baseline {baseline} has no worker")  # type: ignore[union-attr]


async def test_too_many_suspect_answers_roll_back(live: Live) -> None:
    await live.until(State.RAMPING)
    live.hear(counts={"moderation": {"int8": {"live": 500, "pairs": 500, "suspect": 100.5, "workers": 1}}})
    await live.driver.tick()
    assert live.rollout is not None
    assert live.rollout.why == "about 100 suspect answers were given, over the limit of 100"


async def test_the_attempt_after_a_suspect_limit_starts_although_the_monitor_still_counts_the_earlier_ones(
    live: Live,
) -> None:
    await live.until(State.RAMPING)
    many = {"moderation": {"int8": {"live": 500, "pairs": 500, "suspect": 100.5, "workers": 1}}}
    states = []
    for _ in range(12):
        live.hear(counts=many)
        await live.driver.tick()
        assert live.rollout is not None
        states.append((live.rollout.attempt, live.rollout.state))
        if live.rollout.state is State.WARMUP:
            break
        live.pass_time()
    assert states[-1] == (2, State.WARMUP)
    assert (2, State.ROLLING_BACK) not in states


async def test_a_retry_waits_while_the_candidate_has_traffic_by_hand(live: Live) -> None:
    await live.until(State.RAMPING)
    live.words = {"agreement": "fail"}
    await live.until(State.ROLLED_BACK)
    live.words = {}
    traffic = SetTraffic(model="moderation", by=ME, salt="s", weights={"int8": 5})
    await live.plane.execute(traffic)
    before = live.plane.state
    await live.tick()
    assert live.plane.state is before
    await live.plane.execute(msgspec.structs.replace(traffic, weights={"int8": 0}))
    await live.tick()
    assert live.rollout is not None
    assert (live.rollout.state, live.rollout.attempt) == (State.PENDING, 2)


async def test_two_candidates_at_once_keep_their_hands_off_each_other(live: Live) -> None:
    await live.until(State.SHADOW)
    await live.plane.execute(SetTraffic(model="moderation", by=ME, salt="s", weights={"distilled": 99.5}))
    held = await live.until(State.PAUSED, ticks=10)
    assert (held.hold, held.why) == (
        Hold.NO_ROOM,
        "step 2 needs 1 % and the other candidates and the holdback leave 0 %",
    )
    await live.plane.execute(SetTraffic(model="moderation", by=ME, salt="s", weights={"distilled": 70}))
    with pytest.raises(RequestError, match="it needs 50 % and the other candidates and the holdback leave 25 %"):
        await live.until(State.SUCCEEDED)
    await live.plane.execute(SetTraffic(model="moderation", by=ME, salt="s", weights={"distilled": 0}))
    await live.until(State.SUCCEEDED)


async def test_a_freeze_holds_what_is_ready_and_lets_it_go_when_it_closes(live: Live) -> None:
    await live.until(State.RAMPING)
    state, given = live.plane.state, live.rollout
    assert given is not None
    live.plane._state = msgspec.structs.replace(state, rollouts={given.id: frozen(given)})
    await live.until(State.PAUSED)
    assert live.rollout is not None
    assert live.rollout.hold is Hold.FREEZE
    live.plane._state = msgspec.structs.replace(live.plane.state, rollouts={given.id: frozen(live.rollout, on=False)})
    await live.until(State.SUCCEEDED)


# ---------------------------------------------------------------- crashes


class CrashError(BaseException):
    """The process is gone; no `Exception`, so that nothing survives it."""


def at_write(number: int, *, committed: bool) -> Callable[[Live], None]:
    """Crash in the `number`-th save of a life, before or after it is on disk."""

    def arm(live: Live) -> None:
        write, left = live.rig.store.inner.write, [number]

        def crashing(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if committed:
                    write(*arguments)
                raise CrashError
            return write(*arguments)

        live.rig.store.inner.write = crashing  # type: ignore[method-assign]

    return arm


def at_word(number: int) -> Callable[[Live], None]:
    """Crash after a change is saved and published, before the control word hears of it."""

    def arm(live: Live) -> None:
        word = live.plane._word
        write, left = word.write, [number]

        async def crashing(writes: list[WordWrite]) -> bool:
            left[0] -= bool(writes)
            if writes and left[0] == 0:
                raise CrashError
            return await write(writes)

        word.write = crashing  # type: ignore[method-assign, assignment]

    return arm


async def story(
    folder: Path, fails_at: int | None = None, arm: Callable[[Live], None] | None = None, redo: bool = False
) -> tuple[Live, bool]:
    """A rollout from start to end, with one crash on the way; the last life, and whether it crashed.

    `redo`: the crashed tick comes again at its time, because nothing of it was saved.
    """
    live = await Live(folder).start()
    policy = msgspec.structs.replace(POLICY["short"], retry=Retry())
    await live.plane.execute(msgspec.structs.replace(START, policy=policy))
    if arm is not None:
        arm(live)
    crashed = False
    for _ in range(40):
        live.words = {"agreement": "fail"} if fails_at is not None and live.tick_number >= fails_at else {}
        try:
            await live.tick()
        except CrashError:
            crashed = True
            live = await Live(folder, live.tick_number).start()
            if redo:
                continue
        live.pass_time()
        if live.rollout is not None and live.rollout.state in (State.SUCCEEDED, State.ROLLED_BACK):
            break
    return live, crashed


def essence(state: ControlState) -> Any:
    """What a rollout came to: everything but the numbers of revisions and leases."""
    rollouts = [msgspec.structs.replace(r, rev=0) for r in state.rollouts.values()]
    return (rollouts, state.tables, state.vetoes, state.kills, state.promoted)


async def chain(live: Live) -> list[tuple[Any, ...]]:
    assert (await live.plane.verify()).ok
    return [
        (row.action, row.actor, row.variant, row.reason, row.at, row.before, row.after)
        for row in await live.rig.trail()
    ]


@pytest.mark.parametrize("committed", [False, True])
async def test_a_crash_at_any_save_of_a_promotion_comes_to_the_same(tmp_path: Path, committed: bool) -> None:
    smooth, _ = await story(tmp_path_of(tmp_path, "smooth"))
    assert smooth.rollout is not None
    assert smooth.rollout.state is State.SUCCEEDED
    points = 0
    while True:
        folder = tmp_path_of(tmp_path, f"crash-{points + 1}")
        live, crashed = await story(folder, arm=at_write(points + 1, committed=committed), redo=not committed)
        assert essence(live.plane.state) == essence(smooth.plane.state), f"crash at save {points + 1}"
        assert await chain(live) == await chain(smooth), f"crash at save {points + 1}"
        if not crashed:
            break
        points += 1
    assert points >= 12  # one save a move, at least


async def test_a_crash_before_the_control_word_hears_of_it_comes_to_the_same(tmp_path: Path) -> None:
    smooth, _ = await story(tmp_path_of(tmp_path, "smooth"))
    live, crashed = await story(tmp_path_of(tmp_path, "crash"), arm=at_word(1))
    assert crashed
    assert essence(live.plane.state) == essence(smooth.plane.state)
    assert await chain(live) == await chain(smooth)
    slot = slot_key("moderation", "int8")
    assert live.rig.word.latch(slot) == smooth.rig.word.latch(slot)


@pytest.mark.parametrize("committed", [False, True])
async def test_a_crash_at_any_save_of_a_rollback_ends_rolled_back(tmp_path: Path, committed: bool) -> None:
    points = forgotten = 0
    while True:
        folder = tmp_path_of(tmp_path, f"crash-{points + 1}")
        live, crashed = await story(folder, 5, at_write(points + 1, committed=committed), redo=not committed)
        state = live.plane.state
        assert live.rollout is not None
        assert live.rollout.state is State.ROLLED_BACK, f"crash at save {points + 1}"
        forgotten += not live.rollout.failed  # the word alone knew of it, and not whose it was
        assert weights(table(state))["int8"] == 0
        assert state.vetoes["moderation/int8"].on
        actions = [row.action for row in await live.rig.trail()]
        ended = "rollout-fail" if live.rollout.failed else "rollout-abort"
        assert [actions.count(action) for action in ("rollback", ended, "rollout-done")] == [1, 1, 1]
        assert (await live.plane.verify()).ok
        if not crashed:
            break
        points += 1
    assert points >= 6
    assert forgotten == (0 if committed else 1)


def tmp_path_of(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


# ---------------------------------------------------------------- a kill


async def test_a_kill_stops_the_driver_until_the_rearm(live: Live) -> None:
    await live.until(State.RAMPING)
    await live.plane.execute(Kill("moderation", ME))
    for _ in range(3):
        await live.tick()
        live.pass_time()
    assert live.rollout is not None
    assert live.rollout.state is State.KILLED


def test_a_view_of_a_rollout_that_is_over_says_nothing_of_what_is_next(live: Live) -> None:
    over = rollout(state=State.ROLLED_BACK, policy=POLICY["shadow-only"])
    view = live.plane.rollout_view(over)
    assert (view["live"], view["waiting"], view["verdicts"]) == (False, "", [])
    with pytest.raises(Exception, match="unknown rollout 'nope'"):
        rollout_of(live.plane.state, "nope")

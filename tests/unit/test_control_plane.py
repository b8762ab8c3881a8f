"""The plane over a real store and control word: what is published when, and what survives what."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import msgspec
import pytest
from control_kit import ME, Rig, spec, table, until

from serving.contract import Latch, Snapshot, slot_key
from serving.control.gateways import GatewayInfo
from serving.control.lease import StoreError
from serving.control.monitor_link import Heartbeat
from serving.control.plane import REVS_PER_LEASE
from serving.core.commands import By, Kill, Rearm, Rollback, SetTraffic
from serving.core.routing import weights
from serving.errors import ErrorKind, RequestError

MODEL_KILL = slot_key("moderation")
INT8_VETO = slot_key("moderation", "int8")


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    await rig.start()
    return rig


def traffic(percent: float, **more: object) -> SetTraffic:
    return SetTraffic(model="moderation", by=ME, salt="fresh", weights={"int8": percent}, **more)  # type: ignore[arg-type]


def published(rig: Rig) -> Snapshot:
    return msgspec.json.decode(rig.plane.snapshot, type=Snapshot)


# ---------------------------------------------------------------- publishing


async def test_a_parked_poll_returns_at_once_when_the_table_changes(rig: Rig) -> None:
    rev = rig.plane.state.rev
    parked = [asyncio.create_task(rig.plane.wait(rev, 20)) for _ in range(3)]
    await asyncio.sleep(0)
    await rig.plane.execute(traffic(20))
    for encoded in await asyncio.gather(*parked):
        snapshot = msgspec.json.decode(encoded, type=Snapshot)
        assert snapshot.rev == rev + 1
        assert weights(snapshot.tables["moderation"])["int8"] == 2000


async def test_a_poll_with_another_rev_does_not_park_and_one_out_of_time_gets_the_same_again(rig: Rig) -> None:
    assert await rig.plane.wait(0, 20) == rig.plane.snapshot
    assert await rig.plane.wait(rig.plane.state.rev, 0.001) == rig.plane.snapshot


async def test_a_kill_reaches_the_gateways_while_the_database_is_stuck(rig: Rig) -> None:
    stuck, reached = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        stuck.wait(10)

    rig.store.before_write = hold  # type: ignore[method-assign]
    change = asyncio.create_task(rig.plane.execute(traffic(20)))
    await until(reached.is_set)
    parked = asyncio.create_task(rig.plane.wait(rig.plane.state.rev, 20))
    await asyncio.sleep(0)
    await rig.plane.execute(Kill("moderation", ME))
    assert msgspec.json.decode(await parked, type=Snapshot).kills["moderation"].on
    assert rig.word.latch(MODEL_KILL) == Latch(1, 0)
    assert not change.done()
    stuck.set()
    with pytest.raises(RequestError, match="killed"):  # the ramp met the kill and must not undo it
        await change
    assert weights(table(rig.plane.state))["int8"] == 500
    assert await rig.plane.save_pending()
    assert [row.action for row in await rig.trail()] == ["model-added", "traffic", "kill", "traffic-undone"]
    assert rig.store.acquire().kills["moderation"].on


async def test_a_rollback_that_meets_another_change_in_the_making_keeps_both(rig: Rig) -> None:
    stuck, reached = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        stuck.wait(10)

    rig.store.before_write = hold  # type: ignore[method-assign]
    change = SetTraffic(model="moderation", by=ME, salt="fresh", weights={"distilled": 10})
    running = asyncio.create_task(rig.plane.execute(change))
    await until(reached.is_set)
    await rig.plane.execute(Rollback("moderation", ME, "int8"))
    stuck.set()
    await running
    assert weights(table(rig.plane.state)) == {"teacher": 9000, "int8": 0, "distilled": 1000}
    await rig.plane.save_pending()
    assert table(rig.store.acquire()) == table(rig.plane.state)


# ---------------------------------------------------------------- a database that fails


async def test_traffic_is_refused_and_not_published_when_it_cannot_be_persisted(rig: Rig) -> None:
    before = rig.plane.snapshot
    rig.store.failing = True
    with pytest.raises(RequestError, match=r"nothing was changed: .*disk is full") as caught:
        await rig.plane.execute(traffic(20))
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert rig.plane.snapshot == before
    assert rig.plane.status()["control"]["database"] == "error: the state database: database or disk is full"


async def test_kill_and_rollback_work_with_a_dead_database_and_are_saved_when_it_lives_again(rig: Rig) -> None:
    rig.store.failing = True
    await rig.plane.execute(Kill("moderation", By("monitor", "invalid outputs", {"events": 3})))
    await rig.plane.execute(Rollback("moderation", ME, "int8"))
    assert published(rig).kills["moderation"].on
    assert weights(published(rig).tables["moderation"])["int8"] == 0
    assert rig.word.latch(INT8_VETO) == Latch(1, 0)
    assert not await rig.plane.save_pending()
    assert rig.plane.status()["control"]["audit_rows_pending"] == 2
    rig.store.failing = False
    assert await rig.plane.save_pending()
    rows = await rig.trail()
    assert [(row.actor, row.action) for row in rows[1:]] == [("monitor", "kill"), ("ann", "rollback")]
    assert rig.plane.status()["control"]["database"] == "ok"


async def test_a_fault_lasts_as_long_as_the_database_does_not_answer(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent() -> None:
        raise StoreError("the state database: connection refused")

    monkeypatch.setattr(rig.store, "renew", silent)
    await rig.plane.renew()
    assert rig.plane.status()["control"]["database"] == "error: the state database: connection refused"
    monkeypatch.undo()
    await rig.plane.renew()
    assert rig.plane.status()["control"]["database"] == "ok"
    rig.store.failing = True
    await rig.plane.execute(Kill("moderation", ME))
    assert not await rig.plane.save_pending()
    await rig.plane.renew()
    assert rig.plane.status()["control"]["database"].startswith("error: ")  # it answers, but the kill is not saved


async def test_the_writer_tries_again_with_growing_pauses(rig: Rig) -> None:
    rig.store.failing = True
    rig.plane.run_background()
    await rig.plane.execute(Kill("moderation", ME))
    await until(lambda: rig.store.attempts >= 6)
    rig.store.failing = False
    await until(lambda: rig.plane.status()["control"]["audit_rows_pending"] == 0)
    retries = [pause for pause in rig.pauses if pause not in (0.5, 5.0)]
    assert retries[:3] == [0.1, 0.2, 0.4]
    await rig.plane.close()


async def test_what_waits_for_the_database_is_bounded_and_counted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.control.plane.PENDING_MAX", 2)
    rig.store.failing = True
    for seq in range(1, 5):
        await rig.plane.execute(Kill("moderation", ME, seq))
    control = rig.plane.status()["control"]
    assert (control["audit_rows_pending"], control["audit_rows_lost"]) == (2, 2)


# ---------------------------------------------------------------- restarts


async def test_everything_comes_back_after_a_restart(rig: Rig, tmp_path: Path) -> None:
    await rig.plane.execute(traffic(20))
    await rig.plane.execute(Kill("moderation", ME))
    await rig.plane.execute(Rollback("moderation", ME, "distilled"))
    before = rig.plane.state
    await rig.plane.close()
    again = Rig(tmp_path)
    await again.start()
    after = again.plane.state
    assert after.lease == before.lease + 1
    assert after.rev >= after.lease * REVS_PER_LEASE > before.rev
    assert msgspec.structs.replace(after, rev=before.rev, lease=before.lease) == before
    assert (await again.plane.verify()).ok


@pytest.mark.parametrize("command", [Kill("moderation", ME), Kill("*", ME), Rollback("moderation", ME, "int8")])
async def test_a_crash_between_act_and_persist_is_made_good_from_the_word(
    rig: Rig, tmp_path: Path, command: Kill | Rollback
) -> None:
    rig.store.failing = True
    await rig.plane.execute(command)
    acted = rig.plane.state
    again = Rig(tmp_path)  # nothing was closed or saved
    await again.start()
    assert (again.plane.state.kills, again.plane.state.vetoes) == (acted.kills, acted.vetoes)
    assert table(again.plane.state) == table(acted)
    assert [row.actor for row in await again.trail()] == ["canarium up", "control-word"]


async def test_a_kill_by_the_word_while_control_was_away_is_in_the_first_snapshot(rig: Rig, tmp_path: Path) -> None:
    await rig.plane.close()
    rig.word.latch_on(MODEL_KILL)
    again = Rig(tmp_path)
    await again.start()
    assert published(again).kills["moderation"].on
    assert [row.action for row in await again.trail()] == ["model-added", "kill"]


async def test_a_fresh_word_is_brought_up_to_the_store(rig: Rig, tmp_path: Path) -> None:
    await rig.plane.execute(Kill("moderation", ME))
    await rig.plane.execute(Rearm("moderation", ME, 1))
    await rig.plane.execute(Kill("*", ME))
    await rig.plane.close()
    (tmp_path / "control.word").unlink()
    again = Rig(tmp_path)
    await again.start()
    assert again.word.latch(slot_key("*")) == Latch(1, 0)
    assert not again.plane.state.kills["moderation"].on
    assert again.word.latch_on(MODEL_KILL) == 2  # the monitor counts on, so gateways will heed it


async def test_a_control_plane_that_was_replaced_stops_acting(rig: Rig, tmp_path: Path) -> None:
    newer = Rig(tmp_path)
    await newer.start()
    with pytest.raises(RequestError, match="another control plane has taken over"):
        await rig.plane.execute(traffic(20))
    with pytest.raises(RequestError, match="another control plane has taken over"):
        await rig.plane.execute(traffic(30))
    await rig.plane.execute(Kill("moderation", ME))  # but its brakes still work, through the word
    await newer.plane.poll_word()
    assert newer.plane.state.kills["moderation"].on


async def test_the_configuration_is_told_where_it_differs(rig: Rig, tmp_path: Path) -> None:
    await rig.plane.execute(traffic(20))
    await rig.plane.close()
    notes = await Rig(tmp_path).start({"moderation": spec()})
    assert len(notes) == 1
    assert notes[0].startswith("moderation: weights.int8 is 5 in the file and 20 in the store")


# ---------------------------------------------------------------- the control word


async def test_a_running_control_takes_over_what_is_written_into_the_word(rig: Rig) -> None:
    rig.word.latch_on(INT8_VETO)
    await rig.plane.poll_word()
    assert weights(published(rig).tables["moderation"])["int8"] == 0
    await rig.plane.save_pending()
    row = (await rig.trail())[-1]
    assert (row.actor, row.action, row.variant) == ("control-word", "rollback", "int8")


async def test_traffic_to_what_the_word_just_rolled_back_is_refused_once(rig: Rig) -> None:
    rig.word.latch_on(INT8_VETO)
    with pytest.raises(RequestError, match="int8 was rolled back in the meantime") as caught:
        await rig.plane.execute(traffic(20))
    assert caught.value.kind is ErrorKind.CONFLICT
    assert weights(table(rig.plane.state))["int8"] == 0
    await rig.plane.execute(traffic(20))  # now in full knowledge
    assert rig.word.latch(INT8_VETO) == Latch(1, 1)
    await rig.plane.poll_word()
    assert weights(table(rig.plane.state))["int8"] == 2000


async def test_the_monitors_word_and_its_request_are_one_act_in_the_trail(rig: Rig) -> None:
    seq = rig.word.latch_on(MODEL_KILL)
    monitor = By("monitor", "invalid outputs", {"events": 3})
    await rig.plane.execute(Kill("moderation", monitor, seq))
    rig.word.latch_on(INT8_VETO)
    await rig.plane.execute(Rollback("moderation", monitor, "int8"))
    await rig.plane.poll_word()
    await rig.plane.save_pending()
    assert [(row.actor, row.action) for row in (await rig.trail())[1:]] == [
        ("monitor", "kill"),
        ("monitor", "rollback"),
    ]


@pytest.mark.parametrize("target", ["moderation", "*"])
async def test_a_second_kill_has_a_number_and_a_row_of_its_own(rig: Rig, target: str) -> None:
    await rig.plane.execute(Kill(target, ME))
    await rig.plane.execute(Kill(target, By("bob", "another reason")))
    assert rig.plane.state.kills[target] == rig.word.latch(slot_key(target)) == Latch(2, 0)
    assert rig.plane.state.killed[target].reason == "another reason"
    with pytest.raises(RequestError, match=r"kill 1 of .* is not the one in force, 2 is"):
        await rig.plane.execute(Rearm(target, ME, 1))
    for seq in (2, 2):  # the monitor names the number of its word, however often it has to ask
        assert rig.word.latch_on(slot_key(target)) == seq
        await rig.plane.execute(Kill(target, By("monitor", "invalid outputs"), seq))
    await rig.plane.save_pending()
    assert [(row.actor, row.action) for row in (await rig.trail())[1:]] == [("ann", "kill"), ("bob", "kill")]


async def test_a_second_kill_is_one_of_its_own_though_the_word_lags_behind_or_is_ahead(rig: Rig) -> None:
    await rig.plane.execute(Kill("moderation", ME))
    rig.plane._state = msgspec.structs.replace(rig.plane.state, kills={"moderation": Latch(4, 0)})
    await rig.plane.execute(Kill("moderation", ME))  # the word still says 1
    assert rig.plane.state.kills["moderation"] == Latch(5, 0)
    rig.word.latch_on(MODEL_KILL, 9)
    await rig.plane.execute(Kill("moderation", ME))  # the word's own kill, told of here
    assert rig.plane.state.kills["moderation"] == Latch(9, 0)


async def test_a_rearm_does_not_clear_a_kill_that_came_after_it_was_asked(rig: Rig) -> None:
    await rig.plane.execute(Kill("moderation", ME))
    await rig.plane.execute(Rearm("moderation", ME, 1))
    assert rig.word.latch(MODEL_KILL) == Latch(1, 1)
    rig.word.latch_on(MODEL_KILL)
    with pytest.raises(RequestError, match="kill 1 of moderation is not the one in force, 2 is"):
        await rig.plane.execute(Rearm("moderation", ME, 1))
    assert rig.word.latch(MODEL_KILL) == Latch(2, 1)


@pytest.mark.parametrize("target", ["moderation", "*"])
async def test_a_kill_that_is_told_when_its_number_was_rearmed_kills_nothing(rig: Rig, target: str) -> None:
    monitor = By("monitor", "invalid outputs")
    seq = rig.word.latch_on(slot_key(target))
    await rig.plane.poll_word()
    await rig.plane.execute(Rearm(target, ME, seq))
    with pytest.raises(RequestError, match=rf"kill {seq} of .* was re-armed already") as caught:
        await rig.plane.execute(Kill(target, monitor, seq))
    assert caught.value.kind is ErrorKind.CONFLICT
    assert rig.plane.state.kills[target] == rig.word.latch(slot_key(target)) == Latch(seq, seq)
    newer = rig.word.latch_on(slot_key(target))
    await rig.plane.execute(Kill(target, monitor, newer))
    assert rig.plane.state.kills[target] == Latch(newer, seq)


async def test_a_slot_is_unreadable_only_when_two_looks_say_so(rig: Rig) -> None:
    rig.word.latch_on(MODEL_KILL)
    rig.word.latch_off(MODEL_KILL, 1)
    await rig.plane.poll_word()
    slot = rig.word._slots[MODEL_KILL]
    rig.word._cells[slot + 3] ^= 1
    await rig.plane.poll_word()
    assert not rig.plane.state.kills["moderation"].on
    await rig.plane.poll_word()
    assert rig.plane.state.kills["moderation"].on
    assert rig.word.latch(MODEL_KILL) == Latch(2, 1)


# ---------------------------------------------------------------- views


async def test_gateways_are_shown_until_they_have_been_silent_for_half_a_minute(rig: Rig) -> None:
    rig.plane.gateways.see(GatewayInfo("g1", "node", 7, 3))
    rig.clock.advance(29)
    assert rig.plane.status()["gateways"] == [{"id": "g1", "node": "node", "pid": 7, "rev": 3, "seen_age_s": 29.0}]
    rig.clock.advance(2)
    assert rig.plane.status()["gateways"] == []


async def test_the_monitor_is_alive_for_five_seconds_after_a_heartbeat(rig: Rig) -> None:
    assert rig.plane.status()["monitor"]["alive"] is False
    rig.plane.heartbeat(Heartbeat(at=1.0, mode="ok", verdicts={"moderation": [{"guard": "errors"}]}))
    rig.clock.advance(4.9)
    assert rig.plane.status()["monitor"] == {
        "alive": True,
        "heartbeat_age_s": 4.9,
        "mode": "ok",
        "loss_ratio": None,
    }
    assert rig.plane.monitor.verdicts("moderation")["stale"] is False
    rig.clock.advance(0.2)
    assert rig.plane.status()["monitor"]["alive"] is False
    assert rig.plane.monitor.verdicts("moderation") == {
        "model": "moderation",
        "at": 1.0,
        "stale": True,
        "verdicts": [{"guard": "errors"}],
    }


async def test_a_model_shows_who_killed_it_and_why(rig: Rig) -> None:
    await rig.plane.execute(Kill("*", ME))
    view = rig.plane.view("moderation")
    assert (view["killed"], view["killed_by"], view["kill_seq"]) == (True, "kill-switch", 0)
    assert view["kill"]["reason"] == "because"
    assert rig.plane.status()["kill_switch"]["on"] is True


# ---------------------------------------------------------------- brakes pulled while a change is being saved


class Held:
    """Holds the store up in the middle of the next write."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.go, self.reached = rig, threading.Event(), threading.Event()
        rig.store.before_write = self._hold  # type: ignore[method-assign]

    def _hold(self) -> None:
        self.reached.set()
        self.go.wait(10)

    async def start(self, command: SetTraffic | Rearm) -> asyncio.Task[object]:
        running: asyncio.Task[object] = asyncio.create_task(self.rig.plane.execute(command))
        await until(self.reached.is_set)
        return running


async def test_a_kill_during_a_rearm_of_the_last_one_stays_in_force(rig: Rig) -> None:
    await rig.plane.execute(Kill("moderation", ME))
    held = Held(rig)
    rearming = await held.start(Rearm("moderation", ME, 1))
    await rig.plane.execute(Kill("moderation", By("bob", "still bad")))
    held.go.set()
    with pytest.raises(RequestError, match="kill 1 of moderation is not the one in force, 2 is"):
        await rearming
    assert rig.plane.state.kills["moderation"] == Latch(2, 0)
    assert rig.word.latch(MODEL_KILL) == Latch(2, 0)
    await rig.plane.save_pending()
    assert [row.action for row in await rig.trail()][1:] == ["kill", "rearm", "kill", "rearm-undone"]


@pytest.mark.parametrize("variant", ["int8", None])
async def test_a_rollback_during_a_raise_stays_in_force(rig: Rig, variant: str | None) -> None:
    await rig.plane.execute(Rollback("moderation", ME, "int8"))
    held = Held(rig)
    raising = await held.start(traffic(20))
    await rig.plane.execute(Rollback("moderation", By("bob", "still bad"), variant))
    held.go.set()
    with pytest.raises(RequestError, match=r"int8 was rolled back in the meantime \(veto 2\)") as caught:
        await raising
    assert caught.value.kind is ErrorKind.CONFLICT
    assert weights(table(rig.plane.state))["int8"] == 0
    assert rig.word.latch(INT8_VETO) == Latch(2, 0)
    await rig.plane.save_pending()
    assert "traffic-undone" in [row.action for row in await rig.trail()]


async def test_a_veto_by_the_word_during_a_raise_stays_in_force(rig: Rig) -> None:
    held = Held(rig)
    raising = await held.start(traffic(20))
    rig.word.latch_on(INT8_VETO)
    await rig.plane.poll_word()
    held.go.set()
    with pytest.raises(RequestError, match="rolled back in the meantime"):
        await raising
    assert weights(table(rig.plane.state))["int8"] == 0


async def test_a_row_that_cannot_be_written_does_not_end_the_writer(rig: Rig) -> None:
    await rig.plane.execute(Kill("moderation", By("ann", "why", {"count": 1 << 70})))
    assert not await rig.plane.save_pending()
    assert "TypeError" in rig.plane.status()["control"]["database"]


# ---------------------------------------------------------------- a paused ramp


@pytest.mark.parametrize(("guard", "ailing"), [("golden", True), ("ood", False), ("input_drift", False)])
async def test_what_is_only_told_of_the_baseline_holds_up_no_rollout(rig: Rig, guard: str, ailing: bool) -> None:
    said = {"guard": guard, "variant": "teacher", "verdict": "fail", "action": "alert", "sentence": "odd"}
    rig.plane.heartbeat(Heartbeat("now", "ok", {"moderation": [said]}))
    facts = rig.monitor.facts("moderation", "int8", "teacher", 0)
    assert facts.ailing == ("the baseline is not well: odd" if ailing else "")


def beat(rig: Rig, verdict: str = "fail", action: str = "pause") -> None:
    said = {
        "guard": "agreement", "variant": "int8", "verdict": verdict, "action": action, "sentence": "int8 disagrees",
    }  # fmt: skip
    rig.plane.heartbeat(Heartbeat("now", "ok", {"moderation": [said]}))


async def test_a_weight_is_not_raised_while_a_guard_pauses_the_ramp(rig: Rig) -> None:
    beat(rig)
    before = rig.plane.snapshot
    with pytest.raises(RequestError, match=r"int8 may not get more traffic.*int8 disagrees \(guard agreement\)") as no:
        await rig.plane.execute(traffic(20))
    assert no.value.kind is ErrorKind.CONFLICT
    assert rig.plane.snapshot == before
    for percent in (5, 2, 0):  # the same, less, nothing
        await rig.plane.execute(traffic(percent))
        assert weights(table(rig.plane.state))["int8"] == percent * 100
    await rig.plane.execute(SetTraffic(model="moderation", by=ME, salt="s", weights={"distilled": 10}))


async def test_an_override_raises_it_and_is_in_the_trail(rig: Rig) -> None:
    beat(rig)
    await rig.plane.execute(traffic(20, override_pause=True))
    assert weights(table(rig.plane.state))["int8"] == 2000
    row = (await rig.trail())[-1]
    assert row.evidence == {"override_pause": {"int8": "int8 disagrees (guard agreement)"}}


async def test_only_a_fresh_pause_counts(rig: Rig) -> None:
    beat(rig, "fail", "rollback")
    await rig.plane.execute(traffic(6))
    beat(rig, "inconclusive", "pause")
    await rig.plane.execute(traffic(7))
    beat(rig)
    rig.clock.advance(6.0)
    await rig.plane.execute(traffic(8))
    assert weights(table(rig.plane.state))["int8"] == 800

"""Kills that were set in the control word, as the audit log tells of them: by whom, why, each one."""

from __future__ import annotations

from pathlib import Path

import pytest
from control_kit import Rig

from serving.contract import Latch, slot_key
from serving.control import kill_notes
from serving.core.commands import By, Kill, Rearm
from serving.core.killswitch import KillNote

ME = By("ann", "because")
Row = tuple[str, str, int]


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    await rig.start()
    return rig


def by_word(rig: Rig, folder: Path, reason: str, slot: str = "moderation", at_least: int = 0) -> int:
    seq = rig.word.latch_on(slot_key(slot), at_least)
    kill_notes.leave(notes(folder), KillNote(slot, seq, "cli:bob", reason))
    return seq


def notes(folder: Path) -> Path:
    return kill_notes.beside(folder / "control.word")


async def kills(rig: Rig) -> list[Row]:
    await rig.plane.save_pending()
    return [(row.actor, row.reason, row.after["kill_seq"]) for row in await rig.trail() if row.action == "kill"]


@pytest.mark.parametrize("slot", ["moderation", "*"])
async def test_a_kill_by_the_word_has_its_actor_and_its_reason(rig: Rig, tmp_path: Path, slot: str) -> None:
    by_word(rig, tmp_path, "bad answers", slot)
    await rig.plane.poll_word()
    assert await kills(rig) == [("cli:bob", "bad answers", 1)]
    assert rig.plane.state.killed[slot].reason == "bad answers"
    row = (await rig.trail())[-1]
    assert row.evidence == {"through": "control-word"}
    assert not notes(tmp_path).exists()
    await rig.plane.poll_word()
    assert len(await kills(rig)) == 1


async def test_every_kill_while_control_was_away_has_a_row_of_its_own(rig: Rig, tmp_path: Path) -> None:
    await rig.plane.execute(Kill("moderation", ME))
    await rig.plane.close()
    by_word(rig, tmp_path, "worse", at_least=2)
    by_word(rig, tmp_path, "worse still", at_least=3)
    again = Rig(tmp_path)
    await again.start()
    told = [("ann", "because", 1), ("cli:bob", "worse", 2), ("cli:bob", "worse still", 3)]
    assert await kills(again) == told
    assert again.plane.state.kills["moderation"] == rig.word.latch(slot_key("moderation")) == Latch(3, 0)
    assert again.plane.state.killed["moderation"].reason == "worse still"
    assert not notes(tmp_path).exists()


async def test_a_reason_that_comes_after_its_kill_was_seen_is_told_all_the_same(rig: Rig, tmp_path: Path) -> None:
    seq = rig.word.latch_on(slot_key("moderation"))
    await rig.plane.poll_word()
    kill_notes.leave(notes(tmp_path), KillNote("moderation", seq, "cli:bob", "bad answers"))
    await rig.plane.poll_word()
    found = "found in force in the control word, where `canarium kill` or the monitor writes"
    assert [(actor, reason.startswith(found), seq) for actor, reason, seq in await kills(rig)] == [
        ("control-word", True, 1),
        ("cli:bob", False, 1),
    ]


async def test_a_kill_in_a_word_that_was_made_anew_keeps_its_reason(rig: Rig, tmp_path: Path) -> None:
    for seq in (1, 2):
        await rig.plane.execute(Kill("moderation", ME))
        await rig.plane.execute(Rearm("moderation", ME, seq))
    await rig.plane.close()
    (tmp_path / "control.word").unlink()
    fresh = Rig(tmp_path)
    assert by_word(fresh, tmp_path, "bad answers") == 1
    await fresh.start()
    assert (await kills(fresh))[-1] == ("cli:bob", "bad answers", 3)


async def test_notes_of_other_kills_say_nothing_of_this_one(rig: Rig, tmp_path: Path) -> None:
    for slot, seq in (("moderation", 7), ("nobody", 1), ("*", 1)):
        kill_notes.leave(notes(tmp_path), KillNote(slot, seq, "cli:bob", "not this one"))
    rig.word.latch_on(slot_key("moderation"))
    await rig.plane.poll_word()
    assert [actor for actor, _, _ in await kills(rig)] == ["control-word"]
    assert not notes(tmp_path).exists()

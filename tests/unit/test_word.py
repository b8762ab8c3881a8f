"""The control word: the latches by which a kill reaches the gateways when everything else is down."""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.clock import FakeClock
from serving.commands.traffic import _kill_by_word
from serving.config import parse_config
from serving.contract import (
    S_CHECK,
    S_CLEARED,
    S_KEY,
    S_SEQ,
    WORD_BYTES,
    WORD_HEADER_CELLS,
    WORD_SLOTS,
    ControlWord,
    Latch,
    RouteTable,
    Snapshot,
    VariantEntry,
    slot_check,
    slot_key,
)
from serving.gateway.live import LiveRouting
from serving.paths import Paths

KEY = slot_key("moderation")
OTHER = slot_key("anomaly")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.word"


@pytest.fixture
def word(path: Path) -> ControlWord:
    return ControlWord.open(path)


def damage(path: Path, cell: int, value: int, slot: int = 0) -> None:
    """Overwrite one 64-bit cell of a slot in the file, behind everybody's back."""
    with path.open("r+b") as file:
        file.seek(8 * (WORD_HEADER_CELLS + 4 * slot + cell))
        file.write(value.to_bytes(8, "little"))


# ---------------------------------------------------------------- latching


def test_nothing_is_in_force_at_first(word: ControlWord) -> None:
    assert word.latch(KEY) == Latch(0, 0)
    assert not word.latch(KEY).on


def test_a_latch_is_in_force_until_a_clear_names_it(word: ControlWord) -> None:
    assert word.latch_on(KEY) == 1
    assert word.latch(KEY) == Latch(1, 0)
    word.latch_off(KEY, 1)
    assert word.latch(KEY) == Latch(1, 1)
    assert not word.latch(KEY).on


def test_killing_twice_is_one_kill(word: ControlWord) -> None:
    assert [word.latch_on(KEY), word.latch_on(KEY)] == [1, 1]


def test_a_kill_after_a_clear_has_a_new_number(word: ControlWord) -> None:
    word.latch_on(KEY)
    word.latch_off(KEY, 1)
    assert word.latch_on(KEY) == 2
    assert word.latch(KEY).on


def test_a_stale_clear_does_not_undo_a_newer_kill(word: ControlWord) -> None:
    word.latch_on(KEY, at_least=7)
    word.latch_off(KEY, 6)
    assert word.latch(KEY) == Latch(7, 6)
    assert word.latch(KEY).on


def test_a_clear_never_lowers_what_was_cleared(word: ControlWord) -> None:
    word.latch_on(KEY, at_least=7)
    word.latch_off(KEY, 7)
    word.latch_off(KEY, 3)
    assert word.latch(KEY) == Latch(7, 7)


def test_a_kill_takes_over_the_control_planes_number(word: ControlWord) -> None:
    assert word.latch_on(KEY, at_least=41) == 41
    assert word.latch_on(KEY, at_least=12) == 41


def test_a_kill_outranks_what_was_cleared_before_the_word_knew(word: ControlWord) -> None:
    """The control plane re-arms its kill 5, of which this word never heard: the next kill must be over 5."""
    word.latch_on(KEY)
    word.latch_off(KEY, 5)
    assert word.latch_on(KEY) == 6
    assert word.latch(KEY).on


def test_latches_are_independent(word: ControlWord) -> None:
    keys = [slot_key("*"), KEY, slot_key("moderation", "int8"), OTHER]
    assert len(set(keys)) == 4
    word.latch_on(keys[2])
    assert [word.latch(key).on for key in keys] == [False, False, True, False]


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_key_marks_a_free_slot(model: str, variant: str) -> None:
    assert 0 < slot_key(model, variant) < 1 << 64


operations = st.lists(
    st.one_of(st.tuples(st.just("on"), st.integers(0, 9)), st.tuples(st.just("off"), st.integers(0, 9))), max_size=20
)


@given(operations)
def test_any_sequence_keeps_the_rules(
    tmp_path_factory: pytest.TempPathFactory, sequence: list[tuple[str, int]]
) -> None:
    word = ControlWord.open(tmp_path_factory.mktemp("word") / "w")
    before = Latch()
    for operation, number in sequence:
        if operation == "on":
            seq = word.latch_on(KEY, at_least=number)
            assert word.latch(KEY) == Latch(seq, before.cleared)
            assert seq >= max(number, before.seq)
            assert seq > before.cleared or number == seq, "a kill is in force, unless its caller chose a cleared number"
        else:
            word.latch_off(KEY, number)
            assert word.latch(KEY) == Latch(before.seq, max(before.cleared, number))
        before = word.latch(KEY)


# ---------------------------------------------------------------- the file


def descriptors(path: Path) -> int:
    """How many of this process are open on the file."""
    return sum(each.resolve() == path for each in Path("/proc/self/fd").iterdir())


def test_a_word_that_nobody_holds_has_no_descriptor(path: Path) -> None:
    word = ControlWord.open(path)
    assert descriptors(path) > 0
    word.close()
    del word
    for _ in range(3):
        ControlWord.open(path).latch_on(KEY)
    assert descriptors(path) == 0


def test_opening_again_and_again_on_a_full_disk_uses_up_no_descriptors(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monitor tries at every trip, for as long as the disk is full."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        for _ in range(3):
            with pytest.raises(OSError, match="No space left"):
                ControlWord.open(path)
    assert descriptors(path) == 0
    ControlWord.open(path)  # and whoever failed holds no lock


def test_the_word_outlives_its_process(path: Path, word: ControlWord) -> None:
    word.latch_on(KEY)
    word.latch_on(OTHER, at_least=3)
    word.latch_off(OTHER, 3)
    word.close()
    again = ControlWord.open(path)
    assert (again.latch(KEY), again.latch(OTHER)) == (Latch(1, 0), Latch(3, 3))


def test_the_file_is_private_and_its_blocks_are_reserved(path: Path, word: ControlWord) -> None:
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == WORD_BYTES
    assert status.st_blocks * 512 >= WORD_BYTES, "a kill must not need disk space"


def test_a_reader_sees_a_writer_at_once(path: Path, word: ControlWord) -> None:
    reader = ControlWord.open(path)
    assert not reader.latch(KEY).on
    word.latch_on(KEY)
    assert reader.latch(KEY) == Latch(1, 0)
    word.latch_off(KEY, 1)
    assert reader.latch(KEY) == Latch(1, 1)


def test_two_writers_lose_nothing(path: Path) -> None:
    """Each makes slots of its own and raises a shared one; no slot is taken twice, no number is given twice."""
    shared = slot_key("*")

    def work(writer: int) -> list[int]:
        word = ControlWord.open(path)
        given = []
        for number in range(40):
            word.latch_on(slot_key(f"model-{writer}", str(number)))
            seq = word.latch_on(shared)
            word.latch_off(shared, seq)
            given.append(seq)
        return given

    with ThreadPoolExecutor(2) as pool:
        taken = [number for numbers in pool.map(work, (0, 1)) for number in numbers]
    final = ControlWord.open(path)
    assert final.latch(shared) == Latch(max(taken), max(taken))
    assert all(final.latch(slot_key(f"model-{writer}", str(n))) == Latch(1, 0) for writer in (0, 1) for n in range(40))


def test_a_full_word_says_so(word: ControlWord) -> None:
    for number in range(WORD_SLOTS):
        word.latch_on(slot_key("model", str(number)))
    with pytest.raises(OSError, match=r"the control word is full: remove run/control\.word while nothing runs"):
        word.latch_on(slot_key("model", "one more"))
    assert word.latch_on(slot_key("model", "7"), at_least=9) == 9, "what has a slot can still be killed"


def test_the_heartbeat(path: Path, word: ControlWord) -> None:
    assert word.last_beat_ns == 0
    word.beat(123_456_789)
    assert ControlWord.open(path).last_beat_ns == 123_456_789


def test_an_unusable_path_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        ControlWord.open(tmp_path / "absent" / "control.word")


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("cell", [S_KEY, S_SEQ, S_CLEARED, S_CHECK])
@pytest.mark.parametrize("value", [0, 99, (1 << 64) - 1])
@pytest.mark.parametrize("fresh", [False, True], ids=["known slot", "fresh reader"])
def test_a_damaged_slot_is_unreadable_never_off(
    path: Path, word: ControlWord, cell: int, value: int, fresh: bool
) -> None:
    word.latch_on(KEY, at_least=2)
    word.latch_off(KEY, 1)
    assert word.latch(KEY) == Latch(2, 1)
    damage(path, cell, value)
    reader = ControlWord.open(path) if fresh else word
    assert reader.latch(KEY) is None


def test_a_torn_write_is_unreadable_until_it_is_complete(path: Path, word: ControlWord) -> None:
    word.latch_on(KEY)
    damage(path, S_SEQ, 2)  # the first of the stores that make a write
    assert word.latch(KEY) is None
    damage(path, S_CHECK, slot_check(KEY, 2, 0))
    assert word.latch(KEY) == Latch(2, 0)


@pytest.mark.parametrize("cell", [S_SEQ, S_CLEARED, S_CHECK])
@pytest.mark.parametrize("value", [0, 3, 99, (1 << 64) - 1])
def test_writing_to_a_damaged_slot_leaves_it_in_force(path: Path, word: ControlWord, cell: int, value: int) -> None:
    word.latch_on(KEY, at_least=5)
    word.latch_off(KEY, 4)
    damage(path, cell, value)
    seq = word.latch_on(KEY)
    repaired = word.latch(KEY)
    assert repaired is not None
    assert repaired.on
    assert seq == repaired.seq > 4, "over everything that was ever cleared"
    word.latch_off(KEY, seq)
    assert word.latch(KEY) == Latch(seq, seq)


def test_a_clear_of_a_damaged_slot_is_no_silent_rearm(path: Path, word: ControlWord) -> None:
    word.latch_on(KEY, at_least=5)
    damage(path, S_SEQ, 1)
    word.latch_off(KEY, 1)
    assert word.latch(KEY).on


def test_a_slot_that_lost_its_key_is_not_given_away(path: Path, word: ControlWord) -> None:
    word.latch_on(KEY)
    damage(path, S_KEY, 0)
    writer = ControlWord.open(path)
    writer.latch_on(OTHER)
    assert ControlWord.open(path).latch(OTHER) == Latch(1, 0)
    assert ControlWord.open(path).latch(KEY) is None


def test_a_foreign_file_is_unreadable(path: Path) -> None:
    path.write_bytes(os.urandom(WORD_BYTES))
    assert ControlWord.open(path).latch(KEY) is None


# ---------------------------------------------------------------- kills beside published ones


@pytest.mark.parametrize("published", [Latch(1, 1), Latch(4, 2), Latch()])
@pytest.mark.parametrize("target", ["moderation", "*"])
def test_a_kill_by_the_word_is_above_all_that_was_published_though_the_word_never_saw_it(
    tmp_path: Path, target: str, published: Latch
) -> None:
    paths = Paths.of(tmp_path)
    paths.create()
    word = ControlWord.open(paths.word_path)  # of a node on which there is no control plane
    entry = VariantEntry("fp32", 1, "moderation/fp32:1", placement="colocated")
    table = RouteTable("moderation", 1, "salt", "fp32", "fp32", {"fp32": entry})
    snapshot = Snapshot(7, 1, {"moderation": table}, {target: published})
    paths.snapshot_file.write_bytes(msgspec.json.encode(snapshot))
    config = parse_config(
        {
            "apiVersion": "canarium/v1",
            "models": {"moderation": {"baseline": "fp32", "variants": {"fp32": {"artifact": "moderation/fp32:1"}}}},
        }
    )
    live = LiveRouting(config, word, FakeClock())
    live.accept(snapshot)
    seq = _kill_by_word(tmp_path, target, "broken", "the control plane is down")
    view = live.view("moderation")
    assert view is not None
    assert view.killed
    assert seq > max(published.seq, published.cleared)

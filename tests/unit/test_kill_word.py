"""How the measured kills are asked for when the control plane is dead."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests import killing
from loadtests.killing import Situation, Target
from serving.client import Unreachable
from serving.contract import ControlWord, slot_key
from serving.paths import Paths


class Dead:
    """An admin client whose control plane does not answer."""

    asked = 0
    patience_s = 0.0

    def __enter__(self) -> Dead:
        return self

    def __exit__(self, *_: object) -> None: ...

    def kill(self, model: str, *, reason: str) -> None:
        Dead.asked += 1
        raise Unreachable("refused")


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    Dead.asked, Dead.patience_s = 0, 0.0

    def admin(_: Target, timeout_s: float = 10.0) -> Dead:
        Dead.patience_s = timeout_s
        return Dead()

    monkeypatch.setattr(Target, "admin", admin)
    Paths.of(tmp_path).run_dir.mkdir()
    return Target("http://127.0.0.1:1", "http://127.0.0.1:2", tmp_path, "m", "candidate")


@pytest.mark.parametrize("asks_first", [True, False])
def test_the_word_is_written_at_once_or_after_the_control_plane_was_asked(target: Target, asks_first: bool) -> None:
    killing._kill(target, Situation("dead", word=True, asks_first=asks_first))
    word = ControlWord.open(Paths.of(target.state_dir).word_path)
    latch = word.latch(slot_key("m"))
    word.close()
    assert latch is not None
    assert latch.on
    assert Dead.asked == asks_first
    assert Dead.patience_s == (killing.PATIENCE_S if asks_first else 0)


def test_without_the_word_a_dead_control_plane_is_an_error(target: Target) -> None:
    with pytest.raises(Unreachable):
        killing._kill(target, Situation("idle"))
    assert Dead.patience_s > killing.PATIENCE_S  # nothing comes after it

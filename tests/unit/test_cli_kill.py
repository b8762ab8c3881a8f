"""`canarium kill`: through the control plane, and by the control word where that cannot or will not."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import httpx
import pytest

from serving.cli import main
from serving.contract import ControlWord, Latch, slot_key
from serving.control import kill_notes
from serving.core.killswitch import KillNote
from serving.paths import Paths

KILL = "/admin/v1/models/moderation:kill"
DOWN = httpx.MockTransport(lambda request: (_ for _ in ()).throw(httpx.ConnectError("refused")))


def answering(status: int, body: object) -> httpx.MockTransport:
    return httpx.MockTransport(lambda request: httpx.Response(status, json=body))


def kill(state_dir: Path, *more: str, model: str = "moderation", transport: httpx.MockTransport = DOWN) -> int:
    return main(["kill", model, "--reason", "bad answers", "--state-dir", str(state_dir), *more], transport=transport)


def latch(state_dir: Path, slot: str = "moderation") -> Latch | None:
    word = ControlWord.open(Paths.of(state_dir).word_path)
    try:
        return word.latch(slot_key(slot))
    finally:
        word.close()


def notes(state_dir: Path) -> list[tuple[str, int, str]]:
    found = kill_notes.read(kill_notes.beside(Paths.of(state_dir).word_path))
    assert all(note.actor.startswith("cli:") for note in found)
    return [(note.slot, note.seq, note.reason) for note in found]


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    path = Paths.of(tmp_path).word_path
    path.parent.mkdir()
    ControlWord.open(path).close()
    return tmp_path


def test_a_kill_says_that_it_went_through_the_control_plane(
    state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kill(state_dir, transport=answering(200, {"model": "moderation", "kill_seq": 6})) == 0
    assert "kill 6, through the control plane" in capsys.readouterr().out
    assert latch(state_dir) == Latch(0, 0)
    assert notes(state_dir) == []


@pytest.mark.parametrize(("target", "slot"), [("moderation", "moderation"), ("--all", "*")])
def test_a_kill_reaches_the_gateways_when_the_control_plane_is_down(
    state_dir: Path, target: str, slot: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kill(state_dir, "--json", model=target) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["path"] == "control word"
    assert "cannot reach" in said["control_error"]
    assert said["kill_seq"] == 1
    assert latch(state_dir, slot) == Latch(1, 0)
    assert notes(state_dir) == [(slot, 1, "bad answers")]
    file = kill_notes.beside(Paths.of(state_dir).word_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_kill_by_the_word_of_what_is_killed_already_has_a_number_of_its_own(state_dir: Path) -> None:
    assert [kill(state_dir), kill(state_dir)] == [0, 0]
    assert latch(state_dir) == Latch(2, 0)
    assert notes(state_dir) == [("moderation", 1, "bad answers"), ("moderation", 2, "bad answers")]


def test_a_broken_control_plane_is_passed_over(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kill(state_dir, transport=answering(500, {"error": "no"})) == 0
    assert latch(state_dir) == Latch(1, 0)
    assert "through the control word" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "code", "told"), [(401, 4, True), (403, 4, True), (429, 1, True), (404, 1, False)])
def test_a_refusal_is_not_passed_over_but_names_the_way_out(
    state_dir: Path, status: int, code: int, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing = answering(status, {"error": "this token is not known here"})
    assert kill(state_dir, transport=refusing) == code
    assert latch(state_dir) == Latch(0, 0)
    error = capsys.readouterr().err
    assert "this token is not known here" in error
    assert ("--by-word" in error) == told
    assert kill(state_dir, "--by-word", transport=refusing) == 0
    assert latch(state_dir) == Latch(1, 0)
    assert notes(state_dir) == [("moderation", 1, "bad answers")]


def test_a_token_that_cannot_be_used_has_the_same_way_out(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CANARIUM_TOKEN", "two\nlines")
    assert kill(state_dir) == 1
    assert "--by-word" in capsys.readouterr().err
    assert kill(state_dir, "--by-word") == 0


def test_a_kill_that_cannot_say_why_is_in_force_and_says_so(
    state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_notes.beside(Paths.of(state_dir).word_path).mkdir()
    assert kill(state_dir) == 0
    assert latch(state_dir) == Latch(1, 0)
    assert "the audit log will not say" in capsys.readouterr().err


def test_a_kill_without_any_way_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--by-word"]):
        assert kill(tmp_path, *options) == 3
        error = capsys.readouterr().err
        assert "--state-dir" in error
        assert not Paths.of(tmp_path).word_path.exists()


def test_notes_are_bounded_and_a_torn_one_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_bytes(b'{"slot": "m", "se')
    kill_notes.leave(path, KillNote("m", 1, "ann", "x" * 5000 + "\udcff"))
    (found,) = kill_notes.read(path)
    assert (found.seq, len(found.reason)) == (1, kill_notes.TEXT_MAX)
    for seq in range(2, 700):
        kill_notes.leave(path, KillNote("m", seq, "ann", "x" * 1000))
    assert path.stat().st_size < kill_notes.FILE_MAX + 2000
    assert kill_notes.read(path)[-1].seq == 699

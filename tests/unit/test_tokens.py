"""The tokens file: its form, its following while processes run, its changes by the command."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.cli import main
from serving.clock import FakeClock
from serving.config import parse_config
from serving.control.auth import Auth
from serving.control.tokens import HEADER, TokensFile, add, hashed, new_secret, parse_tokens, read, remove
from serving.control.tokens import Token as Entry
from serving.errors import ConfigError, RequestError

ANN = f"ann:operator:{hashed('s3cret')}\n"
BOB = f"bob:viewer:{hashed('b0b')}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "tokens").write_text("# who\n" + ANN)
    return tmp_path / "tokens"


# ---------------------------------------------------------------- the form


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ann:operator", "expected name:role:sha256[:expiry]"),
        ("an n:operator:" + "0" * 64, "expected name:role:sha256[:expiry]"),
        ("ann:boss:" + "0" * 64, "unknown role 'boss', expected one of viewer, tester"),
        ("ann:operator:s3cret", "the token of ann is not 64 hexadecimal digits"),
        ("ann:operator:" + "0" * 64 + ":tomorrow", "the expiry of ann is not a time such as 2030-01-31T00:00:00Z"),
        ("ann:operator:" + "0" * 64 + ":2030-01-31T00:00:00", "the expiry of ann is not a time"),
        ("bob:viewer:" + "1" * 64, "bob or its token is given twice"),
        ("eve:viewer:" + "1" * 64, "eve or its token is given twice"),
    ],
)
def test_a_bad_line_is_refused_by_number_without_its_secret(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_tokens("bob:viewer:" + "1" * 64 + "\n" + line, "tokens")
    assert str(caught.value).startswith("auth.tokens_file: tokens line 2: ")
    assert message in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_file_that_lets_nobody_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no token"):
        parse_tokens("# nobody\n", "tokens")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Auth.from_config("tokens", tmp_path / "absent")


def test_a_token_is_written_as_it_is_read() -> None:
    for expires_s in (None, 1_900_000_000):
        token = Entry("ann", "monitor", "0" * 64, expires_s)
        assert parse_tokens(token.line, "f") == [token]


# ---------------------------------------------------------------- following


def test_a_running_process_follows_the_file(path: Path) -> None:
    clock = FakeClock()
    auth = Auth.from_config("tokens", path, clock)
    path.write_text(BOB)
    assert auth.identify("Bearer s3cret").name == "ann"  # not looked at again yet
    clock.advance(1)
    assert auth.identify("Bearer b0b").name == "bob"
    with pytest.raises(RequestError, match="not known"):
        auth.identify("Bearer s3cret")
    assert auth.view() == {"mode": "tokens", "tokens": 1, "fault": None}


@pytest.mark.parametrize(
    "damage", ["", "ann:operator:s3cret", "\x00\xff", None], ids=["empty", "bad", "binary", "gone"]
)
def test_a_damaged_file_changes_nothing_and_is_said_once(
    path: Path, damage: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    auth = Auth.from_config("tokens", path, clock)
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage.encode("latin-1"))
    for _ in range(3):
        clock.advance(1)
        assert auth.identify("Bearer s3cret").name == "ann"
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "the 1 tokens read before stay in force" in caplog.text
    assert auth.view()["fault"].startswith("auth.tokens_file: ")
    assert "s3cret" not in caplog.text + auth.view()["fault"]
    path.write_text("# who\n" + ANN)  # as it was
    clock.advance(1)
    assert auth.identify("Bearer s3cret").name == "ann"
    assert auth.view()["fault"] is None


def test_a_file_without_end_is_not_read_to_its_end(path: Path) -> None:
    path.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="is over 1024 KiB"):
        TokensFile(path, FakeClock())


# ---------------------------------------------------------------- changing


def test_many_that_change_the_file_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: add(path, Entry(f"n{n}", "viewer", hashed(str(n)))), range(40)))
        list(threads.map(lambda n: remove(path, f"n{n}"), range(20)))
    assert {token.name for token in read(path)} == {f"n{n}" for n in range(20, 40)}
    assert path.read_text().startswith(HEADER)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_comments_and_other_lines_stay(path: Path) -> None:
    path.write_text(path.read_text().rstrip("\n"))  # by an editor that ends no line
    add(path, Entry("bob", "viewer", "1" * 64))
    remove(path, "ann")
    assert path.read_text() == f"# who\nbob:viewer:{'1' * 64}\n"


def test_a_damaged_file_is_not_changed(path: Path) -> None:
    path.write_text("what is this")
    with pytest.raises(ConfigError, match="line 1: expected name"):
        add(path, Entry("bob", "viewer", "1" * 64))
    assert path.read_text() == "what is this"


@pytest.mark.parametrize(("before", "after"), [(0o640, 0o640), (0o660, 0o640), (0o644, 0o640), (0o600, 0o600)])
def test_whoever_read_the_file_by_its_group_still_can(path: Path, before: int, after: int) -> None:
    path.chmod(before)
    group = path.stat().st_gid
    add(path, Entry("bob", "viewer", hashed("b0b")))
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (after, group)
    remove(path, "bob")
    assert stat.S_IMODE(path.stat().st_mode) == after


def test_another_group_than_before_may_not_read_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    path.chmod(0o640)
    monkeypatch.setattr(os, "chown", refused)
    add(path, Entry("bob", "viewer", hashed("b0b")))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_secrets_are_long_and_never_the_same() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"canarium_[\w-]{43}", secret) for secret in made)


# ---------------------------------------------------------------- the command


def run(*arguments: str) -> int:
    return main(["token", *arguments])


def test_a_token_is_made_used_listed_and_revoked(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--tokens-file", str(path))
    assert run("create", "eve", "--role", "admin", *where) == 0
    out, err = capsys.readouterr()
    secret = out.strip()
    assert err == f"eve is admin; the token is shown this once, {path} keeps its hash\n"
    assert secret not in path.read_text()
    clock = FakeClock()
    auth = Auth.from_config("tokens", path, clock)
    assert auth.identify(f"Bearer {secret}").role == "admin"

    assert run("list", "--json", *where) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed[1] == {"name": "eve", "role": "admin", "expires": None, "expired": False}
    assert run("list", *where) == 0
    assert re.search(r"eve\s+admin\s+never", capsys.readouterr().out)

    assert run("revoke", "eve", *where) == 0
    clock.advance(1)
    with pytest.raises(RequestError):
        auth.identify(f"Bearer {secret}")


@pytest.mark.parametrize(
    ("expires", "pattern"), [("90d", r"20\d\d-\d\d-\d\dT\S+Z"), ("2999-01-31", "2999-01-31T00:00:00Z")]
)
def test_a_token_may_expire(path: Path, expires: str, pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("create", "eve", "--role", "viewer", "--expires", expires, "--json", "--tokens-file", str(path)) == 0
    answer = json.loads(capsys.readouterr().out)
    assert re.fullmatch(pattern, answer["expires"])
    assert read(path)[1].expiry == answer["expires"]
    assert hashed(answer["token"]) == read(path)[1].sha256


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("create", "ann", "--role", "viewer"), 1, "there is a token of the name ann: revoke it first"),
        (("create", "an n", "--role", "viewer"), 2, "up to 64 letters, digits"),
        (("create", "eve", "--role", "boss"), 2, "'boss' is not one of"),
        (("create", "eve", "--role", "viewer", "--expires", "soon"), 2, "'soon' is neither a time span"),
        (("create", "eve", "--role", "viewer", "--expires", "2001-01-01"), 2, "2001-01-01 is past"),
        (("revoke", "ann"), 1, "ann is the last token, without it nobody could get in: create another first"),
        (("revoke", "eve"), 1, "there is no token of the name eve"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(
    path: Path, arguments: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = path.read_text()
    assert run(*arguments, "--tokens-file", str(path)) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert path.read_text() == before


def test_the_file_can_be_named_by_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "canarium.yaml"
    config.write_text(
        "apiVersion: canarium/v1\n"
        f"auth: {{mode: tokens, tokens_file: {tmp_path / 'tokens'}}}\n"
        "models: {m: {baseline: a, variants: {a: {artifact: 'm/a:1'}}}}\n"
    )
    assert run("create", "eve", "--role", "viewer", "-f", str(config)) == 0
    assert [token.name for token in read(tmp_path / "tokens")] == ["eve"]
    assert run("list") == 2
    assert "name the tokens file" in capsys.readouterr().err


def test_a_mounted_secret_is_followed_through_its_links(tmp_path: Path) -> None:
    """Kubernetes renews a Secret by moving the link ..data to a new directory and removing the old one."""

    def mounted(version: str, content: str) -> None:
        (tmp_path / version).mkdir()
        (tmp_path / version / "tokens").write_text(content)
        (tmp_path / "next").symlink_to(version)
        (tmp_path / "next").rename(tmp_path / "..data")

    mounted("..ts1", ANN + BOB)
    (tmp_path / "tokens").symlink_to("..data/tokens")
    document = {"auth": {"mode": "tokens", "tokens_file": str(tmp_path / "tokens")}, "apiVersion": "canarium/v1"}
    models = {"m": {"baseline": "a", "variants": {"a": {"artifact": "m/a:1"}}}}
    named = parse_config({**document, "models": models}).absolute().auth.tokens_file
    assert named == str(tmp_path / "tokens")
    clock = FakeClock()
    file = TokensFile(Path(named), clock)
    mounted("..ts2", BOB)
    shutil.rmtree(tmp_path / "..ts1")
    clock.advance(1.0)
    assert [token.name for token in file.current()] == ["bob"]
    assert file.fault is None

"""Tokens and roles."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest

from serving.clock import FakeClock
from serving.control.auth import MONITOR, ROLES, Action, Auth, Principal, parse_tokens
from serving.errors import ConfigError, ErrorKind, RequestError


def hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# who may do what\nann:operator:{hashed('s3cret')}\n\nmon:monitor:{hashed('m0n').upper()}\n")
    return path


def test_without_authentication_everybody_is_an_admin_whose_name_is_not_proved() -> None:
    principal = Auth.from_config("none", None).identify(None)
    assert (principal.role, principal.verified) == ("admin", False)
    principal.require("admin")


def test_a_token_names_its_holder(tokens_file: Path) -> None:
    auth = Auth.from_config("tokens", tokens_file)
    assert auth.identify("Bearer s3cret") == Principal("ann", "operator")
    assert auth.identify("bearer m0n") == Principal("mon", "monitor")


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic s3cret", "s3cret", "Bearer \udcff"]
)
def test_anything_else_is_unauthenticated_and_not_repeated(tokens_file: Path, header: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        Auth.from_config("tokens", tokens_file).identify(header)
    assert caught.value.kind is ErrorKind.UNAUTHENTICATED
    assert "wrong" not in caught.value.message
    assert "s3cret" not in caught.value.message


def test_a_client_that_keeps_failing_is_slowed_down_but_a_valid_token_always_gets_in(tokens_file: Path) -> None:
    clock = FakeClock()
    auth = Auth.from_config("tokens", tokens_file, clock)
    kinds = []
    for _ in range(12):
        with pytest.raises(RequestError) as caught:
            auth.identify("Bearer wrong", "10.0.0.1")
        kinds.append(caught.value.kind)
    assert kinds == [ErrorKind.UNAUTHENTICATED] * 10 + [ErrorKind.OVERLOADED] * 2
    assert caught.value.retry_after_s == 60
    assert auth.identify("Bearer s3cret", "10.0.0.1").name == "ann"
    with pytest.raises(RequestError, match="not known"):
        auth.identify("Bearer wrong", "10.0.0.2")
    clock.advance(61)
    with pytest.raises(RequestError, match="not known"):
        auth.identify("Bearer wrong", "10.0.0.1")


def test_no_secret_reaches_the_log(tokens_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    auth = Auth.from_config("tokens", tokens_file)
    auth.identify("Bearer s3cret")
    with pytest.raises(RequestError):
        auth.identify("Bearer n0pe")
    assert "s3cret" not in caplog.text
    assert "n0pe" not in caplog.text


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_do_what_the_lower_ones_may(role: str) -> None:
    principal = Principal("x", role)
    for action in Action:
        assert principal.may(action) == (ROLES.index(role) >= ROLES.index(action.role))


def test_the_monitor_reads_reports_and_brakes_and_nothing_else() -> None:
    monitor = Principal("mon", MONITOR)
    allowed = {action for action in Action if monitor.may(action)}
    assert allowed == {Action.READ, Action.HEARTBEAT, Action.ROLLBACK, Action.KILL}
    with pytest.raises(RequestError, match="may not re-arm: release-manager is needed") as caught:
        monitor.permit(Action.REARM)
    assert caught.value.kind is ErrorKind.FORBIDDEN
    with pytest.raises(RequestError):
        monitor.require("viewer")


def test_a_role_that_is_too_low_is_told_which_is_needed() -> None:
    with pytest.raises(RequestError, match="ann has the role tester, which is not enough: operator is needed"):
        Principal("ann", "tester").require("operator")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ann:operator", "expected name:role:sha256"),
        ("an n:operator:" + "0" * 64, "expected name:role:sha256"),
        ("ann:boss:" + "0" * 64, "unknown role 'boss', expected one of viewer, tester"),
        ("ann:operator:s3cret", "the token of ann is not 64 hexadecimal digits"),
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

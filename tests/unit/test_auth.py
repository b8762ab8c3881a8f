"""Tokens and roles."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from serving.clock import FakeClock
from serving.control.auth import MONITOR, ROLES, VISITOR, Action, Auth, Principal
from serving.control.tokens import hashed
from serving.errors import ErrorKind, RequestError


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


def test_gateways_that_are_open_let_visitors_infer_and_no_more(tokens_file: Path) -> None:
    auth = Auth.from_config("tokens", tokens_file, visitor=VISITOR)
    visitor = auth.identify(None)
    visitor.require("viewer")
    with pytest.raises(RequestError, match="a token is needed for this, of the role tester or above") as caught:
        visitor.require("tester")
    assert caught.value.kind is ErrorKind.UNAUTHENTICATED
    with pytest.raises(RequestError, match="of the role labeller or above"):
        visitor.permit(Action.LABEL)
    assert auth.identify("Bearer s3cret") == Principal("ann", "operator")
    with pytest.raises(RequestError, match="not known"):  # whoever shows a token is held to it
        auth.identify("Bearer wrong")


def test_a_token_ends_with_its_time(tmp_path: Path) -> None:
    clock = FakeClock()
    (tmp_path / "tokens").write_text(f"ann:operator:{hashed('s3cret')}:2023-11-14T22:13:30Z\n")  # in ten seconds
    auth = Auth.from_config("tokens", tmp_path / "tokens", clock)
    assert auth.identify("Bearer s3cret").name == "ann"
    clock.advance(10)
    with pytest.raises(RequestError, match="the token of ann expired at 2023-11-14T22:13:30Z") as caught:
        auth.identify("Bearer s3cret")
    assert caught.value.kind is ErrorKind.UNAUTHENTICATED


def test_who_fails_is_remembered_for_a_bounded_number_of_peers(tokens_file: Path) -> None:
    auth = Auth.from_config("tokens", tokens_file, FakeClock())
    for number in range(3000):
        with pytest.raises(RequestError):
            auth.identify("Bearer wrong", f"10.0.{number // 256}.{number % 256}")
    assert len(auth._failures._counts) == 1024


def test_every_token_is_compared_and_in_constant_time(tokens_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(known: str, given: str) -> bool:
        compared.append(known)
        return known == given

    monkeypatch.setattr("hmac.compare_digest", compare)
    Auth.from_config("tokens", tokens_file).identify("Bearer s3cret")  # the first of two
    assert len(compared) == 2

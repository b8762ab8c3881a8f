"""A whole instance as a team would run it: state in PostgreSQL, tokens for the admin API, inference open."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.control.tokens import Token, add, hashed
from tests.integration.conftest import tiny_document
from tests.support.postgres import PASSWORD, PostgresServer
from tests.support.stack import Stack, running, wait_for

pytestmark = pytest.mark.integration

OPERATOR, MONITOR = "canarium_operator-of-the-test", "canarium_monitor-of-the-test"
SECRETS = (PASSWORD, "pass%20word", OPERATOR, MONITOR)
CHOOSE = {"x_canarium_variant": "good"}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secrets") / "tokens"
    add(path, Token("olga", "operator", hashed(OPERATOR)))
    add(path, Token("monitor", "monitor", hashed(MONITOR)))
    return path


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer, tokens: Path) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("guarded")
    document = tiny_document(folder / "registry", {"good": ""})
    document["auth"] = {"mode": "tokens", "tokens_file": str(tokens), "data_plane": "open"}
    document["state"] = {"database": postgres.url("t-guarded").replace("pass%20word%2F%25", "${TEST_DB_PASSWORD}")}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TEST_DB_PASSWORD", PASSWORD)
        environment.setenv("CANARIUM_MONITOR_TOKEN", MONITOR)
        with running(document, folder) as stack:
            yield stack


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def admin(stack: Stack, token: str | None, path: str = "/status") -> Any:
    return stack.admin.get(path, headers=bearer(token) if token else {})


def test_anybody_infers_and_only_operators_look_and_change(stack: Stack) -> None:
    assert stack.infer("tiny", "spam").status_code == 200
    assert stack.infer("tiny", "spam", **CHOOSE).status_code == 401
    assert stack.infer("tiny", "spam", **CHOOSE, **bearer(OPERATOR)).headers["x-canarium-variant"] == "good"
    assert admin(stack, None).status_code == 401
    status = wait_for(lambda: s if (s := admin(stack, OPERATOR).json())["monitor"]["alive"] else None)
    assert (status["control"]["database"], status["auth"]["tokens"]) == ("ok", 2)
    body = {"weights": {"good": 10}, "reason": "test"}
    assert stack.admin.put("/models/tiny/traffic", json=body, headers=bearer(OPERATOR)).status_code == 200
    assert not list(stack.paths.state_dir.glob("*.db*"))  # nothing in a file


def test_gateway_and_control_plane_follow_the_tokens_file(stack: Stack, tokens: Path) -> None:
    made = stack.canarium("token", "create", "tess", "--role", "tester", "--tokens-file", str(tokens))
    token = made.stdout.strip()
    wait_for(lambda: stack.infer("tiny", "spam", **CHOOSE, **bearer(token)).status_code == 200)
    wait_for(lambda: admin(stack, token).status_code == 200)
    stack.canarium("token", "revoke", "tess", "--tokens-file", str(tokens))
    wait_for(lambda: stack.infer("tiny", "spam", **CHOOSE, **bearer(token)).status_code == 401)
    wait_for(lambda: admin(stack, token).status_code in (401, 429))


def test_no_secret_is_shown_or_kept(stack: Stack) -> None:
    doctor = stack.canarium("doctor", "-f", str(stack.config_file), check=False).stdout
    assert "***@/postgres" in doctor
    assert "answers" in doctor
    said = [stack.output(), doctor]
    said += [stack.canarium("check", str(stack.config_file), "--json").stdout]
    said += [
        admin(stack, OPERATOR, path).text for path in ("/status", "/audit", "/models", "/snapshot", "/openapi.json")
    ]
    for file in stack.paths.state_dir.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # the instance runs and takes files away
            if file.is_file() and file.stat().st_size < 1 << 22:
                said.append(file.read_bytes().decode("latin-1"))
    assert len(said) > 8
    assert [secret for secret in SECRETS for text in said if secret in text] == []


def test_the_state_is_there_after_a_restart(stack: Stack) -> None:
    before = admin(stack, OPERATOR, "/models/tiny").json()
    assert stack.stop() == 0
    stack.log.unlink()
    stack.start()
    after = admin(stack, OPERATOR, "/models/tiny").json()
    assert after["variants"] == before["variants"]
    assert admin(stack, OPERATOR).json()["lease"] == 2
    verified = admin(stack, OPERATOR, "/audit/verify").json()
    assert verified["ok"]

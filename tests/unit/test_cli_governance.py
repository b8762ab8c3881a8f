"""`canarium key | gate | approve`, and what an instance says of artifacts that nobody has approved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from governance_kit import config, registry_at
from registry_kit import edit
from rich.console import Console

from serving.cli import main
from serving.errors import GovernanceError
from serving.registry.store import Registry
from serving.supervisor import up


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = registry_at(tmp_path)
    monkeypatch.setenv("CANARIUM_REGISTRY", str(registry.root))
    monkeypatch.setenv("COLUMNS", "200")
    return registry


@pytest.fixture
def run(registry: Registry, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str, code: int = 0) -> str:
        assert main([*arguments]) == code
        shown = capsys.readouterr()
        return shown.err or shown.out if code else shown.out

    return run


def trusting(registry: Registry, public: str) -> Path:
    path = registry.root.parent / "canarium.yaml"
    path.write_text(
        "apiVersion: canarium/v1\n"
        "governance:\n  mode: enforce\n  policy: limited\n"
        f"  trusted_keys: [{{name: Alice, key: '{public}', roles: [reviewer]}}]\n"
        f"registry: {{dir: {registry.root}}}\n"
        "models: {m: {baseline: teacher, variants: {teacher: {artifact: 'm/teacher:1'}}}}\n"
    )
    return path


def test_from_a_key_to_an_approval_that_counts(run: Any, registry: Registry, tmp_path: Path) -> None:
    key = str(tmp_path / "alice.key")
    public = run("key", "create", key).strip()
    assert public.startswith("ed25519:")
    assert run("key", "show", key).strip() == public
    assert "is not overwritten" in run("key", "create", key, code=1)
    config = str(trusting(registry, public))
    shown = run("gate", "m/int8", "--policy", "limited")
    assert "m/int8:1: passes policy 'limited'" in shown
    assert "evaluation.recall.spam is 0.95" in shown
    assert "1 approval by a reviewer missing" in run("gate", "m/int8", "--policy", "limited", "-f", config, code=1)
    options = ("--policy", "limited", "--key", key, "--role", "reviewer", "--reason")
    said = run("approve", "m/int8", *options, "numbers are fine")
    assert said.startswith("m/int8:1: approved under policy 'limited' as reviewer\nsigned sha256 ")
    assert "approved by Alice as reviewer" in run("gate", "m/int8", "--policy", "limited", "-f", config)
    (line,) = [line for line in run("registry", "list").splitlines() if "m/int8:1" in line]
    assert "limited" in line
    assert "say why" in run("approve", "m/int8", *options, " ", code=2)
    document = json.loads(run("gate", "m/int8", "--policy", "limited", "-f", config, "--json"))
    assert document["failed"] == []
    assert document["approvals"] == {"counted": [["Alice", "reviewer"]], "not_counted": []}


def test_a_gate_that_fails_has_exit_code_1_and_says_what(run: Any) -> None:
    shown = run("gate", "m/int8", "--policy", "high", code=1)
    assert "m/int8:1: refused: evaluation.slices.lowest.accuracy: not measured; " in shown
    assert "expected a policy file or one of low, limited, high" in run("gate", "m/int8", "--policy", "x", code=1)


def test_a_gate_does_not_judge_numbers_that_were_edited(run: Any, registry: Registry) -> None:
    was, now = edit(registry, "m/int8", '"ece_debiased": 0.004', '"ece_debiased": 0.001')
    said = f"canarium: m/int8:1: its manifest is damaged: registered with sha256 {was}, got {now} in "
    assert run("gate", "m/int8", "--policy", "limited", code=1).startswith(said)


def test_up_refuses_what_nobody_approved_before_anything_starts(registry: Registry, tmp_path: Path) -> None:
    governance = {
        "mode": "enforce",
        "trusted_keys": [{"name": "alice", "key": "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="}],
    }
    with pytest.raises(GovernanceError) as refused:
        up(config(registry, governance=governance), tmp_path / "canarium.yaml", Console(quiet=True))
    assert str(refused.value).startswith("models.m.variants.teacher: m/teacher:1 (sha256 ")
    assert "1 approval missing; governance.mode is enforce" in str(refused.value)
    assert not (tmp_path / "state").exists()


def test_check_reads_the_policies_that_a_configuration_names(run: Any, registry: Registry, tmp_path: Path) -> None:
    path = trusting(registry, "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
    assert "must be approved under policy limited (enforce)" in run("check", str(path))
    path.write_text(path.read_text().replace("policy: limited", "policy: absent.yaml"))
    assert "absent.yaml: No such file or directory; expected a policy file or one of" in run("check", str(path), code=1)

"""An instance that enforces approvals starts with what is approved, and refuses a rollout of what is not any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.governance.approve import approve
from serving.governance.keys import PrivateKey, create_key, load_key
from serving.governance.policy import load_policy
from serving.registry.store import Registry
from tests.integration.conftest import tiny_document
from tests.support.stack import Stack, running

pytestmark = pytest.mark.integration

POLICY = "apiVersion: canarium/policy/v1\nname: ours\ntier: low\nrules: [{evidence: evaluation.teacher_disagreement}]\n"


def test_only_what_is_approved_is_served_and_rolled_out(tmp_path: Path) -> None:
    document = tiny_document(tmp_path / "registry", {"good": ""})
    registry, path = Registry(tmp_path / "registry"), tmp_path / "policy.yaml"
    path.write_text(POLICY)
    create_key(tmp_path / "alice.key")
    key = load_key(tmp_path / "alice.key")
    trusted = [{"name": "Alice", "key": key.public.text}]
    document["governance"] = {"mode": "enforce", "policy": str(path), "trusted_keys": trusted}

    refused = Stack(document, tmp_path).canarium("up", "-f", str(tmp_path / "canarium.yaml"), check=False)
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert "models.tiny.variants.good: tiny/good:1 (sha256 " in line
    assert line.endswith("1 approval missing; governance.mode is enforce")

    for variant in ("teacher", "good"):
        _approve(registry, f"tiny/{variant}:1", path, key)
    with running(document, tmp_path) as stack:
        assert stack.infer("tiny", "spam").status_code == 200
        start = ("rollout", "start", "tiny", "good", "--policy", "careful", "--reason", "test")
        kept = registry.approvals.journal.path.read_bytes()
        registry.approvals.journal.path.unlink()
        refusal = stack.canarium(*start, check=False)
        assert refusal.returncode == 4
        assert "models.tiny.variants.good: tiny/good:1 (sha256 " in refusal.stderr
        assert stack.infer("tiny", "spam").status_code == 200  # what runs goes on
        registry.approvals.journal.path.write_bytes(kept)
        stack.canarium(*start)


def _approve(registry: Registry, ref: str, policy: Path, key: PrivateKey) -> None:
    approve(registry, ref, load_policy(str(policy)), key, by="alice", role="approver", reason="test")

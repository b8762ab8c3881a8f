"""The README's example of governance works as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from repository import blocks, commands, readme, words_of

from serving import yaml12
from serving.cli import main
from serving.governance.policy import load_policy
from serving.registry.manifest import Lineage, Parent, Signature, TensorSpec
from serving.registry.store import Registry

SECTION = re.search(r"^## Governance\n(.*?)^## ", readme(), re.MULTILINE | re.DOTALL)
EVALUATION = {
    "accuracy": 0.97,
    "accuracy_ci": [0.96, 0.98],
    "recall": {"ham": 0.98, "spam": 0.95},
    "teacher_disagreement_ci": [0.005, 0.02],
    "negative_flip_upper": 0.012,
    "ece_debiased": 0.004,
    "batch_neighbour_delta": 0.0,
}


@pytest.fixture
def section() -> str:
    assert SECTION is not None, "the README has no section Governance"
    return SECTION[1]


def registered(folder: Path) -> Registry:
    registry, signature = Registry(folder / "registry"), Signature((TensorSpec("x", "FP32", (-1, 2)),), ())
    lineage = Lineage()
    for variant in ("teacher", "int8"):
        (folder / variant).write_text(variant)
        made = registry.register(
            "moderation",
            variant,
            {"model.onnx": folder / variant},
            format="onnx",
            entry="model.onnx",
            signature=signature,
            session=signature,
            lineage=lineage,
            evaluation=EVALUATION,
        )
        lineage = Lineage("quantized", (Parent("source", made.ref, made.digest),))
    return registry


def configuration(section: str, registry: Registry, public: str) -> dict[str, Any]:
    (given,) = [one for one in (yaml12.load(block) for block in blocks(section, "yaml")) if "governance" in one]
    given["governance"]["trusted_keys"][0]["key"] = public
    variants = {name: {"artifact": f"moderation/{name}:1"} for name in ("teacher", "int8")}
    return {
        "apiVersion": "canarium/v1",
        "registry": {"dir": str(registry.root)},
        "models": {"moderation": {"baseline": "teacher", "variants": variants}},
        **given,
    }


def test_the_example_works(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    registry = registered(tmp_path)
    monkeypatch.setenv("CANARIUM_REGISTRY", str(registry.root))
    lines = [line for line in commands(section) if line.startswith("canarium ")]
    assert len(lines) >= 7
    for line in lines:
        assert main(words_of(line)[1:]) == 0, f"{line}: {capsys.readouterr().err}"
        if line.startswith("canarium key create"):
            public = capsys.readouterr().out.strip()
            document = configuration(section, registry, public)
            (tmp_path / "canarium.yaml").write_text(json.dumps(document))  # YAML reads JSON
    assert "approved by Alice as reviewer" in capsys.readouterr().out
    assert (tmp_path / "int8.html").read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / "system.cdx.json").read_text())["specVersion"] == "1.6"


def test_the_policy_of_the_example_can_be_used(section: str, tmp_path: Path) -> None:
    (block,) = [block for block in blocks(section, "yaml") if "canarium/policy/v1" in block]
    (tmp_path / "policy.yaml").write_text(block)
    assert load_policy(str(tmp_path / "policy.yaml")).name == "mail"

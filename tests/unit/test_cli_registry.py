"""`canarium registry`: what people and scripts see of the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from registry_kit import made_from, put

from serving.cli import main
from serving.clock import FakeClock
from serving.registry.store import Registry


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry(tmp_path / "registry", FakeClock())
    first = put(registry, "teacher", "one", words=True, evaluation={"accuracy": 0.75})
    put(registry, "int8", "two", lineage=made_from(first), evaluation={"accuracy": 0.5})
    put(registry, "teacher", "three")
    monkeypatch.setenv("CANARIUM_REGISTRY", str(registry.root))
    monkeypatch.setenv("COLUMNS", "200")
    return registry


@pytest.fixture
def run(registry: Registry, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str, code: int = 0) -> str:
        assert main(["registry", *arguments]) == code
        shown = capsys.readouterr()
        return shown.err if code else shown.out

    return run


def test_an_alias_is_set_listed_used_and_removed(run: Any) -> None:
    assert "there are no aliases" in run("alias")
    assert run("alias", "m/teacher", "production", "1", "--reason", "tested") == (
        "m/teacher:production names revision 1 now; before, nothing\n"
    )
    assert "names revision 1 already" in run("alias", "m/teacher", "production", "1", "--reason", "tested")
    assert json.loads(run("show", "m/teacher:production"))["revision"] == 1
    assert "production" in run("list")
    run("alias", "m/teacher", "production", "latest", "--reason", "better")
    shown = json.loads(run("alias", "m/teacher", "--json"))
    assert shown["aliases"] == [{"model": "m", "variant": "teacher", "alias": "production", "revision": 2}]
    assert [(one["from"], one["to"], one["reason"]) for one in shown["history"]] == [
        (None, 1, "tested"),
        (1, 2, "better"),
    ]
    assert all(one["by"].startswith("cli:") for one in shown["history"])
    assert "m/teacher:2" in run("alias")
    assert "removed; it named revision 2" in run("alias", "m/teacher", "production", "--remove", "--reason", "over")
    assert "over" in run("alias", "m/teacher", "production")


def test_wrong_usage_of_aliases_is_2(run: Any) -> None:
    assert "needs --reason" in run("alias", "m/teacher", "production", "1", code=2)
    assert "say why" in run("alias", "m/teacher", "production", "1", "--reason", " ", code=2)
    assert "to remove an alias give" in run("alias", "m/teacher", "--remove", "--reason", "x", code=2)
    assert "to remove an alias give" in run("alias", "m/teacher", "p", "1", "--remove", "--reason", "x", code=2)
    assert "without a revision" in run("alias", "m/teacher:1", "production", "1", "--reason", "x", code=1)
    assert "has no revision 9" in run("alias", "m/teacher", "production", "9", "--reason", "x", code=1)


def test_diff_shows_numbers_side_by_side(run: Any) -> None:
    shown = run("diff", "m/teacher:1", "m/int8")
    for text in ("different content", "model.onnx", "lineage.relation", "evaluation.accuracy", "-0.25"):
        assert text in shown
    document = json.loads(run("diff", "m/teacher:1", "m/int8", "--json"))
    assert document["evaluation"] == [{"path": "evaluation.accuracy", "a": 0.75, "b": 0.5, "difference": -0.25}]


def test_gc_says_what_would_go_then_takes_it(run: Any, registry: Registry, tmp_path: Path) -> None:
    assert "would remove 0 revisions, 0 blobs" in run("gc", "--dry-run")
    put(registry, "int8", "four")
    config = tmp_path / "canarium.yaml"
    config.write_text(
        f"apiVersion: canarium/v1\nstate: {{dir: {tmp_path / 'state'}}}\n"
        "models: {m: {baseline: int8, variants: {int8: {artifact: 'm/int8:1'}}}}\n"
    )
    assert json.loads(run("gc", "--keep", "1", "--config", str(config), "--json", "--dry-run"))["revisions"] == []
    planned = json.loads(run("gc", "--keep", "1", "--json", "--dry-run"))
    assert planned["revisions"] == ["m/int8:1", "m/teacher:1"]
    shown = run("gc", "--keep", "1")
    assert shown.splitlines()[-1].startswith("removed 2 revisions, 3 blobs, 2 trees, 0 left-overs: ")
    assert f"{planned['bytes']:,} bytes" in shown
    assert [manifest.ref for manifest in registry.list()] == ["m/teacher:2", "m/int8:2"]
    assert run("verify") == "2 of 2 artifacts are whole; 0 faults\n"
    run("gc", "--keep", "0", code=2)


def test_verify_says_each_fault_in_a_line_and_repairs(run: Any, registry: Registry) -> None:
    (registry.open("m/teacher:2")[1] / "model.onnx").unlink()
    said = run("verify", code=1)
    assert said.startswith("canarium: m/teacher:2: ")
    assert len(said.splitlines()) == 1
    report = json.loads(run("verify", "--json", "--repair"))
    assert report["repaired"] == ["m/teacher:2: its tree is laid out again"]
    assert (report["artifacts"], report["whole"], report["findings"]) == (3, 3, [])


def test_export_and_import(run: Any, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "new" / "out", tmp_path / "elsewhere"
    assert f"2 artifacts in {folder}" in run("export", "m/teacher:1", "m/int8", "--to", str(folder))
    assert "is there already" in run("export", "m/int8", "--to", str(folder), code=1)
    assert run("import", str(folder), "--dir", str(elsewhere)) == "m/teacher:1: registered\nm/int8:1: registered\n"
    assert "m/int8:1: has the same content already" in run("import", str(folder), "--dir", str(elsewhere))
    assert [one["new"] for one in json.loads(run("import", str(folder), "--json"))] == [False, False]
    assert "is no OCI image layout" in run("import", str(tmp_path), code=1)

"""`registry verify` finds every kind of damage, says it in one line, and repairs what it can without loss."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from registry_kit import faults, findings, made_from, put

from serving.clock import FakeClock
from serving.errors import RegistryError
from serving.registry.aliases import set_alias
from serving.registry.fsck import verify
from serving.registry.repair import repair
from serving.registry.store import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry", FakeClock())
    first = put(registry, "a", "one", words=True)
    put(registry, "b", "two", words=True, lineage=made_from(first))
    return registry


def write(path: Path, data: bytes) -> None:
    """Change a file in place, as a broken disk or a careless hand does."""
    path.chmod(0o644)
    path.write_bytes(data)


def blob(registry: Registry, name: str = "model.onnx", ref: str = "m/a:1") -> Path:
    return registry.blobs.path(registry.resolve(ref).files[name].sha256)


def tree(registry: Registry, name: str = "model.onnx", ref: str = "m/a:1") -> Path:
    return registry.trees.path(registry.resolve(ref)) / name


def replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def edit_manifest(registry: Registry) -> None:
    made = registry.resolve("m/a:1")
    write(registry.manifest_path(made), msgspec.structs.replace(made, evaluation={"accuracy": 1.0}).encode())
    registry.trees.discard(registry.trees.path(made))


def move_manifest(registry: Registry) -> None:
    path = registry.manifest_path(registry.resolve("m/a:1"))
    path.rename(path.with_name("7.json"))


def forget_alias(registry: Registry) -> None:
    set_alias(registry, ("m", "b"), "production", "1", by="t", reason="r")
    registry.manifest_path(registry.resolve("m/b:1")).unlink()


def stray(registry: Registry) -> None:
    (registry.root / "models/m/a/notes.txt").write_text("hello")


def no_text(path: Path, at: bytes) -> None:
    """One byte of a text that no UTF-8 has."""
    data = path.read_bytes()
    assert at in data
    write(path, data.replace(at, at[:-1] + b"\xff", 1))


DAMAGES: dict[str, tuple[Callable[[Registry], object], list[str]]] = {
    "a blob changed in place": (
        lambda r: write(blob(r), b"evil"),
        [r"m/a:1: model\.onnx: .* holds sha256 [0-9a-f]{64}; restore it"],
    ),
    "a blob of several artifacts": (
        lambda r: write(blob(r, "words.txt"), b"evil"),
        [r"m/a:1: words\.txt: .* holds sha256", r"m/b:1: words\.txt: .* holds sha256"],
    ),
    "a manifest that is no text": (
        lambda r: no_text(r.manifest_path(r.resolve("m/a:1")), b"model.onnx"),
        [r"m/a/1\.json: not a usable manifest: .*can't decode byte 0xff"],
    ),
    "a log line that is no text": (
        lambda r: no_text(r.log.journal.path, b"m/a:1"),
        [r"log\.jsonl:1: not a line of the journal: .*can't decode byte 0xff", r"log\.jsonl:2: does not follow"],
    ),
    "a blob gone": (lambda r: blob(r).unlink(), [r"m/a:1: model\.onnx: .* is not there"]),
    "a tree's file replaced": (
        lambda r: replace(tree(r), b"evil"),
        [r"m/a:1: .*/model\.onnx does not hold what was registered; `canarium registry verify --repair`"],
    ),
    "a tree's file gone": (lambda r: tree(r).unlink(), [r"m/a:1: .*/model\.onnx is not there; .*--repair"]),
    "a file too many": (
        lambda r: (tree(r).parent / "more").write_text("x"),
        [r"m/a:1: .*/more does not belong to it"],
    ),
    "an unreadable manifest": (
        lambda r: write(r.manifest_path(r.resolve("m/a:1")), b"{}"),
        [r"1\.json: not a usable manifest"],
    ),
    "an edited manifest": (edit_manifest, [r"m/a:1: its manifest was edited after it was registered on 2023"]),
    "a moved manifest": (
        move_manifest,
        [r"7\.json: holds the manifest of m/a:1", r"m/a:1: was registered on .*, and its manifest is gone"],
    ),
    "an alias of nothing": (
        forget_alias,
        [r"m/b:1: was registered on .*, and its manifest is gone", r"m/b:production: names revision 1, which is not"],
    ),
    "a file that does not belong": (stray, [r"notes\.txt: does not belong here \(is not named for a revision\)"]),
    "a log that is no log": (
        lambda r: (r.root / "log.jsonl").write_text("what\n"),
        [r"log\.jsonl:1: not a line of the journal"],
    ),
    "a log line changed": (
        lambda r: write(r.root / "log.jsonl", (r.root / "log.jsonl").read_bytes().replace(b"22:13:20", b"22:13:21", 1)),
        [r"log\.jsonl:2: does not follow the line before it"],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_found_and_said_in_a_line(registry: Registry, name: str) -> None:
    assert findings(registry) == []
    damage, patterns = DAMAGES[name]
    damage(registry)
    found = faults(registry)
    assert len(found) == len(patterns), found
    for fault, pattern in zip(found, patterns, strict=True):
        assert re.search(pattern, fault)
        assert "\n" not in fault


def test_the_report_counts_artifacts(registry: Registry) -> None:
    assert verify(registry)[:2] == (2, 2)
    blob(registry).unlink()
    assert verify(registry)[:2] == (2, 1)


REPAIRABLE = {
    "a tree's file replaced": DAMAGES["a tree's file replaced"][0],
    "a tree's file gone": DAMAGES["a tree's file gone"][0],
    "a file too many": DAMAGES["a file too many"][0],
    "a blob gone": DAMAGES["a blob gone"][0],
    "a tree gone": lambda r: r.trees.discard(tree(r).parent),
    "a blob that is not the tree's": lambda r: replace(blob(r), b"evil"),
    "a log that ends too early": lambda r: (r.root / "log.jsonl").unlink(),
}


@pytest.mark.parametrize("name", REPAIRABLE)
def test_what_loses_nothing_is_repaired(registry: Registry, name: str) -> None:
    REPAIRABLE[name](registry)
    assert findings(registry) != []
    assert repair(registry) != []
    assert findings(registry) == []
    assert [(registry.open(ref)[1] / "model.onnx").read_text() for ref in ("m/a:1", "m/b:1")] == ["one", "two"]
    assert repair(registry) == []


@pytest.mark.parametrize("name", ["a blob changed in place", "an edited manifest", "an unreadable manifest"])
def test_what_is_lost_stays_a_fault(registry: Registry, name: str) -> None:
    DAMAGES[name][0](registry)
    before = faults(registry)
    repair(registry)
    assert faults(registry) == before


def test_leftovers_are_no_faults(registry: Registry) -> None:
    (registry.root / "models/m/a/.2.json.abc").write_text("{")
    orphan = registry.blobs.path("0" * 64)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_text("orphan")
    assert faults(registry) == []
    assert [re.sub(r".*/", "", one) for one in findings(registry)] == [
        ".2.json.abc: is unfinished; `canarium registry gc` removes it",
        f"{'0' * 64}: nothing refers to it; `canarium registry gc` removes it",
    ]


def test_a_registry_from_before_the_chain_is_whole_and_begins_one(registry: Registry) -> None:
    log = registry.root / "log.jsonl"
    lines = [msgspec.json.decode(line) for line in log.read_bytes().splitlines()]
    old = [{key: value for key, value in line.items() if key != "previous"} for line in lines]
    log.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in old))
    assert findings(registry) == []
    put(registry, "a", "three")
    assert findings(registry) == []
    log.write_bytes(log.read_bytes().replace(b'"version":2', b'"version":9'))
    assert faults(registry) == [f"{log}:3: does not follow the line before it; a line was edited or lost"]


def test_registering_again_repairs_and_does_not_hide_an_edit(registry: Registry) -> None:
    made = registry.resolve("m/a:1")
    write(registry.manifest_path(made), msgspec.structs.replace(made, build={"seconds": 1}).encode())
    assert put(registry, "a", "one", words=True).ref == "m/a:1"
    assert len(faults(registry)) == 1


def test_there_must_be_a_registry(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no registry at"):
        verify(Registry(tmp_path / "none"))
    with pytest.raises(RegistryError, match="no registry at"):
        repair(Registry(tmp_path / "none"))

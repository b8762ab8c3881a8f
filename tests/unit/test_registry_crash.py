"""Processes that die at any point, and processes that write at once, leave a registry that is whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from registry_kit import copy_of, dies_at, end_of, faults, findings, in_child, made_from, put

from serving.clock import FakeClock
from serving.registry.aliases import remove_alias, set_alias
from serving.registry.collect import collect
from serving.registry.export import export
from serving.registry.files import locked
from serving.registry.importing import import_layout
from serving.registry.repair import repair
from serving.registry.store import Registry

A = ("m", "a")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Four revisions of `m/a`, one of `m/b` made from the second of them, an alias on the first."""
    registry = Registry(tmp_path_factory.mktemp("filled") / "registry", FakeClock())
    first, second, *_ = (put(registry, "a", f"{number}", words=True) for number in range(4))
    put(registry, "b", "small", words=True, lineage=made_from(second))
    set_alias(registry, A, "live", str(first.revision), by="t", reason="first")
    return registry


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two revisions of `m/a` and one of `m/b`, made from the first of them; none has the content of a filled one."""
    folder = tmp_path_factory.mktemp("foreign")
    registry = Registry(folder / "registry", FakeClock())
    first, _ = (put(registry, "a", f"foreign {number}", words=True) for number in range(2))
    put(registry, "b", "foreign", lineage=made_from(first))
    export(registry, ["m/a:1", "m/a:2", "m/b"], folder / "exported")
    return folder / "exported"


def refs(registry: Registry) -> set[str]:
    return {manifest.ref for manifest in registry.list()}


Work = Callable[[Registry, Path], object]

#: What is done, and what the registry holds of it afterwards.
WORKS: dict[str, tuple[Work, Callable[[Registry], bool]]] = {
    "register": (
        lambda registry, _: put(registry, "c", "new", words=True),
        lambda registry: registry.open("m/c:1")[0].version == 6,
    ),
    "alias": (
        lambda registry, _: set_alias(registry, A, "live", "3", by="t", reason="moved"),
        lambda registry: registry.aliases.of(*A) == {"live": 3},
    ),
    "collect": (
        lambda registry, _: collect(registry, keep=1),
        lambda registry: refs(registry) == {"m/a:1", "m/a:2", "m/a:4", "m/b:1"},
    ),
    "import": (
        lambda registry, layout: import_layout(registry, layout),
        lambda registry: registry.resolve("m/b:2").lineage.parents[0].ref == "m/a:5" and len(registry.list()) == 8,
    ),
}


@pytest.mark.parametrize("name", WORKS)
def test_a_process_that_dies_at_any_point_leaves_a_whole_registry(
    name: str, filled: Registry, exported: Path, tmp_path: Path
) -> None:
    work, done = WORKS[name]
    for number in range(1, 200):
        registry = copy_of(filled, tmp_path / f"{number}")
        before = refs(registry)
        died = dies_at(number, lambda registry=registry: work(registry, exported))
        assert faults(registry) == [], f"killed before change {number}"
        assert all(registry.open(ref) for ref in refs(registry))
        if name != "collect":
            assert before <= refs(registry)
        work(registry, exported)
        assert done(registry), f"repeated after a kill before change {number}"
        collect(registry)
        assert findings(registry) == []
        if not died:
            break
    else:
        pytest.fail("it never ended")
    assert number > (2 if name == "alias" else 10), "nothing was interrupted"


def test_an_import_into_nothing_that_dies_leaves_what_can_be_finished(exported: Path, tmp_path: Path) -> None:
    number, died = 0, True
    while died:
        number += 1
        registry = Registry(tmp_path / f"{number}" / "registry", FakeClock())
        registry.root.parent.mkdir()
        died = dies_at(number, lambda registry=registry: import_layout(registry, exported))
        if (registry.root / "models").is_dir():
            assert faults(registry) == [], f"killed before change {number}"
        assert [made.manifest.ref for made in import_layout(registry, exported)] == ["m/a:1", "m/a:2", "m/b:1"]
        assert registry.resolve("m/b").lineage.parents[0].digest == registry.resolve("m/a:1").digest
        collect(registry)
        assert findings(registry) == []
    assert number > 30


def test_a_repair_that_dies_can_be_repeated(filled: Registry, tmp_path: Path) -> None:
    number, died = 0, True
    while died:
        number += 1
        registry = copy_of(filled, tmp_path / f"{number}")
        manifest, folder = registry.open("m/a:1")
        (folder / "words.txt").unlink()
        registry.blobs.path(manifest.files["model.onnx"].sha256).unlink()  # the tree still has it
        died = dies_at(number, lambda registry=registry: repair(registry))
        repair(registry)
        assert faults(registry) == [], f"killed before change {number}"
    assert number > 5


def test_what_is_registered_while_garbage_is_collected_stays(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry", FakeClock())
    put(registry, "a", "first", words=True)
    writers = [
        in_child(lambda name=name: [put(registry, name, f"{number}", words=True) for number in range(12)])
        for name in ("b", "c")
    ]
    for _ in range(50):
        assert collect(registry) == ([], [], [], [], 0)
    assert [end_of(writer) for writer in writers] == [0, 0]
    assert sorted(manifest.version for manifest in registry.list()) == list(range(1, 26))
    assert findings(registry) == []


def test_aliases_set_by_two_processes_at_once_are_all_in_the_log(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry", FakeClock())
    for number in range(2):
        put(registry, "a", f"{number}")

    def move(name: str, own: str) -> None:
        for number in range(10):
            set_alias(registry, A, "live", f"{1 + number % 2}", by=name, reason=f"{number}")
            set_alias(registry, A, f"{own}-{number}", "1", by=name, reason="own")

    movers = [in_child(lambda: move("x", "one")), in_child(lambda: move("y", "two"))]
    assert [end_of(child) for child in movers] == [0, 0]
    assert len(registry.aliases.of(*A)) == 21
    moves = [change for change in registry.aliases.history() if change.alias == "live"]
    assert [change.old for change in moves] == [None, *(change.new for change in moves[:-1])]
    assert faults(registry) == []


def test_a_writer_waits_for_the_lock(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry", FakeClock())
    put(registry, "a", "1")
    with locked(registry.root / ".lock"):
        child = in_child(lambda: set_alias(registry, A, "live", "1", by="t", reason="r"))
        while f" {child} " not in Path("/proc/locks").read_text():  # until it waits
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
        assert registry.aliases.of(*A) == {}
        assert registry.resolve("m/a").revision == 1  # readers do not
    assert end_of(child) == 0
    assert registry.aliases.of(*A) == {"live": 1}


def test_removing_an_alias_that_dies_can_be_repeated(filled: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        registry = copy_of(filled, tmp_path / f"{number}")
        assert dies_at(number, lambda registry=registry: remove_alias(registry, A, "live", by="t", reason="r"))
        assert faults(registry) == []
        if "live" in registry.aliases.of(*A):
            remove_alias(registry, A, "live", by="t", reason="r")
        assert registry.aliases.of(*A) == {}
        assert faults(registry) == []

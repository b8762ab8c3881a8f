"""Garbage collection takes what nothing refers to, and nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from registry_kit import faults, findings, made_from, put

from serving.clock import FakeClock
from serving.errors import RegistryError
from serving.registry.aliases import set_alias
from serving.registry.collect import collect
from serving.registry.store import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry", FakeClock())


def refs(registry: Registry) -> list[str]:
    return [manifest.ref for manifest in registry.list()]


def litter(registry: Registry) -> tuple[list[Path], list[Path], list[Path]]:
    """A blob, a tree and an unfinished write each that nothing refers to: 6, 4 and 2 + 3 bytes."""
    blob = registry.blobs.path("0" * 64)
    blob.parent.mkdir(exist_ok=True)
    blob.write_text("orphan")
    tree = registry.trees.root / ("1" * 64)
    tree.mkdir()
    (tree / "file").write_text("tree")
    temporary = registry.root / "models/m/a/.9.json.abc"
    temporary.write_text("{}")
    unfinished = registry.trees.root / ".new-abc"
    unfinished.mkdir()
    (unfinished / "file").write_text("new")
    return [blob], [tree], [temporary, unfinished]


def test_what_nothing_refers_to_goes_and_revisions_stay(registry: Registry) -> None:
    for content in ("1", "2"):
        put(registry, "a", content, words=True)
    blobs, trees, temporary = litter(registry)
    assert faults(registry) == []
    planned = collect(registry, dry_run=True)
    assert all(path.exists() for path in [*blobs, *trees, *temporary])
    done = collect(registry)
    assert done == planned
    assert (done.revisions, done.blobs, done.trees) == ([], blobs, trees)
    assert sorted(done.temporary) == sorted(temporary)
    assert done.bytes == 6 + 4 + 2 + 3
    assert not any(path.exists() for path in [*blobs, *trees, *temporary])
    assert findings(registry) == []
    assert all(registry.open(ref) for ref in ("m/a:1", "m/a:2"))
    assert collect(registry).bytes == 0


def test_keep_takes_old_revisions_but_what_is_referred_to(registry: Registry) -> None:
    made = [put(registry, "a", content, words=True) for content in "12345"]
    put(registry, "b", "child", lineage=made_from(made[1]))
    set_alias(registry, ("m", "a"), "production", "1", by="t", reason="r")
    planned = collect(registry, keep=1, used={"m/a:3"}, dry_run=True)
    assert [manifest.ref for manifest in planned.revisions] == ["m/a:4"]
    assert len(refs(registry)) == 6
    done = collect(registry, keep=1, used={"m/a:3"})
    assert done == planned
    assert done.bytes == len(made[3].encode()) + 1  # its manifest and its own file; the words are shared
    assert refs(registry) == ["m/a:1", "m/a:2", "m/a:3", "m/a:5", "m/b:1"]
    assert findings(registry) == []
    for ref in refs(registry):
        registry.open(ref)
    assert [manifest.ref for manifest in collect(registry, keep=1).revisions] == ["m/a:3"]
    assert [manifest.ref for manifest in collect(registry, keep=2).revisions] == []


def test_a_parent_of_a_parent_stays(registry: Registry) -> None:
    root = put(registry, "a", "1")
    middle = put(registry, "b", "1", lineage=made_from(root))
    put(registry, "c", "1", lineage=made_from(middle))
    put(registry, "a", "2")
    put(registry, "b", "2")
    assert collect(registry, keep=1).revisions == []


def test_numbers_of_removed_revisions_are_not_given_again(registry: Registry) -> None:
    for content in "123":
        put(registry, "a", content)
    assert [manifest.ref for manifest in collect(registry, keep=1).revisions] == ["m/a:2", "m/a:1"]
    again = put(registry, "a", "1")
    assert (again.revision, again.version) == (4, 4)
    with pytest.raises(RegistryError, match=r"m/a has no revision 1 \(it has: 3, 4\)"):
        registry.resolve("m/a:1")
    # Nor those of a manifest that somebody deleted by hand.
    registry.manifest_path(again).unlink()
    assert put(registry, "a", "5").revision == 5


def test_removals_are_in_the_log(registry: Registry) -> None:
    for content in "12":
        put(registry, "a", content)
    collect(registry, keep=1)
    assert [(event.ref, event.event) for event in registry.log.events()] == [
        ("m/a:1", "registered"),
        ("m/a:2", "registered"),
        ("m/a:1", "removed"),
    ]


def test_nothing_goes_while_a_manifest_cannot_be_read(registry: Registry) -> None:
    made = put(registry, "a", "1")
    put(registry, "a", "2")
    (orphan,), *_ = litter(registry)
    path = registry.manifest_path(made)
    path.chmod(0o644)
    path.write_text("{}")
    with pytest.raises(RegistryError, match="not a usable manifest"):
        collect(registry, keep=1)
    assert orphan.exists()


def test_nothing_goes_while_a_manifest_that_was_registered_is_gone_or_edited(registry: Registry) -> None:
    gone, edited = put(registry, "a", "1"), put(registry, "a", "2")
    (orphan,), *_ = litter(registry)
    path = registry.manifest_path(gone)
    held = path.read_bytes()
    path.unlink()
    with pytest.raises(RegistryError, match=r"m/a:1: registered, and the manifest is gone .* --forget REF"):
        collect(registry)
    path.write_bytes(held)  # restored from a copy, it is whole
    assert registry.open("m/a:1")
    other = registry.manifest_path(edited)
    other.chmod(0o644)
    other.write_bytes(msgspec.structs.replace(edited, evaluation={"accuracy": 1.0}).encode())
    with pytest.raises(RegistryError, match=r"--forget m/a:2: only a revision whose manifest is gone"):
        collect(registry, forget=["m/a:2"])
    assert orphan.exists()


def test_a_revision_that_is_gone_can_be_given_up(registry: Registry) -> None:
    gone = put(registry, "a", "1")
    put(registry, "a", "2")
    blob = registry.blobs.path(gone.files["model.onnx"].sha256)
    registry.manifest_path(gone).unlink()
    collect(registry, forget=["m/a:1"], dry_run=True)
    assert blob.exists()
    assert len(faults(registry)) == 1
    collect(registry, forget=["m/a:1"])
    assert not blob.exists()
    assert findings(registry) == []
    assert put(registry, "a", "3").ref == "m/a:3"
    with pytest.raises(RegistryError, match="only a revision whose manifest is gone"):
        collect(registry, forget=["m/a:2"])


def test_at_least_one_revision_is_kept(registry: Registry) -> None:
    put(registry, "a", "1")
    with pytest.raises(RegistryError, match="--keep 0: at least 1"):
        collect(registry, keep=0)


def test_where_there_is_no_registry_none_is_made(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="no registry at"):
        collect(registry)
    assert not registry.root.exists()

"""Export and import: a folder that others can read, and nothing taken from one that is not right."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from registry_kit import edit, faults, findings, made_from, put

from serving.clock import FakeClock
from serving.errors import RegistryError
from serving.registry.collect import collect
from serving.registry.export import export
from serving.registry.importing import import_layout
from serving.registry.manifest import Preprocess
from serving.registry.oci import ARTIFACT_TYPE, CONFIG_TYPE
from serving.registry.store import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry", FakeClock())
    teacher = put(registry, "teacher", "big", words=True, evaluation={"accuracy": 0.97, "ci": [0.96, 0.98]})
    put(registry, "int8", "small", words=True, lineage=made_from(teacher))
    put(registry, "teacher", "bigger", words=True)
    return registry


@pytest.fixture
def other(tmp_path: Path) -> Registry:
    (tmp_path / "elsewhere").mkdir()
    return Registry(tmp_path / "elsewhere" / "registry", FakeClock(1_800_000_000_000_000_000))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def everything(registry: Registry) -> list[str]:
    return [manifest.ref for manifest in registry.list()]


# ---------------------------------------------------------------- the layout


def test_the_folder_is_an_oci_image_layout(registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (manifest,) = export(registry, ["m/int8"], folder)
    files = content(folder)
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(files["index.json"])
    (entry,) = index.pop("manifests")
    assert index == {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"}
    assert entry["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert entry["artifactType"] == ARTIFACT_TYPE
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "m/int8:1"}
    image = json.loads(blob(files, entry))
    assert (image["schemaVersion"], image["mediaType"]) == (2, entry["mediaType"])
    assert image["artifactType"] == ARTIFACT_TYPE
    assert image["annotations"] == {
        "org.opencontainers.image.created": "2023-11-14T22:13:20+00:00",
        "org.opencontainers.image.title": "m/int8:1",
        "org.opencontainers.image.version": "2",
    }
    assert image["config"]["mediaType"] == CONFIG_TYPE
    assert blob(files, image["config"]) == manifest.encode() == registry.manifest_path(manifest).read_bytes()
    named = {layer["annotations"]["org.opencontainers.image.title"]: blob(files, layer) for layer in image["layers"]}
    assert named == {"model.onnx": b"small", "words.txt": b"the same for all"}
    assert len(files) == 2 + 1 + 1 + 2


def blob(files: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    """What a descriptor refers to, held to its digest and size as the specification asks."""
    data = files[f"blobs/{descriptor['digest'].replace(':', '/')}"]
    assert hashlib.sha256(data).hexdigest() == descriptor["digest"].removeprefix("sha256:")
    assert len(data) == descriptor["size"]
    return data


def test_the_same_artifacts_give_the_same_bytes(registry: Registry, tmp_path: Path) -> None:
    export(registry, ["m/teacher:1", "m/int8"], tmp_path / "one")
    export(registry, ["m/int8:1", "m/teacher:1", "m/int8:latest"], tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_what_is_done_to_the_folder_does_not_reach_the_registry(registry: Registry, tmp_path: Path) -> None:
    export(registry, everything(registry), tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            path.write_bytes(b"changed")
    assert findings(registry) == []


def test_a_folder_that_holds_something_is_refused(registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    export(registry, ["m/int8"], folder)  # an empty one is as good as none
    before = content(folder)
    with pytest.raises(RegistryError, match="is there already; name a new folder"):
        export(registry, ["m/teacher"], folder)
    assert content(folder) == before
    with pytest.raises(RegistryError, match="has no variant 'nope'"):
        export(registry, ["m/nope"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_damaged_artifact_is_not_exported(registry: Registry, tmp_path: Path) -> None:
    path = registry.blobs.path(registry.resolve("m/int8").files["model.onnx"].sha256)
    path.chmod(0o644)
    path.write_bytes(b"smell")
    with pytest.raises(RegistryError, match=r"m/int8:1: model\.onnx is damaged: expected sha256"):
        export(registry, ["m/int8"], tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir() if "out" in one.name) == []


def test_an_edited_manifest_is_not_exported(registry: Registry, tmp_path: Path) -> None:
    """Whoever imports it would register the edited numbers under a digest of their own."""
    was, now = edit(registry, "m/teacher:1", '"accuracy": 0.97', '"accuracy": 0.99')
    with pytest.raises(RegistryError) as refused:
        export(registry, ["m/teacher:1"], tmp_path / "out")
    assert str(refused.value).startswith(
        f"m/teacher:1: its manifest is damaged: registered with sha256 {was}, got {now} in {registry.root}"
    )
    assert [one.name for one in tmp_path.iterdir() if "out" in one.name] == []


# ---------------------------------------------------------------- the way back


def test_the_round_trip_is_equal_to_the_bit(registry: Registry, other: Registry, tmp_path: Path) -> None:
    export(registry, everything(registry), tmp_path / "out")
    done = import_layout(other, tmp_path / "out")
    assert [(made.manifest.ref, made.new) for made in done] == [
        ("m/teacher:1", True),
        ("m/int8:1", True),
        ("m/teacher:2", True),
    ]
    for manifest in registry.list():
        path = registry.manifest_path(manifest).relative_to(registry.root)
        assert (other.root / path).read_bytes() == (registry.root / path).read_bytes()
        assert content(other.open(manifest.ref)[1]) == content(registry.open(manifest.ref)[1])
    assert findings(other) == []
    export(other, everything(other), tmp_path / "again")
    assert content(tmp_path / "again") == content(tmp_path / "out")


def test_what_is_there_already_is_not_registered_again(registry: Registry, other: Registry, tmp_path: Path) -> None:
    export(registry, everything(registry), tmp_path / "out")
    import_layout(other, tmp_path / "out")
    assert [made.new for made in import_layout(other, tmp_path / "out")] == [False, False, False]
    assert [made.new for made in import_layout(registry, tmp_path / "out")] == [False, False, False]
    assert len(everything(other)) == 3


def test_two_artifacts_of_the_same_content_stay_two(registry: Registry, other: Registry, tmp_path: Path) -> None:
    slow = registry.resolve("m/int8:1")
    fast = msgspec.structs.replace(slow, evaluation={"latency_ms": 1.0})
    with registry.writing():
        assert registry.commit(fast).manifest == slow
        assert registry.commit(fast, stands=lambda _: False).manifest.ref == "m/int8:2"
    exported = export(registry, everything(registry), tmp_path / "out")
    for new in (True, False):
        assert [(made.manifest, made.new) for made in import_layout(other, tmp_path / "out")] == [
            (manifest, new) for manifest in exported
        ]


def test_numbers_go_on_and_parents_are_named_as_they_are_here(
    registry: Registry, other: Registry, tmp_path: Path
) -> None:
    put(other, "teacher", "mine")
    export(registry, ["m/teacher:1"], tmp_path / "parent")
    export(registry, ["m/int8"], tmp_path / "child")
    (parent,) = import_layout(other, tmp_path / "parent")
    assert (parent.manifest.ref, parent.manifest.version) == ("m/teacher:2", 2)
    assert parent.manifest.created_at == registry.resolve("m/teacher:1").created_at
    for new in (True, False):
        (child,) = import_layout(other, tmp_path / "child")
        assert (child.manifest.ref, child.new) == ("m/int8:1", new)
    assert child.manifest.lineage.parents[0].ref == "m/teacher:2"
    assert child.manifest.lineage.parents[0].digest == parent.manifest.digest
    assert findings(other) == []
    put(other, "teacher", "newer")
    assert [manifest.ref for manifest in collect(other, keep=1).revisions] == ["m/teacher:1"]  # not the child's parent


def test_a_parent_that_was_here_before_its_import_is_found_by_a_later_one(
    registry: Registry, other: Registry, tmp_path: Path
) -> None:
    put(other, "teacher", "mine")
    put(other, "teacher", "big", words=True, evaluation={"accuracy": 0.97, "ci": [0.96, 0.98]})
    export(registry, ["m/teacher:1"], tmp_path / "parent")
    export(registry, ["m/int8"], tmp_path / "child")
    (parent,) = import_layout(other, tmp_path / "parent")
    assert (parent.manifest.ref, parent.new) == ("m/teacher:2", False)
    (child,) = import_layout(other, tmp_path / "child")
    assert child.manifest.lineage.parents[0].ref == "m/teacher:2"
    assert findings(other) == []


def test_a_parent_that_is_not_here_keeps_its_name(registry: Registry, other: Registry, tmp_path: Path) -> None:
    export(registry, ["m/int8"], tmp_path / "child")
    (child,) = import_layout(other, tmp_path / "child")
    assert child.manifest.lineage == registry.resolve("m/int8").lineage


# ---------------------------------------------------------------- folders that are not right


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None], what: str = "config") -> None:
    """Change the one artifact's `config` (our manifest) or `image`, every digest above it made right."""
    files = content(folder)
    index = json.loads(files["index.json"])
    image = json.loads(blob(files, index["manifests"][0]))
    if what == "config":
        document = json.loads(blob(files, image["config"]))
        change(document)
        image["config"] |= _add(folder, document)
    else:
        change(image)
    index["manifests"][0] |= _add(folder, image)
    (folder / "index.json").write_text(json.dumps(index))


def _add(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    (folder / "blobs/sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def layer(folder: Path) -> Path:
    return folder / "blobs/sha256" / hashlib.sha256(b"small").hexdigest()


def folder_as_link(folder: Path, name: str) -> None:
    """The same files, reached through a link."""
    elsewhere = folder.with_name("elsewhere-" + name.replace("/", "-"))
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)


def as_link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def twin(folder: Path) -> Path:
    """A file outside of the layout with the very content of a layer."""
    path = folder.parent / "outside"
    path.write_bytes(b"small")
    return path


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file of another content": (
        lambda f: layer(f).write_bytes(b"smell"),
        r"m/int8:1: model\.onnx is damaged: expected sha256 .*, got .*; nothing was imported",
    ),
    "a file of another size": (lambda f: layer(f).write_bytes(b"larger"), "has 6 bytes and not 5"),
    "a file that is not there": (lambda f: layer(f).unlink(), "cannot be read .No such file"),
    "a link for the folder of the blobs": (lambda f: folder_as_link(f, "blobs/sha256"), "cannot be read"),
    "a link for the folder above it": (lambda f: folder_as_link(f, "blobs"), "cannot be read"),
    "a link for a file": (lambda f: as_link(layer(f), twin(f)), "cannot be read"),
    "a pipe for a file": (lambda f: as_pipe(layer(f)), "is not a file"),
    "no layout": (lambda f: (f / "oci-layout").unlink(), "is no OCI image layout"),
    "a layout of another version": (
        lambda f: (f / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}'),
        "layout version '2.0.0' is not supported",
    ),
    "no index": (lambda f: (f / "index.json").unlink(), r"index\.json: cannot be read"),
    "an index that is none": (lambda f: (f / "index.json").write_text("[1]"), r"index\.json: is not what it should be"),
    "deep nesting": (lambda f: (f / "index.json").write_text("[" * 100_000), r"index\.json: is not what it should be"),
    "an edited manifest": (
        lambda f: [path.write_bytes(path.read_bytes().replace(b"int8", b"int4")) for path in f.rglob("*/sha256/*")],
        "is damaged, it holds sha256",
    ),
    "nothing of ours": (
        lambda f: rewritten(f, lambda image: image.update(artifactType="application/x"), "image"),
        "holds no artifact of Canarium",
    ),
    "another config": (
        lambda f: rewritten(f, lambda image: image["config"].update(mediaType="application/x"), "image"),
        "its config is 'application/x'",
    ),
    "a file more": (
        lambda f: rewritten(f, lambda image: image["layers"].pop(), "image"),
        "the files of m/int8:1 are not the layers",
    ),
    "a digest that is a path": (
        lambda f: rewritten(f, lambda image: image["config"].update(digest="sha256:../../oci-layout"), "image"),
        "is not sha256 and 64 hexadecimal digits",
    ),
    "a size without end": (
        lambda f: rewritten(f, lambda image: image["config"].update(size=1 << 40), "image"),
        "are over the",
    ),
    "a model that is a path": (lambda f: rewritten(f, lambda m: m.update(model="../up")), r"model name '\.\./up'"),
    "a variant that is a path": (lambda f: rewritten(f, lambda m: m.update(variant="..")), r"variant name '\.\.'"),
    "a file that is a path": (
        lambda f: rewritten(f, lambda m: m["files"].update({"../evil": m["files"]["model.onnx"]})),
        r"file name '\.\./evil'",
    ),
    "an entry that is not there": (lambda f: rewritten(f, lambda m: m.update(entry="/etc/passwd")), "is not among the"),
    "a tokenizer that is a path": (
        lambda f: rewritten(f, lambda m: m["preprocess"].update(kind="text", tokenizer="../../../secret")),
        r"preprocess\.tokenizer '\.\./\.\./\.\./secret' is not among the files",
    ),
    "a time that is none": (
        lambda f: rewritten(f, lambda m: m.update(created_at="\x1b[2J")),
        r"created_at '\\x1b\[2J' is not a time such as",
    ),
    "a temperature of nothing": (
        lambda f: rewritten(f, lambda m: m["postprocess"].update(temperature=0.0)),
        r"m/int8: postprocess\.temperature is 0: logits are divided by it",
    ),
    "a negative temperature": (
        lambda f: rewritten(f, lambda m: m["postprocess"].update(temperature=-1.5)),
        r"postprocess\.temperature is -1\.5",
    ),
    "logits that are no output": (
        lambda f: rewritten(f, lambda m: m["postprocess"].update(task="classification", logits="scores")),
        r"postprocess\.logits 'scores' is no session output \(there are: y\)",
    ),
    "an unknown datatype": (
        lambda f: rewritten(f, lambda m: m["signature"]["inputs"][0].update(datatype="FP8")),
        r"signature: 'x' is of datatype 'FP8' \(known: BOOL",
    ),
    "a session that takes texts": (
        lambda f: rewritten(f, lambda m: m["session"]["outputs"][0].update(datatype="BYTES")),
        r"session: 'y' is of datatype 'BYTES' \(known: BOOL",
    ),
    "a client without inputs": (lambda f: rewritten(f, lambda m: m["signature"].update(inputs=[])), "signature has no"),
    "a session without inputs": (
        lambda f: rewritten(f, lambda m: m["session"].update(inputs=[])),
        "session has no inp",
    ),
    "no token of a text": (
        lambda f: rewritten(f, lambda m: m["preprocess"].update(kind="text", tokenizer="model.onnx", max_tokens=0)),
        r"preprocess\.max_tokens is 0",
    ),
    "an unknown field": (lambda f: rewritten(f, lambda m: m.update(evil=1)), "unknown field `evil`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_that_is_not_right_changes_nothing(
    name: str, registry: Registry, other: Registry, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    export(registry, ["m/int8"], folder)
    put(other, "teacher", "mine")
    change, message = WRONG[name]
    change(folder)
    with pytest.raises(RegistryError, match=message) as caught:
        import_layout(other, folder)
    assert "\n" not in str(caught.value)
    assert everything(other) == ["m/teacher:1"]
    assert faults(other) == []


def test_one_wrong_artifact_keeps_all_out(registry: Registry, other: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export(registry, everything(registry), folder)
    layer(folder).write_bytes(b"smell")
    with pytest.raises(RegistryError, match="is damaged"):
        import_layout(other, folder)
    assert everything(other) == []


def test_a_damaged_folder_is_noticed_although_the_blob_is_here(registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export(registry, ["m/int8"], folder)
    layer(folder).write_bytes(b"smell")
    with pytest.raises(RegistryError, match="is damaged"):
        import_layout(registry, folder)


def test_what_other_tools_add_is_passed_over(registry: Registry, other: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export(registry, ["m/int8"], folder)
    rewritten(folder, lambda image: image["layers"][0]["annotations"].update({"org.example.by": "tool"}), "image")
    index = json.loads((folder / "index.json").read_text())
    del index["manifests"][0]["artifactType"]
    index["annotations"] = {"org.example.by": "tool"}
    foreign = _add(folder, {"schemaVersion": 2, "config": _add(folder, {}) | {"mediaType": "x"}, "layers": []})
    index["manifests"].append(foreign | {"mediaType": index["manifests"][0]["mediaType"]})
    index["manifests"].append({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": "sha256:0", "size": 1})
    (folder / "index.json").write_text(json.dumps(index))
    assert [made.manifest.ref for made in import_layout(other, folder)] == ["m/int8:1"]


def test_a_text_model_needs_its_tokenizer_when_it_is_registered(registry: Registry) -> None:
    with pytest.raises(RegistryError, match=r"preprocess\.tokenizer 'tokenizer\.json' is not among the files"):
        put(registry, "text", "x", preprocess=Preprocess(kind="text"))
    assert len(everything(registry)) == 3

"""The registry keeps artifacts whole, numbered and told apart."""

from __future__ import annotations

import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from registry_kit import SIGNATURE, put

from serving.clock import FakeClock
from serving.errors import RegistryError
from serving.registry.manifest import Lineage, Manifest, Parent, Preprocess, Signature, TensorSpec
from serving.registry.store import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry", FakeClock())


def test_round_trip(registry: Registry) -> None:
    parent = put(registry, "teacher", "big")
    made = put(
        registry,
        "int8",
        "small",
        lineage=Lineage("quantized", (Parent("source", parent.ref, parent.digest),)),
        evaluation={"accuracy": 0.97, "accuracy_ci": (0.96, 0.98)},
    )
    manifest, folder = registry.open("m/int8:1")
    assert manifest == made
    assert (folder / "model.onnx").read_text() == "small"
    assert manifest.lineage.parents[0].digest == registry.resolve("m/teacher").digest
    assert manifest.evaluation["accuracy_ci"] == [0.96, 0.98]
    assert [other.ref for other in registry.list()] == ["m/teacher:1", "m/int8:1"]
    assert manifest.created_at == "2023-11-14T22:13:20+00:00"


def test_numbers(registry: Registry) -> None:
    first = put(registry, "a", "1")
    second = put(registry, "b", "2")
    third = put(registry, "a", "3")
    other = put(registry, "a", "1", model="n")
    numbers = [(made.revision, made.version) for made in (first, second, third, other)]
    assert numbers == [(1, 1), (1, 2), (2, 3), (1, 1)]
    assert registry.resolve("m/a") == registry.resolve("m/a:latest") == registry.resolve("m/a:2") == third


def test_same_content_is_registered_once(registry: Registry) -> None:
    first = put(registry, "a", "1", evaluation={"accuracy": 0.9, "latency_ms": 1.0}, build={"seconds": 1})
    again = put(registry, "a", "1", evaluation={"accuracy": 0.9, "latency_ms": 2.0}, build={"seconds": 2})
    assert again == first
    assert put(registry, "a", "1", evaluation={"accuracy": 0.8}).revision == 2


def test_concurrent_registration_gives_every_artifact_its_own_numbers(registry: Registry) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: put(registry, f"v{n % 4}", str(n)), range(24)))
    assert sorted(manifest.version for manifest in made) == list(range(1, 25))
    assert len({manifest.ref for manifest in made}) == 24
    assert registry.list() == sorted(made, key=lambda manifest: manifest.version)
    for manifest in made:
        registry.open(manifest.ref)


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("nope/a:1", "nope/a:1: no model 'nope' in {root} (it has: m)"),
        ("m/nope:1", "m/nope:1: model 'm' has no variant 'nope' (it has: a, b)"),
        ("m/a:7", "m/a:7: m/a has no revision 7 (it has: 1)"),
        ("m", "'m' is not MODEL/VARIANT:REVISION, such as moderation/int8:1"),
        ("m/../a:1", "'m/../a:1' is not MODEL/VARIANT:REVISION, such as moderation/int8:1"),
        ("../m:1", "model name '..': use lower-case letters, digits and '-', at most 40"),
        ("m/..:1", "variant name '..': use lower-case letters, digits and '-', at most 40"),
        (
            "m/a:0",
            "'m/a:0': revision '0' is neither a number from 1 nor 'latest', "
            "and an alias starts with a lower-case letter",
        ),
        (
            "m/a:live",
            "m/a:live: m/a has no alias 'live' (it has: nothing); set it with "
            "`canarium registry alias m/a live REVISION`",
        ),
    ],
)
def test_unknown_references_say_what_there_is(registry: Registry, ref: str, message: str) -> None:
    put(registry, "a", "1")
    put(registry, "b", "1")
    with pytest.raises(RegistryError) as caught:
        registry.resolve(ref)
    assert str(caught.value) == message.format(root=registry.root)


def test_no_registry(tmp_path: Path) -> None:
    for call in (lambda r: r.list(), lambda r: r.resolve("m/a:1"), lambda r: r.open("m/a:1")):
        with pytest.raises(RegistryError, match=r"no registry at .*: run `canarium build RECIPE\.yaml` first"):
            call(Registry(tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()


def test_a_damaged_file_is_refused_and_a_new_build_repairs_it(registry: Registry) -> None:
    made = put(registry, "a", "good")
    _, folder = registry.open(made.ref)
    path = folder / "model.onnx"
    path.chmod(0o644)
    path.write_text("evil")
    with pytest.raises(RegistryError) as caught:
        registry.open(made.ref)
    message = str(caught.value)
    assert message.startswith("m/a:1: model.onnx is damaged: expected sha256 " + made.files["model.onnx"].sha256)
    assert str(path) in message
    assert put(registry, "a", "good") == made
    assert (registry.open(made.ref)[1] / "model.onnx").read_text() == "good"


def test_a_missing_file_is_refused(registry: Registry) -> None:
    made = put(registry, "a", "good")
    _, folder = registry.open(made.ref)
    folder.chmod(0o755)
    (folder / "model.onnx").unlink()
    with pytest.raises(RegistryError, match=r"m/a:1: cannot read .*model\.onnx: No such file"):
        registry.open(made.ref)


def test_an_edited_manifest_is_refused(registry: Registry) -> None:
    made = put(registry, "a", "good")
    path = registry.root / "models/m/a/1.json"
    path.chmod(0o644)
    path.write_bytes(msgspec.structs.replace(made, variant="b").encode())
    with pytest.raises(RegistryError, match="holds the manifest of m/b:1"):
        registry.resolve("m/a:1")
    path.write_text("{}")
    with pytest.raises(RegistryError, match="not a usable manifest"):
        registry.resolve("m/a:1")


def test_names_that_leave_the_registry_are_refused(registry: Registry, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_text("x")
    common: dict[str, Any] = {"format": "onnx", "signature": SIGNATURE, "session": SIGNATURE}
    for name in ("../evil", "a/b", ".hidden", ""):
        with pytest.raises(RegistryError, match="file name"):
            registry.register("m", "a", {name: source}, entry=name, **common)
    for model, variant in (("..", "a"), ("m/x", "a"), ("M", "a"), ("m", "../a"), ("m", "a\n")):
        with pytest.raises(RegistryError, match="use lower-case letters"):
            registry.register(model, variant, {"f": source}, entry="f", **common)
    with pytest.raises(RegistryError, match=r"entry 'model\.onnx' is not among the files \(f\)"):
        registry.register("m", "a", {"f": source}, entry="model.onnx", **common)


def test_what_is_registered_cannot_be_written_by_accident(registry: Registry) -> None:
    made = put(registry, "a", "good")
    _, folder = registry.open(made.ref)
    for path in (folder / "model.onnx", registry.root / "models/m/a/1.json"):
        assert not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)


def test_importing_the_registry_and_the_builder_is_light() -> None:
    code = (
        "import sys, serving.registry.store, serving.runtimes.base, serving.build.runner; "
        "print([m for m in ('torch', 'onnxruntime', 'sklearn', 'scipy', 'onnx', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_padded_inputs_are_those_of_a_free_second_axis(registry: Registry) -> None:
    ids = TensorSpec("input_ids", "INT64", (-1, -1))
    fixed = TensorSpec("features", "FP32", (-1, 4))
    session = Signature((ids, fixed), (TensorSpec("y", "FP32", (-1, 2)),))
    padded = register_padded(registry, session)
    assert padded.padded_inputs == {"input_ids"}
    assert registry.resolve(padded.ref).padded_inputs == {"input_ids"}
    assert put(registry, "plain", "x").padded_inputs == frozenset()
    assert b"pad" not in put(registry, "plain", "x").encode()  # as before the option existed


def test_padding_needs_outputs_that_do_not_grow_with_it(registry: Registry) -> None:
    tokens = TensorSpec("hidden", "FP32", (-1, -1, 8))
    with pytest.raises(RegistryError, match=r"preprocess\.pad needs outputs whose axes are fixed"):
        register_padded(registry, Signature((TensorSpec("input_ids", "INT64", (-1, -1)),), (tokens,)))


def register_padded(registry: Registry, session: Signature) -> Manifest:
    source = registry.root.parent / "padded.bin"
    source.write_text("padded")
    return registry.register(
        "m",
        "padded",
        {"model.onnx": source},
        format="onnx",
        entry="model.onnx",
        signature=session,
        session=session,
        preprocess=Preprocess(pad=True),
    )

"""What must not be served is refused before it is loaded, with one line that says what and why."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import onnx
import onnxruntime as ort
import pytest
from governance_kit import AVX2, CALIBRATION, INT8, SIGNATURE, VNNI, config, put, registry_at
from registry_kit import faults, made_from

from serving.clock import FakeClock
from serving.errors import RegistryError
from serving.loading import Loader
from serving.registry.export import export
from serving.registry.formats import check_entry, refuse_pickle
from serving.registry.importing import import_layout
from serving.registry.manifest import Manifest, Postprocess, Preprocess
from serving.registry.onnx_file import EXTERNAL_DATA, INSIDE, locations
from serving.registry.store import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return registry_at(tmp_path)


def loader(registry: Registry, cpu: dict[str, Any] = VNNI) -> Loader:
    return Loader(config(registry), registry, cpu)


def refused(registry: Registry, ref: str = "m/int8:1", cpu: dict[str, Any] = VNNI) -> str:
    with pytest.raises(RegistryError) as error:
        loader(registry, cpu).open("m", "int8", ref)
    assert "\n" not in str(error.value)
    return str(error.value)


def flip(path: Path, at: int = -4) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))


# ---------------------------------------------------------------- bytes


def test_a_flipped_byte_of_a_file_is_refused_with_its_digest(registry: Registry) -> None:
    assert loader(registry).open("m", "int8", "m/int8:1")[0].ref == "m/int8:1"
    sha256 = registry.resolve("m/int8:1").files["model.onnx"].sha256
    flip(registry.blobs.path(sha256))
    assert f"m/int8:1: model.onnx is damaged: expected sha256 {sha256}, got " in refused(registry)
    assert any(sha256 in fault for fault in faults(registry))


def test_a_flipped_byte_of_a_manifest_is_refused_with_its_digest(registry: Registry) -> None:
    manifest = registry.resolve("m/int8:1")
    path = registry.manifest_path(manifest)
    at = path.read_bytes().index(b"1.2")  # the temperature: still a usable manifest, and a wrong one
    flip(path, at)
    assert f"its manifest is damaged: registered with sha256 {manifest.digest}, got " in refused(registry)
    assert any("its manifest was edited" in fault for fault in faults(registry))


@pytest.mark.parametrize("cut", [1, 2, 3, 6, 20])
def test_a_truncated_onnx_file_is_refused(registry: Registry, tmp_path: Path, cut: int) -> None:
    whole = (tmp_path / "int8-int8.onnx").read_bytes()
    short = tmp_path / "short.onnx"
    short.write_bytes(whole[:-cut])
    registry.register(
        "m", "cut", {"model.onnx": short}, format="onnx", entry="model.onnx", signature=SIGNATURE, session=SIGNATURE
    )
    said = refused(registry, "m/cut:1")
    assert said.startswith("m/cut:1: model.onnx (sha256 ")
    assert "is cut off" in said


def test_what_is_no_model_at_all_is_refused(registry: Registry, tmp_path: Path) -> None:
    for name, content, said in (
        ("text", b"hello, I am text", "no ONNX model"),
        ("empty", b"", "it has no graph"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        registry.register(
            "m", name, {"model.onnx": path}, format="onnx", entry="model.onnx", signature=SIGNATURE, session=SIGNATURE
        )
        assert said in refused(registry, f"m/{name}:1")


def torch_manifest(folder: Path, content: bytes) -> Manifest:
    (folder / "model.safetensors").write_bytes(content)
    registry = Registry(folder / "registry", FakeClock())
    return registry.register(
        "m",
        "torch",
        {"model.safetensors": folder / "model.safetensors"},
        format="torch",
        entry="model.safetensors",
        signature=SIGNATURE,
        session=SIGNATURE,
    )


def test_the_frame_of_safetensors_is_checked(tmp_path: Path) -> None:
    header = b'{"__metadata__":{}}'
    whole = struct.pack("<Q", len(header)) + header
    check_entry(torch_manifest(tmp_path, whole), tmp_path)
    for content, said in ((whole[:-3], "is cut off: its header ends at byte"), (b"nothing", "is no safetensors file")):
        with pytest.raises(RegistryError, match=said):
            check_entry(torch_manifest(tmp_path, content), tmp_path)


# ---------------------------------------------------------------- pickles


def pickles(folder: Path) -> dict[str, Path]:
    """Files that run code when they are read, under names that look harmless."""
    made = {}
    for protocol in (2, 3, 4, 5):
        made[f"protocol-{protocol}.bin"] = pickle.dumps({"weights": [1.0, 2.0]}, protocol)
    for name, content in made.items():
        (folder / name).write_bytes(content)
    (folder / "model.pt").write_bytes(pickle.dumps([1], 0))
    with zipfile.ZipFile(folder / "archive.bin", "w") as archive:  # as torch.save writes
        archive.writestr("model/data.pkl", pickle.dumps([1]))
    with zipfile.ZipFile(folder / "hidden.bin", "w") as archive:
        archive.writestr("model/data", pickle.dumps([1]))
    return {path.name: path for path in folder.iterdir()}


def test_pickles_are_told_from_their_bytes_and_names(tmp_path: Path) -> None:
    found = pickles(tmp_path)
    assert len(found) == 7
    for name, path in found.items():
        with pytest.raises(RegistryError, match=r"pickle.*: it would run code when it is read; export the model"):
            refuse_pickle("m/x", name, path)


def test_what_is_no_pickle_is_let_through(tmp_path: Path) -> None:
    path = tmp_path / "file"
    lengths = [0x0280, 0x0380, 0x5D0280, 0x4B0480]  # safetensors whose first bytes look like a pickle's mark
    for content in (
        b"",
        b"\x80",
        b"{}",
        b"\x08\x0a",
        b"\x80\x02",
        *(struct.pack("<Q", size) + b"{" for size in lengths),
    ):
        path.write_bytes(content)
        refuse_pickle("m/x", "model.bin", path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("words.txt", "plain")
    refuse_pickle("m/x", "words.zip", path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_whose_members_are_damaged_is_refused(tmp_path: Path, compression: int) -> None:
    path = tmp_path / "words.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("words", "plain words " * 2000)
    data = bytearray(path.read_bytes())
    for at in range(40, len(data) - 120):
        data[at] ^= 0x5A
    path.write_bytes(data)
    with pytest.raises(RegistryError, match="an archive that cannot be looked into"):
        refuse_pickle("m/x", "words.zip", path)


def test_a_pickle_is_neither_registered_nor_imported_nor_loaded(registry: Registry, tmp_path: Path) -> None:
    bad = tmp_path / "weights.bin"
    bad.write_bytes(pickle.dumps({"weights": 1.0}))
    files = {"model.onnx": tmp_path / "int8-int8.onnx", "weights.bin": bad}
    options: dict[str, Any] = {"format": "onnx", "entry": "model.onnx", "signature": SIGNATURE, "session": SIGNATURE}
    with pytest.raises(RegistryError, match=r"m/bad: weights.bin is a pickle"):
        registry.register("m", "bad", files, **options)
    # One that came in before there was a check.
    sha256 = registry.blobs.put(bad)
    manifest = msgspec.structs.replace(
        registry.resolve("m/int8:1"), variant="bad", files=registry.resolve("m/int8:1").files | {"weights.bin": sha256}
    )
    with registry.writing():
        registry.commit(manifest)
    assert "m/bad:1: weights.bin is a pickle" in refused(registry, "m/bad:1")
    export(registry, ["m/bad"], tmp_path / "out")
    with pytest.raises(RegistryError, match=r"m/bad:1: weights.bin is a pickle"):
        import_layout(Registry(tmp_path / "elsewhere", FakeClock()), tmp_path / "out")


# ---------------------------------------------------------------- tensors in other files


def outside(location: str = "weights.bin") -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2, 2])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def attribute(**value: Any) -> onnx.NodeProto:
    return onnx.NodeProto(op_type="Any", attribute=[onnx.AttributeProto(name="a", **value)])


#: Graphs that keep a tensor in a file, each in another place.
PLACES = {
    "initializer": onnx.GraphProto(initializer=[outside()]),
    "sparse initializer": onnx.GraphProto(sparse_initializer=[onnx.SparseTensorProto(values=outside())]),
    "attribute": onnx.GraphProto(node=[attribute(t=outside())]),
    "subgraph": onnx.GraphProto(node=[attribute(g=onnx.GraphProto(node=[attribute(tensors=[outside()])]))]),
    "large": onnx.GraphProto(
        initializer=[onnx.TensorProto(raw_data=b"location" * 2000)],
        node=[attribute(graphs=[onnx.GraphProto(doc_string="x" * 9000, initializer=[outside()])])],
    ),
}


def model(path: Path, graph: onnx.GraphProto, **more: Any) -> Path:
    path.write_bytes(
        onnx.ModelProto(graph=graph, opset_import=[onnx.OperatorSetIdProto(version=17)], **more).SerializeToString()
    )
    return path


def test_tensors_are_found_in_all_places_where_onnx_has_them() -> None:
    fields: dict[str, dict[int, str]] = {}
    pending = [onnx.ModelProto.DESCRIPTOR]
    while pending:
        message = pending.pop()
        if message.name not in fields:
            inner = [field for field in message.fields if field.message_type is not None]
            fields[message.name] = {field.number: field.message_type.name for field in inner}
            pending += [field.message_type for field in inner]
    leading = {"TensorProto"}
    while more := {name for name, inner in fields.items() if leading & set(inner.values())} - leading:
        leading |= more
    assert {
        name: {number: inner for number, inner in fields[name].items() if inner in leading}
        for name in leading - {"TensorProto"}
    } == INSIDE
    assert onnx.TensorProto.DESCRIPTOR.fields_by_name["external_data"].number == EXTERNAL_DATA


def test_the_files_that_a_model_names_are_found_wherever_it_does(tmp_path: Path) -> None:
    for place, graph in PLACES.items():
        assert locations(model(tmp_path / "model.onnx", graph)) == {"weights.bin"}, place
    function = onnx.FunctionProto(node=[attribute(t=outside("../../b"))])
    assert locations(model(tmp_path / "model.onnx", PLACES["initializer"], functions=[function])) == {
        "weights.bin",
        "../../b",
    }
    harmless = onnx.GraphProto(doc_string="location", initializer=[onnx.TensorProto(raw_data=b"location")])
    assert locations(model(tmp_path / "model.onnx", harmless)) == set()


def test_the_number_of_a_field_is_read_as_the_runtime_reads_it(tmp_path: Path) -> None:
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["w"], ["y"])], "g", [], [y], [outside()])
    path = model(tmp_path / "model.onnx", graph, ir_version=8)
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    plain = path.read_bytes()
    assert plain[:3] == b"\x08\x08\x3a"
    path.write_bytes(plain[:2] + b"\xba\x80\x80\x80\x10" + plain[3:])  # field 7, and a bit that does not count
    assert ort.InferenceSession(path).run(["y"], {})[0].shape == (2, 2)
    assert locations(path) == {"weights.bin"}
    path.write_bytes(plain[:2] + b"\x0b\x0c" + plain[2:])  # a group, which ONNX has none of
    assert ort.InferenceSession(path)
    with pytest.raises(ValueError, match="is no ONNX model: byte 2 begins no field"):
        locations(path)


def test_a_model_with_tensors_in_a_file_of_nobody_is_neither_registered_nor_imported_nor_loaded(
    registry: Registry, tmp_path: Path
) -> None:
    path = model(tmp_path / "out.onnx", PLACES["subgraph"])
    options: dict[str, Any] = {"format": "onnx", "entry": "model.onnx", "signature": SIGNATURE, "session": SIGNATURE}
    with pytest.raises(RegistryError, match=r"m/out: model.onnx keeps tensors in 'weights.bin', which is none of the"):
        registry.register("m", "out", {"model.onnx": path}, **options)
    (tmp_path / "weights.bin").write_bytes(b"w" * 16)
    files = {"model.onnx": path, "weights.bin": tmp_path / "weights.bin"}
    assert registry.open(registry.register("m", "whole", files, **options).ref)
    # One that came in before there was a check.
    stored = registry.blobs.put(path)
    manifest = msgspec.structs.replace(registry.resolve("m/whole:1"), variant="out", files={"model.onnx": stored})
    with registry.writing():
        registry.commit(manifest)
    assert "m/out:1: model.onnx keeps tensors in 'weights.bin'" in refused(registry, "m/out:1")
    export(registry, ["m/out"], tmp_path / "layout")
    with pytest.raises(RegistryError, match=r"m/out:1: model.onnx keeps tensors in 'weights.bin'"):
        import_layout(Registry(tmp_path / "elsewhere", FakeClock()), tmp_path / "layout")


def test_a_file_that_was_laid_beside_the_artifacts_own_is_refused(registry: Registry) -> None:
    manifest, folder = registry.open("m/int8:1")
    (folder / "weights.bin").write_bytes(b"w" * 16)
    assert refused(registry) == (
        f"m/int8:1: {folder / 'weights.bin'} does not belong to it; "
        "`canarium registry verify --repair` lays it out again"
    )
    registry.trees.repair(manifest)
    assert loader(registry).open("m", "int8", "m/int8:1")[1] == folder


# ---------------------------------------------------------------- calibration caches


def cache(registry: Registry, **changes: str) -> dict[str, Any]:
    weights = registry.resolve("m/teacher:1").files["model.onnx"].sha256
    return {"split": "calibration", "cache_sha256": "c" * 64, "model_sha256": weights, **changes}


def test_a_cache_of_other_weights_is_not_registered(registry: Registry) -> None:
    teacher = registry.resolve("m/teacher:1")
    right = INT8 | {"calibration": cache(registry)}
    put(registry, "right", lineage=made_from(teacher), quantization=right)
    wrong = INT8 | {"calibration": cache(registry, model_sha256="d" * 64)}
    with pytest.raises(RegistryError, match=r"its calibration cache \(cccccccccccc…\) was made with model_sha256 dddd"):
        put(registry, "wrong", lineage=made_from(teacher), quantization=wrong)
    other_data = INT8 | {"calibration": cache(registry, data_sha256="e" * 64)}
    with pytest.raises(RegistryError, match=r"the data of split calibration have ffff"):
        put(
            registry,
            "wrong",
            lineage=made_from(teacher),
            quantization=other_data,
            data={"split_sha256": {"calibration": "f" * 64}},
        )
    assert faults(registry) == []


def test_a_cache_of_other_weights_is_found_and_not_loaded(registry: Registry) -> None:
    teacher = registry.resolve("m/teacher:1")
    wrong = INT8 | {"calibration": cache(registry)}
    made = put(registry, "late", lineage=made_from(teacher), quantization=wrong)
    # As one that was registered before there was a check, or beside another source.
    path = registry.manifest_path(made)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(wrong["calibration"]["model_sha256"].encode(), b"d" * 64))
    lines = registry.log.journal.path.read_text().splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | {"digest": registry.resolve("m/late:1").digest})
    registry.log.journal.path.write_text("\n".join(lines) + "\n")
    assert "m/late:1: its calibration cache (cccccccccccc…) was made with model_sha256 dddd" in refused(
        registry, "m/late:1"
    )
    assert any("its calibration cache" in fault for fault in faults(registry))


# ---------------------------------------------------------------- instruction sets


def test_an_int8_artifact_of_another_instruction_set_is_refused(registry: Registry) -> None:
    assert refused(registry, cpu=AVX2) == (
        "models.m.variants.int8: m/int8:1 is an INT8 artifact that was validated on VNNI, and this host has x86_64 "
        "without 8-bit dot products; no sibling of the same source that was validated here can take its place: build "
        "one on this host, or choose another artifact"
    )
    assert loader(registry, AVX2).open("m", "teacher", "m/teacher:1")  # floats run anywhere
    assert loader(registry, AVX2).open("m", "int8", "m/int8:1", runs_here=False)
    put(registry, "never", lineage=made_from(registry.resolve("m/teacher:1")), quantization=INT8, validated_on=[])
    assert "that was never validated" in refused(registry, "m/never:1")


def test_processors_with_the_same_arithmetic_share_a_validation(registry: Registry) -> None:
    for flags in (["avx2", "avx_vnni"], ["avx512_vnni", "amx_int8"]):
        assert loader(registry, {"machine": "x86_64", "flags": flags}).open("m", "int8", "m/int8:1")
    for machine, flags in (("aarch64", ["asimddp"]), ("x86_64", ["avx2", "avx512f"])):
        assert "and this host has" in refused(registry, cpu={"machine": machine, "flags": flags})


def test_the_sibling_that_was_validated_here_takes_its_place(registry: Registry) -> None:
    teacher, on_avx2 = registry.resolve("m/teacher:1"), [{"cpu": AVX2, "accuracy": 0.97}]
    about: dict[str, Any] = {"lineage": made_from(teacher), "quantization": INT8, "validated_on": on_avx2}
    put(registry, "int8-avx2", **about)
    put(registry, "int8-other-labels", **about, calibration=CALIBRATION)
    stranger = put(registry, "stranger")
    put(registry, "int8-stranger", **(about | {"lineage": made_from(stranger)}))
    asked = config(registry)
    kept, notes = loader(registry).fitted(asked)
    assert (kept, notes) == (asked, [])
    fitted, notes = loader(registry, AVX2).fitted(asked)
    assert fitted.models["m"].variants["int8"].artifact == "m/int8-other-labels:1"
    assert fitted.models["m"].variants["teacher"] == asked.models["m"].variants["teacher"]
    (note,) = notes
    assert note.endswith("its sibling m/int8-other-labels:1 is served instead")
    put(registry, "int8", "for avx2", **about)
    assert loader(registry, AVX2).fitted(asked)[0].models["m"].variants["int8"].artifact == "m/int8:2"


def test_a_sibling_made_of_the_same_weights_under_another_manifest_is_found(registry: Registry) -> None:
    """As two builds on unlike processors leave it: each has a revision of the teacher, measured where it was built."""
    here = {"accuracy": 0.97, "cpu": AVX2}
    teacher = put(registry, "teacher", evaluation=here)
    other = put(registry, "teacher", "other weights", evaluation=here)
    assert (teacher.ref, other.ref) == ("m/teacher:2", "m/teacher:3")
    asked = config(registry, teacher="m/teacher:1", int8="m/int8:2")
    quantized = INT8 | {"calibration": cache(registry)}
    put(registry, "int8", "on vnni", lineage=made_from(registry.resolve("m/teacher:1")), quantization=quantized)
    of_others = INT8 | {"calibration": cache(registry, model_sha256=other.files["model.onnx"].sha256)}
    about: dict[str, Any] = {"validated_on": [{"cpu": AVX2, "accuracy": 0.97}]}
    put(registry, "int8", "of other weights", lineage=made_from(other), quantization=of_others, **about)
    assert loader(registry, AVX2).fitted(asked) == (asked, [])
    put(registry, "int8", "on avx2", lineage=made_from(teacher), quantization=quantized, **about)
    fitted, _ = loader(registry, AVX2).fitted(asked)
    assert fitted.models["m"].variants["int8"].artifact == "m/int8:4"


def test_a_sibling_that_reads_or_answers_otherwise_does_not_take_its_place(registry: Registry) -> None:
    about: dict[str, Any] = {
        "lineage": made_from(registry.resolve("m/teacher:1")),
        "quantization": INT8,
        "validated_on": [{"cpu": AVX2}],
    }
    labels = Postprocess("classification", logits="y", labels=("a", "b"))
    put(registry, "int8", "a", **about, preprocess=Preprocess(max_tokens=32))
    put(registry, "int8", "b", **about, postprocess=labels)
    put(registry, "int8", "c", **about, postprocess=Postprocess(score="y", threshold=0.5))
    asked = config(registry)
    assert loader(registry, AVX2).fitted(asked) == (asked, [])
    put(registry, "int8", "d", **about, postprocess=Postprocess(temperature=1.7))  # that is its own
    assert loader(registry, AVX2).fitted(asked)[0].models["m"].variants["int8"].artifact == "m/int8:5"


def test_a_sibling_with_another_tokenizer_does_not_take_its_place(registry: Registry, tmp_path: Path) -> None:
    def text(words: str, cpu: dict[str, Any]) -> None:
        (tmp_path / "tokenizer.json").write_text(words)
        registry.register(
            "m",
            "text",
            {"model.onnx": tmp_path / "int8-int8.onnx", "tokenizer.json": tmp_path / "tokenizer.json"},
            format="onnx",
            entry="model.onnx",
            signature=SIGNATURE,
            session=SIGNATURE,
            preprocess=Preprocess("text"),
            lineage=made_from(registry.resolve("m/teacher:1")),
            quantization=INT8,
            validated_on=[{"cpu": cpu}],
        )

    text("one", VNNI)
    text("other", AVX2)
    asked = config(registry, text="m/text:1")
    assert loader(registry, AVX2).fitted(asked) == (asked, [])


def test_two_variants_are_not_given_the_same_sibling(registry: Registry) -> None:
    """Clients tell variants by their versions: two of one artifact could not be started."""
    about: dict[str, Any] = {"lineage": made_from(registry.resolve("m/teacher:1")), "quantization": INT8}
    put(registry, "int8", "second", **about)
    put(registry, "int8", "here", **about, validated_on=[{"cpu": AVX2}])
    asked = config(registry, old="m/int8:1", new="m/int8:2")
    fitted, notes = loader(registry, AVX2).fitted(asked)
    assert [one.artifact for one in fitted.models["m"].variants.values()] == ["m/int8:3", "m/int8:2"]
    assert notes[0].endswith("its sibling m/int8:3 is served instead")
    assert notes[1].startswith("models.m.variants.new: m/int8:2 is an INT8 artifact")
    assert notes[1].endswith("its sibling m/int8:3 is already served as old: leave out one of the two")
    put(registry, "int8", "here as well", **about, validated_on=[{"cpu": AVX2}])
    fitted, _ = loader(registry, AVX2).fitted(asked)
    assert [one.artifact for one in fitted.models["m"].variants.values()] == ["m/int8:4", "m/int8:3"]
    beside = config(registry, old="m/int8:1", new="m/int8:4")
    assert loader(registry, AVX2).fitted(beside)[0].models["m"].variants["old"].artifact == "m/int8:3"

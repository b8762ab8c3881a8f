"""Is a file what an artifact may hold? Told from its bytes, before any library reads it.

Pickles run code when they are read: nothing that is one, or holds one, is ever stored or loaded.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from pathlib import Path

from serving.decoding import UNZIPPABLE
from serving.errors import RegistryError
from serving.registry.manifest import Manifest
from serving.registry.onnx_file import fields, locations

#: Endings of files that are pickles by convention, whatever their first bytes are (protocols 0 and 1 have no mark).
_PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill")
_REMEDY = "it would run code when it is read; export the model to ONNX or safetensors"
_HEAD = 4096
#: Fields of ONNX's ModelProto without which there is no model (onnx/onnx.proto): the graph and the operator sets.
_GRAPH, _OPERATORS = 7, 8


def refuse_pickle(ref: str, name: str, path: Path) -> None:
    """Raises `RegistryError` if a file is a pickle, or an archive that holds one (as `torch.save` writes)."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
        inside = _pickle_in_archive(path) if head.startswith(b"PK\x03\x04") else ""
    except OSError as error:
        raise RegistryError(f"{ref}: cannot read {path}: {error.strerror}") from error
    if inside:
        raise RegistryError(f"{ref}: {name} holds a pickle ({inside}): {_REMEDY}")
    if name.lower().endswith(_PICKLED) or _is_pickle(head):
        raise RegistryError(f"{ref}: {name} is a pickle: {_REMEDY}")


def refuse_outside(ref: str, manifest: Manifest, path: Path) -> None:
    """Raises `RegistryError` if the ONNX model at `path` keeps tensors in a file that is none of the artifact's.

    ONNX Runtime would read them from there, and no digest and no approval covers them.
    """
    if manifest.format != "onnx":
        return
    try:
        outside = sorted(locations(path) - set(manifest.files))
    except OSError as error:
        raise RegistryError(f"{ref}: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise RegistryError(f"{ref}: {manifest.entry} {error}") from None
    if outside:
        raise RegistryError(
            f"{ref}: {manifest.entry} keeps tensors in {outside[0]!r}, which is none of the artifact's files, so no "
            "digest and no approval covers them; save the model with its tensors in it"
        )


def check_entry(manifest: Manifest, folder: Path) -> None:
    """Raises `RegistryError` if the file that a runtime would load is cut off, or is of another format."""
    path = folder / manifest.entry
    try:
        fault = _FAULTS[manifest.format](path)
    except OSError as error:
        raise RegistryError(f"{manifest.ref}: cannot read {path}: {error.strerror}") from error
    if fault:
        raise RegistryError(
            f"{manifest.ref}: {manifest.entry} (sha256 {manifest.files[manifest.entry].sha256}) {fault}; "
            "build or import the artifact again"
        )


def _is_pickle(head: bytes) -> bool:
    """Whether bytes begin with a pickle of protocol 2 or later: its mark, then operations that exist."""
    if head[:1] != b"\x80" or len(head) < 4 or not 2 <= head[1] <= pickle.HIGHEST_PROTOCOL:
        return False
    operations = pickletools.genops(io.BytesIO(head))
    try:
        for _ in range(3):
            next(operations, None)
    except ValueError:
        return False
    return True


def _pickle_in_archive(path: Path) -> str:
    """Name of a member that is a pickle; empty if there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    if member.filename.lower().endswith(_PICKLED) or _is_pickle(stream.read(_HEAD)):
                        return member.filename
    except OSError as error:
        if error.errno is not None:
            raise
        return "an archive that cannot be looked into"  # bz2 says so of data that are none
    except UNZIPPABLE:
        return "an archive that cannot be looked into"
    return ""


def _safetensors_fault(path: Path) -> str:
    """What is wrong with the frame of a safetensors file: 8 bytes of length, that much JSON, the tensors."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(9)
    if len(head) < 9 or head[8:9] != b"{":
        return "is no safetensors file"
    needed = 8 + int.from_bytes(head[:8], "little")
    return f"is cut off: its header ends at byte {needed}, the file at {size}" if needed > size else ""


def _onnx_fault(path: Path) -> str:
    """What is wrong with the frame of an ONNX file: the outermost fields must fill it exactly, the graph among them."""
    try:
        with path.open("rb") as stream:
            seen = {field.number for field in fields(stream, 0, path.stat().st_size)}
    except ValueError as error:
        return str(error)
    missing = [name for field, name in ((_GRAPH, "graph"), (_OPERATORS, "operator sets")) if field not in seen]
    return f"is cut off or no ONNX model: it has no {' and no '.join(missing)}" if missing else ""


_FAULTS = {"onnx": _onnx_fault, "torch": _safetensors_fault}
